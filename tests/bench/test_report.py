"""Reports: self-contained, escaped, honest about what is missing, and generic in what a cell is."""

import dataclasses
import html.parser
import re

import pytest
from typer.testing import CliRunner

from longformer_triton.bench import core, tables
from longformer_triton.bench.cases import FORWARD, Case
from longformer_triton.bench.folder import case_of, read
from longformer_triton.bench.measure import Measurement
from longformer_triton.bench.model_cells import ModelCase, ModelMeasurement
from longformer_triton.bench.record import ERROR, OK, OUT_OF_MEMORY, SKIPPED, Record
from longformer_triton.bench.report import as_markdown, documents, write_report
from longformer_triton.bench.tables import TIME, by_provider, escaped, short
from longformer_triton.cli import app

ORIGIN = {"device": "a processor", "threads": "2", "torch": "2.0", "transformers": "4", "commit": "abc", "date": "2026-01-01"}
HOSTILE = 'a|b <script>alert("x")</script> <!-- core table: end --> [l](javascript:x) `c` &amp;'


def timed(time):
    return Measurement(0.9 * time, time, 1.1 * time, 5, time, 8.0, 0.1, 1e-7)


def fill(folder, origin=ORIGIN):
    record = Record(folder)
    for length in (1024, 16384):
        for window in (128, 512):
            record.append(Case("ours-torch", FORWARD, length, window), OK, origin, timed(length / 1024))
        record.append(Case("sdpa", FORWARD, length, None), OK, origin, timed((length / 1024) ** 2))
        record.append(Case("flex", FORWARD, length, 512), SKIPPED, origin, reason="no backward, on CPUs")
    record.append(Case("transformers", FORWARD, 1024, 512), OK, origin, timed(20.0))
    record.append(Case("transformers", FORWARD, 16384, 512), OUT_OF_MEMORY, origin, reason="needs 9 GiB")
    return folder


