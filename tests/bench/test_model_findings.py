"""Findings of folders that several runs filled, or that hold several sizes of models."""

import pathlib

import pytest

from longformer_triton.bench.folder import read
from longformer_triton.bench.model_cells import DIRECTIONS, FORWARD, FULL, OURS, PATCHED, PEER, ModelCase, ModelMeasurement
from longformer_triton.bench.model_findings import as_markdown, crossover, findings, load_models, one_size
from longformer_triton.bench.model_plot import draw_and_describe, draw_models
from longformer_triton.bench.record import OK, Record
from longformer_triton.bench.report import as_markdown as report
from longformer_triton.bench.report import documents

LENGTHS = (512, 1024, 2048, 4096)
FASTER = "4096 tokens: transformers Longformer, patched: faster than unpatched"
SMALLER = "4096 tokens: transformers Longformer, patched: memory unpatched, over patched"
GROWTH = "ours: peak memory grows as length to the power of"
FROM = "faster than transformers RoBERTa, SDPA, from"
RECORDED = pathlib.Path(__file__).parents[2] / "bench" / "results" / "cpu-model"


def origin(commit="abc", date="2026-01-01T00:00:00+00:00"):
    return {"device": "a processor", "threads": "2", "torch": "2.10", "transformers": "4", "commit": commit, "date": date}


FIRST, LATER = origin(), origin("0012", "2026-01-02T00:00:00+00:00")


def fill(folder, came_from=FIRST, providers=(OURS, PEER, PATCHED, FULL), lengths=LENGTHS, window=512, **sizes):
    """Made-up rows: ours N milliseconds and MiB, transformers 3 N, patched 2 N, full attention N^2 / 1024."""
    record = Record(folder, ModelCase, ModelMeasurement)
    for direction in DIRECTIONS:
        for length in lengths:
            laws = {OURS: length, PEER: 3 * length, PATCHED: 2 * length, FULL: length**2 / 1024}
            for name in providers:
                case = ModelCase(name, direction, length, None if name == FULL else window, **sizes)
                value = laws[name] * sizes.get("layers", 12)
                record.append(case, OK, came_from, ModelMeasurement(value, value, value, 3, value, value, 1e3, None))


def found(folder):
    return {finding.what: finding.values.get(FORWARD) for finding in findings(load_models(folder))}


def test_a_damaged_line_is_named(tmp_path):
    (tmp_path / "results.csv").write_text("provider,status,reason,p50_ms,device,date\nours,ok,,1.0,cpu,today\nours,ok\n")
    with pytest.raises(ValueError, match="line 3: got 2 fields, expected 6"):
        load_models(tmp_path)


def test_a_ratio_of_times_is_of_one_run_and_one_of_memory_is_marked(tmp_path):
    fill(tmp_path, providers=(OURS, PEER, FULL))
    fill(tmp_path, LATER, providers=(PATCHED,))
    values = found(tmp_path)
    assert (values[FASTER], values[SMALLER]) == ("two runs", "1.50x (two runs)")
    assert values["4096 tokens: faster than transformers Longformer"] == "3.00x"
    assert values[GROWTH] == "1.00"


@pytest.mark.parametrize(
    "other",
    [origin("def"), origin(date="2026-01-01T00:00:01+00:00"), origin() | {"device": "another"}],
    ids=["commit", "date", "device"],
)
def test_what_tells_runs_apart(other, tmp_path):
    fill(tmp_path, providers=(PEER,))
    fill(tmp_path, other, providers=(PATCHED,))
    assert found(tmp_path)[FASTER] == "two runs"


def test_growth_over_lengths_of_several_runs_is_marked(tmp_path):
    fill(tmp_path, lengths=LENGTHS[:2])
    fill(tmp_path, LATER, lengths=LENGTHS[2:])
    values = found(tmp_path)
    assert (values[GROWTH], values[FROM], values[FASTER]) == ("1.00 (several runs)", "1024 tokens", "1.50x")


def test_a_crossover_counts_lengths_that_one_run_measured(tmp_path):
    fill(tmp_path, lengths=(512, 4096))
    fill(tmp_path, providers=(OURS,), lengths=(1024, 2048))
    fill(tmp_path, LATER, providers=(FULL,), lengths=(1024, 2048))
    frame = load_models(tmp_path)
    frame.loc[(frame["provider"] == OURS) & frame["seq_len"].isin((1024, 2048)), "p50_ms"] *= 1e3
    assert crossover(frame, FORWARD, "p50_ms") == pytest.approx(1024)


