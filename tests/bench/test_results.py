"""Results on disk: the record, the pictures, the comparison, the command line."""

import filelock
import numpy as np
import pytest
from typer.testing import CliRunner

from longformer_triton.bench.cases import FORWARD, TRAINING, Case
from longformer_triton.bench.folder import read
from longformer_triton.bench.measure import Measurement
from longformer_triton.bench.plot import draw_all, fitted_exponent, load
from longformer_triton.bench.record import DIED, ERROR, OK, OUT_OF_MEMORY, SKIPPED, WRONG, Record
from longformer_triton.cli import app

ORIGIN = {"device": "a processor", "threads": "2", "torch": "2.0", "date": "2026-01-01T00:00:00+00:00"}


def fill(folder, factor=1.0):
    """A made-up sweep with exact laws: ours takes N * window / 1024 microseconds, full attention N^2 / 1024."""
    record = Record(folder)
    for direction, share in ((FORWARD, 1.0), (TRAINING, 3.0)):
        for length in (1024, 2048, 4096, 8192):
            cells = [(Case("ours-torch", direction, length, window), length * window) for window in (128, 512)]
            cells.append((Case("sdpa", direction, length, None), length * length))
            for case, work in cells:
                time = share * factor * work / 2**20
                record.append(case, OK, ORIGIN, Measurement(0.9 * time, time, 1.1 * time, 5, time, length / 64, 0.1, 1e-7))
    record.append(Case("flex", TRAINING, 1024, 512), SKIPPED, ORIGIN, reason="no backward, on CPUs")
    return record


def test_rows_survive_a_round_trip(tmp_path):
    record = fill(tmp_path)
    rows = record.rows()
    assert len(rows) == 25
    assert rows[-1]["reason"] == "no backward, on CPUs"
    assert Case("sdpa", FORWARD, 1024, None) in record.finished()
    assert Case("flex", TRAINING, 1024, 512) not in record.finished()


def test_the_last_row_of_a_cell_counts(tmp_path):
    record, case = Record(tmp_path), Case("sdpa", FORWARD, 8, None)
    record.append(case, SKIPPED, ORIGIN, reason="memory")
    record.append(case, OK, ORIGIN, Measurement(1, 1, 1, 3, 1, 1, 1, 0))
    assert [row["status"] for row in record.rows()] == [OK]


def test_a_line_that_a_crash_cut_short_is_dropped(tmp_path):
    record = fill(tmp_path)
    with record.path.open("a") as file:
        file.write("ours-torch,forward,32768,5")
    assert len(Record(tmp_path).rows()) == 25


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda lines: [*lines[:3], lines[3][:40], *lines[4:]], r"line 4: got \d+ fields, expected \d+"),
        (lambda lines: [*lines[:3], lines[3].replace(",ok,,", ",ok,,fast", 1), *lines[4:]], "line 4: got 'fast.*' as p20_ms"),
        (lambda lines: [*lines[:3], lines[3].replace("1024", "1k24", 1), *lines[4:]], "got '1k24' as seq_len"),
        (lambda lines: [], "is empty"),
    ],
    ids=["cut_in_the_middle", "no_number", "no_length", "empty"],
)
def test_damage_is_told_by_its_line(tmp_path, damage, message):
    path = fill(tmp_path).path
    path.write_text("".join(f"{line}\n" for line in damage(path.read_text().splitlines())))
    if message != "is empty":
        with pytest.raises(ValueError, match=message):
            Record(tmp_path).finished()
    if "seq_len" not in message:
        with pytest.raises(ValueError, match=message):
            read(tmp_path)
        with pytest.raises(ValueError, match=message):
            load(tmp_path)