class Page(html.parser.HTMLParser):
    """Tags that stay open, scripts, sources, alternative texts, and the text."""

    VOID = ("meta", "img", "link", "br")

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.images, self.text = [], [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "img":
            self.images.append(dict(attrs))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def page_of(folder):
    write_report(folder)
    return Page((folder / "report.html").read_text())


def test_full_attention_stands_in_the_rows_of_every_window(tmp_path):
    table = by_provider(read(fill(tmp_path)), TIME)
    assert table.header == ("seq_len", "window", "ours-torch", "sdpa", "transformers")
    assert table.rows == (
        ("1024", "128", "1.00", "1.00 (no difference)", ""),
        ("1024", "512", "1.00", "1.00 (no difference)", "20.0 (20x)"),
        ("16384", "128", "16.0", "256 (16x)", ""),
        ("16384", "512", "16.0", "256 (16x)", "out of memory"),
    )


def test_the_markdown_says_where_the_numbers_come_from(tmp_path):
    text = as_markdown(read(fill(tmp_path)))
    assert "| 16384 | 512 | 16.0 | 256 (16x) | out of memory |" in text
    assert "All: batch 1, heads 12, head_dim 64, float32, num_globals 0." in text
    assert "a processor, 2 threads, torch 2.0, transformers 4. 2026-01-01, commit abc." in text
    assert "- sdpa: full attention" in text


def test_a_small_share_of_our_time_is_not_none_of_it():
    row = {"provider": "sdpa", "status": OK, "p20_ms": "1", "p50_ms": "1", "p80_ms": "1"}
    ours = {**row, "provider": "ours-torch", "p20_ms": "400", "p50_ms": "400", "p80_ms": "400"}
    assert tables._cell(row, ours, "p50_ms") == "1.00 (0.0025x)"


def test_numbers_never_have_exponents():
    assert [short(value) for value in (0.0123, 0.5, 2, 34.56, 123456.7)] == ["0.0123", "0.500", "2.00", "34.6", "123457"]


def test_the_page_is_well_formed_and_needs_nothing_from_outside(tmp_path):
    for name in ("scaling.svg", "scaling.png", "unheard_of.svg"):
        (fill(tmp_path) / name).write_text("<svg onload='alert(1)' xmlns='http://www.w3.org/2000/svg'></svg>")
    page = page_of(tmp_path)
    assert page.open == []
    assert len(page.images) == 2
    assert all(image["src"].startswith("data:image/svg+xml;base64,") for image in page.images)
    assert all(len(image["alt"]) > 20 for image in page.images)
    assert not [tag for tag, _ in page.tags if tag in ("script", "link", "iframe")]
    assert not re.search(r"(src|href)=\"(?!data:)|url\(", (tmp_path / "report.html").read_text())


def test_the_page_has_environment_command_reasons_and_notes(tmp_path):
    page = page_of(fill(tmp_path))
    for text in ("no backward, on CPUs", "needs 9 GiB", "7 of 10 cells", "usable_cores", "ignores the window", "commit abc"):
        assert text in page.text
    assert sum(tag == "caption" for tag, _ in page.tags) == sum(tag == "table" for tag, _ in page.tags) == 6


def test_hostile_texts_are_shown_and_not_obeyed(tmp_path):
    record = Record(fill(tmp_path, {**ORIGIN, "device": HOSTILE}))
    record.append(Case(HOSTILE, FORWARD, 8, 8), OK, ORIGIN, timed(1.0))
    record.append(Case("flex", FORWARD, 8, 8), ERROR, ORIGIN, reason=HOSTILE)
    page = page_of(tmp_path)
    assert not [tag for tag, _ in page.tags if tag == "script"]
    assert page.text.count('<script>alert("x")</script>') > 3
    text = (tmp_path / "report.md").read_text()
    assert "<" not in text
    assert len({line.replace("\\|", "").count("|") for line in text.splitlines() if line.startswith("|")}) == 1


def test_escaped_text_is_one_line():
    assert escaped("a\nb|c") == "a b\\|c"


@pytest.mark.parametrize("rows", ["none", "all failed"])
def test_a_folder_without_measurements_still_gives_a_report(tmp_path, rows):
    record = Record(tmp_path)
    if rows == "all failed":
        record.append(Case("flex", FORWARD, 8, 8), ERROR, ORIGIN, reason="RuntimeError: no")
    page = page_of(tmp_path)
    assert "No cell was measured." in page.text
    assert ("RuntimeError: no" in page.text) == (rows == "all failed")
    assert (tmp_path / "report.md").read_text().startswith("No cell was measured.")


def test_folders_from_before_there_was_an_environment_have_reports(tmp_path):
    (fill(tmp_path) / "environment.json").unlink()
    assert "The folder has no environment.json" in page_of(tmp_path).text


def test_a_cut_last_line_is_left_out(tmp_path):
    before = read(fill(tmp_path)).rows
    with (tmp_path / "results.csv").open("a") as file:
        file.write("ours-torch,forward,32")
    assert read(tmp_path).rows == before


@dataclasses.dataclass(frozen=True)
class NewCase:
    """A benchmark that is yet to be invented."""

    provider: str
    flavour: str


def test_unknown_kinds_of_cells_have_reports(tmp_path):
    record = Record(tmp_path, NewCase)
    record.append(NewCase("ours", "sweet"), OK, ORIGIN, timed(2.0))
    record.append(NewCase("ours", "sour"), OK, ORIGIN, timed(3.0))
    record.append(NewCase("theirs", "sour"), OK, ORIGIN, timed(30.0))
    assert "| sour | 3.00 | 30.0 (10x) |" in documents(tmp_path)["report.md"]
    assert page_of(tmp_path).open == []


def test_model_folders_also_say_what_their_rows_say(tmp_path):
    record = Record(tmp_path, ModelCase, ModelMeasurement)
    for name, time in (("ours", 1.0), ("roberta", 2.0)):
        measured = ModelMeasurement(time, time, time, 3, time, 8.0, 100.0, None)
        record.append(ModelCase(name, "forward", 4096, 512 if name == "ours" else None), OK, ORIGIN, measured)
    assert set(documents(tmp_path)) == {"report.md", "model.md"}
    assert "What the rows say" in page_of(tmp_path).text


def test_comparisons_of_the_core_survive_a_round_trip(tmp_path):
    Record(tmp_path)
    results = [core.Result("forward, against x", 91.25, 640.5, 7.5, 2.3)]
    core.save_comparisons(tmp_path, results, "float32", 7, ORIGIN)
    assert core.load_comparisons(tmp_path)[0] == results
    assert documents(tmp_path)["core.md"] == core.as_markdown(results, "float32", 7, ORIGIN)
    assert "Side by side" in page_of(tmp_path).text


def test_rows_of_older_files_become_cases_with_defaults():
    row = {"provider": "sdpa", "direction": FORWARD, "seq_len": "8", "window": ""}
    assert case_of(row, Case) == Case("sdpa", FORWARD, 8, None)


@pytest.mark.parametrize("text", [None, "a,b\n1,2\n"], ids=["no file", "foreign file"])
def test_folders_without_results_are_refused(tmp_path, text):
    if text is not None:
        (tmp_path / "results.csv").write_text(text)
    result = CliRunner().invoke(app, ["bench", "report", str(tmp_path)])
    assert result.exit_code == 2
    assert "error: folder:" in result.output
    assert not (tmp_path / "report.html").exists()