def test_where_no_run_measured_both_no_crossover_is_claimed(tmp_path):
    fill(tmp_path, providers=(OURS,))
    fill(tmp_path, LATER, providers=(FULL,))
    assert found(tmp_path)[FROM] == "two runs"


def test_every_commit_and_day_is_named_as_it_was_written(tmp_path):
    fill(tmp_path, providers=(OURS, PEER, FULL))
    assert "several runs" not in as_markdown(load_models(tmp_path))
    fill(tmp_path, LATER, providers=(PATCHED,))
    text = as_markdown(load_models(tmp_path))
    assert "2026-01-01 to 2026-01-02, 2 runs, commit abc and 0012." in text
    assert "a processor, 2 threads, torch 2.10, transformers 4." in text
    assert "The rows are of several runs." in text
    assert "2026-01-01 to 2026-01-02, 2 runs, commit abc and 0012." in report(read(tmp_path))


def test_versions_of_digits_alone_stay_text(tmp_path):
    fill(tmp_path, LATER)
    assert "torch 2.10, transformers 4.\n2026-01-02, commit 0012." in as_markdown(load_models(tmp_path))


def test_the_table_of_times_marks_a_cell_of_another_run(tmp_path):
    fill(tmp_path, providers=(OURS, PEER), lengths=(4096,))
    assert "another run" not in report(read(tmp_path))
    fill(tmp_path, LATER, providers=(PATCHED,), lengths=(4096,))
    assert report(read(tmp_path)).count("(3.00x) | 98304 (2.00x, another run) |") == 4


def test_what_is_recorded_names_every_commit():
    text = (RECORDED / "model.md").read_text()
    assert all(row["commit"] in text for row in read(RECORDED).measured)


@pytest.mark.parametrize("first", [{"layers": 1}, {"window": 256}, {"heads": 2, "dtype": "bfloat16"}], ids=str)
@pytest.mark.parametrize("then", [{"layers": 2}, {"window": 128}, {"batch": 3, "window": 64}], ids=str)
def test_one_size_is_shown_and_named(first, then, tmp_path):
    fill(tmp_path, **first, lengths=(512,))
    fill(tmp_path, **then, lengths=(512,))
    shown = one_size(load_models(tmp_path))
    cells = shown[["provider", "direction", "seq_len"]]
    assert not cells.duplicated().any()
    assert set(shown["provider"]) == {OURS, PEER, PATCHED, FULL}
    assert findings(load_models(tmp_path))[0].what.startswith("of several sizes, this one: ")
    assert len(shown) < len(load_models(tmp_path))


def test_a_size_that_is_usual_is_shown_before_the_last(tmp_path):
    fill(tmp_path, layers=12)
    fill(tmp_path, layers=1)
    assert "Text classifier of 12 layers" in as_markdown(load_models(tmp_path))


def test_without_the_usual_size_the_one_measured_last_is_shown(tmp_path):
    fill(tmp_path, layers=2, window=128)
    fill(tmp_path, LATER, layers=1, window=64)
    text = as_markdown(load_models(tmp_path))
    assert "Text classifier of 1 layers, 12 heads, head_dim 64, batch 1, float32, attention_window 64," in text
    assert "2026-01-02, commit 0012." in text


def test_full_attention_of_another_size_is_not_all_that_is_left(tmp_path):
    fill(tmp_path, layers=1, window=512)
    fill(tmp_path, layers=12, window=256)
    assert "12 layers" in as_markdown(load_models(tmp_path))
    assert set(one_size(load_models(tmp_path))["provider"]) == {OURS, PEER, PATCHED, FULL}


def test_full_attention_alone_has_no_window(tmp_path):
    fill(tmp_path, providers=(FULL,))
    assert "float32, the first token global" in as_markdown(load_models(tmp_path))


def test_pictures_and_reports_of_two_sizes(tmp_path):
    fill(tmp_path, layers=1, window=256)
    fill(tmp_path, LATER, layers=2, window=128)
    draw_and_describe(tmp_path)
    figure = draw_models(load_models(tmp_path))
    texts = " ".join(text.get_text() for text in figure.texts)
    assert "2 layers, 12 heads, head_dim 64, batch 1, float32, attention_window 128" in texts
    assert len(figure.axes[0].lines) == 4
    assert all(len(line.get_xdata()) == len(LENGTHS) for line in figure.axes[0].lines)
    assert set(documents(tmp_path)) == {"report.md", "model.md"}