def test_a_file_that_is_no_text_is_refused(tmp_path):
    (tmp_path / "results.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"results\.csv is no text"):
        read(tmp_path)


def test_an_empty_file_is_begun_anew(tmp_path):
    (tmp_path / "results.csv").touch()
    assert Record(tmp_path).rows() == []


@pytest.mark.parametrize("status", [OUT_OF_MEMORY, DIED, WRONG, ERROR])
def test_failed_cells_are_left_alone_unless_they_are_to_be_tried_again(tmp_path, status):
    record, case = Record(tmp_path), Case("sdpa", FORWARD, 8, None)
    record.append(case, status, ORIGIN, reason="why")
    assert case in record.finished()
    assert case not in record.finished(retry=True)


def test_one_run_at_a_time_writes_to_a_folder(tmp_path):
    record = Record(tmp_path)
    with record.alone(), pytest.raises(ValueError, match="out: another run is writing to"), Record(tmp_path).alone():
        pass
    with Record(tmp_path).alone():
        assert record.rows() == []


def test_a_file_system_without_locks_keeps_nobody_out(tmp_path, monkeypatch):
    def refuse(self, *args, **options):
        raise NotImplementedError("no flock here")

    monkeypatch.setattr(filelock.FileLock, "acquire", refuse)
    with Record(tmp_path).alone(), Record(tmp_path).alone():
        pass


def test_a_foreign_file_is_refused(tmp_path):
    (tmp_path / "results.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="other columns"):
        Record(tmp_path)
    assert (tmp_path / "results.csv").read_text() == "a,b\n1,2\n"


@pytest.mark.parametrize("power", [1.0, 2.0])
def test_the_exponent_of_an_exact_law(power):
    lengths = np.array([512.0, 1024, 2048, 4096, 8192])
    assert fitted_exponent(lengths, 3 * lengths**power) == pytest.approx(power)


def test_two_points_have_no_exponent():
    assert fitted_exponent(np.array([1.0, 2.0]), np.array([1.0, 2.0])) is None


def test_pictures_come_from_the_csv_alone(tmp_path):
    fill(tmp_path)
    names = [path.name for path in draw_all(tmp_path)]
    assert names == [f"{name}.{suffix}" for name in ("scaling", "windows", "speedup") for suffix in ("png", "svg")]
    assert all((tmp_path / name).stat().st_size > 5000 for name in names)
    text = (tmp_path / "scaling.svg").read_text()
    assert "svg" in text


def test_skipped_cells_are_not_drawn(tmp_path):
    fill(tmp_path)
    assert set(load(tmp_path)["provider"]) == {"ours-torch", "sdpa"}


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_command_plot_draws_again(tmp_path):
    fill(tmp_path)
    result = run("bench", "plot", tmp_path)
    assert result.exit_code == 0, result.output
    assert "scaling.png" in result.output


def test_command_compare_prints_ratios(tmp_path):
    fill(tmp_path / "a")
    fill(tmp_path / "b", factor=2.0)
    result = run("bench", "compare", tmp_path / "a", tmp_path / "b")
    assert result.exit_code == 0, result.output
    assert "2.000" in result.output


def test_command_sweep_runs_end_to_end(tmp_path):
    result = run(
        *("bench", "sweep", "--out", tmp_path, "--lengths", "32,64,128", "--windows", "8,16", "--providers", "ours-torch,sdpa"),
        *("--heads", 1, "--head-dim", 4, "--cell-seconds", 0, "--device", "cpu", "--threads", 1),
    )
    assert result.exit_code == 0, result.output
    header, *lines = (tmp_path / "results.csv").read_text().splitlines()
    assert header == ",".join(Record(tmp_path).columns)
    assert len(lines) == 3 * 2 * (2 + 1)
    assert (tmp_path / "speedup.png").exists()


@pytest.mark.parametrize("command", ["sweep", "model"])
def test_a_limit_that_comes_before_the_first_cell_is_no_failure(tmp_path, command):
    result = run("bench", command, "--out", tmp_path, "--lengths", "32", "--time-limit", 0, "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert "Nothing is measured yet" in result.output
    assert not list(tmp_path.glob("*.png"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("bench", "plot", "nowhere"), "does not exist"),
        (("bench", "compare", "nowhere", "nowhere"), "does not exist"),
        (("bench", "sweep", "--lengths", "1k,many"), "whole numbers"),
        (("bench", "sweep", "--providers", "nobody"), "expected some of"),
    ],
    ids=["plot_missing", "compare_missing", "bad_lengths", "unknown_provider"],
)
def test_bad_input_ends_with_a_sentence_and_status_two(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    result = run(*arguments)
    assert result.exit_code == 2
    assert message in result.output
    assert "Traceback" not in result.output
