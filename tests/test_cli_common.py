"""What the commands share: options, lists with commas, and errors of the system as one line."""

import errno
import os
import pathlib

import pytest
import typer
from typer.testing import CliRunner

from longformer_triton import cli_common
from longformer_triton.bench import core, gpu, longest, model_sweep, suites, tokenizers
from longformer_triton.bench.cases import FORWARD, Case
from longformer_triton.bench.measure import Measurement
from longformer_triton.bench.record import OK, Record
from longformer_triton.cli import app
from longformer_triton.heads import packing, pretraining

ORIGIN = {"device": "a processor", "threads": "1", "torch": "2.0", "date": "2026-01-01T00:00:00+00:00", "commit": "abc"}
# Commands that measure, without --out, and the function of theirs that writes.
MEASURING = {
    "sweep": (["sweep", "--device", "cpu"], (suites, "run_sweep")),
    "model": (["model", "--device", "cpu"], (model_sweep, "run_models")),
    "core": (["core", "--device", "cpu"], (core, "run_core")),
    "longest": (["longest", "--device", "cpu"], (longest, "run_longest")),
    "tokenizer": (["tokenizer", os.devnull, os.devnull], (tokenizers, "run_tokenizers")),
    "gpu": (["gpu"], (gpu, "run_gpu")),
}
FULL_DISK = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def bench(*arguments):
    return CliRunner().invoke(app, ["bench", *map(str, arguments)])


def assert_one_line(result, start):
    assert result.exit_code == 2, result.output
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith(f"error: {start}"), lines[0]
    assert "Traceback" not in result.output


def filled(folder):
    record = Record(folder)
    for window in (64, 128):
        for length in (256, 512, 1024):
            time = length * window / 2**16
            measured = Measurement(0.9 * time, time, 1.1 * time, 5, time, 1.0, 0.1, 1e-7)
            record.append(Case("ours-torch", FORWARD, length, window), OK, ORIGIN, measured)
    return folder


@pytest.mark.parametrize("command", ["sweep", "model", "core"])
@pytest.mark.parametrize(("inside", "reason"), [("", "File exists"), ("sub", "Not a directory")], ids=["a_file", "in_a_file"])
def test_a_file_where_a_folder_should_be_is_one_line(tmp_path, command, inside, reason):
    (tmp_path / "file").write_text("")
    out = tmp_path / "file" / inside
    result = bench(*MEASURING[command][0], "--out", out)
    assert_one_line(result, f"out: {out}: {reason}; expected a folder, or a path where nothing is yet.")


@pytest.mark.parametrize("command", MEASURING)
def test_a_folder_that_may_not_be_written_is_one_line(tmp_path, monkeypatch, command):
    def refuse(*arguments, **options):
        raise PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "results.csv"))

    arguments, place = MEASURING[command]
    monkeypatch.setattr(*place, refuse)
    result = bench(*arguments, "--out", tmp_path)
    assert_one_line(result, f"out: {tmp_path / 'results.csv'}: Permission denied; get the permission, or name another place.")


@pytest.mark.parametrize("command", MEASURING)
def test_a_full_disk_is_one_line(tmp_path, monkeypatch, command):
    def refuse(*arguments, **options):
        raise FULL_DISK

    arguments, place = MEASURING[command]
    monkeypatch.setattr(*place, refuse)
    result = bench(*arguments, "--out", tmp_path)
    assert_one_line(result, f"out: {tmp_path}: No space left on device; free some space, or name another place.")


def test_a_full_disk_is_one_line_of_pretrain_too(tmp_path, monkeypatch):
    def refuse(*arguments, **options):
        raise FULL_DISK

    monkeypatch.setattr(pretraining, "pretrain", refuse)
    result = CliRunner().invoke(app, ["pretrain", "--model", "m", "--out", str(tmp_path), "text.txt"])
    assert_one_line(result, f"out: {tmp_path}: No space left on device;")


@pytest.mark.parametrize("command", ["sweep", "model"])
def test_an_interruption_still_says_how_to_go_on(tmp_path, monkeypatch, command):
    def stop(*arguments, **options):
        raise KeyboardInterrupt

    arguments, place = MEASURING[command]
    monkeypatch.setattr(*place, stop)
    result = bench(*arguments, "--out", tmp_path)
    assert result.exit_code == 130
    assert "the same command resumes" in " ".join(result.output.split())


def test_what_plot_writes_may_be_a_folder(tmp_path):
    (filled(tmp_path) / "scaling.png").mkdir()
    assert_one_line(bench("plot", tmp_path), f"folder: {tmp_path / 'scaling.png'}: Is a directory; expected a file there")


@pytest.mark.parametrize("command", ["plot", "report", "roofline", "compare"])
def test_results_that_are_a_folder_are_one_line(tmp_path, command):
    (tmp_path / "results.csv").mkdir()
    arguments, name = ([tmp_path, tmp_path], "first") if command == "compare" else ([tmp_path], "folder")
    assert_one_line(bench(command, *arguments), f"{name}: {tmp_path / 'results.csv'}: Is a directory;")


def test_the_second_of_two_folders_has_its_own_name(tmp_path):
    (tmp_path / "second" / "results.csv").mkdir(parents=True)
    result = bench("compare", filled(tmp_path / "first"), tmp_path / "second")
    assert_one_line(result, f"second: {tmp_path / 'second' / 'results.csv'}: Is a directory;")


def test_a_page_that_cannot_be_written_is_one_line(tmp_path):
    (filled(tmp_path) / "report.html").mkdir()
    assert_one_line(bench("report", "--no-draw", tmp_path), f"folder: {tmp_path / 'report.html'}: Is a directory;")


@pytest.mark.parametrize(("name", "reason"), [("", "Is a directory"), ("none.md", "No such file or directory")])
def test_a_document_that_cannot_be_read_is_one_line(tmp_path, name, reason):
    assert_one_line(bench("readme", tmp_path / name), f"document: {tmp_path / name}: {reason}; ")


def test_a_document_that_cannot_be_written_is_one_line(tmp_path, monkeypatch):
    def refuse(path, text):
        raise FULL_DISK

    (tmp_path / "a.md").write_text("<!-- b.md: begin -->\n<!-- b.md: end -->\n")
    (tmp_path / "b.md").write_text("new\n")
    monkeypatch.setattr(pathlib.Path, "write_text", refuse)
    result = bench("readme", tmp_path / "a.md", "--results", tmp_path)
    assert_one_line(result, f"document: {tmp_path / 'a.md'}: No space left on device;")


def test_a_table_of_configurations_that_is_a_folder_is_one_line(tmp_path):
    assert_one_line(bench("tune", "--architecture", "sm_90", "--save", tmp_path), f"save: {tmp_path}: Is a directory;")


def test_texts_to_tokenize_that_are_not_there_are_one_line(tmp_path):
    result = bench("tokenizer", tmp_path, tmp_path.parent / "none.txt", "--out", tmp_path / "out")
    assert_one_line(result, f"{tmp_path.parent / 'none.txt'}: No such file or directory; check how it is written.")


@pytest.mark.parametrize("error", [OSError("no more processes"), OSError(errno.ENOMEM, "Cannot allocate memory")], ids=str)
def test_an_error_that_is_about_no_file_names_no_place(tmp_path, capsys, error):
    with pytest.raises(typer.Exit), cli_common.in_one_line(out=tmp_path):
        raise error
    assert capsys.readouterr().err == f"error: {error}\n"


def test_a_closed_pipe_is_left_to_click(tmp_path):
    with pytest.raises(BrokenPipeError), cli_common.in_one_line(out=tmp_path):
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")


@pytest.mark.parametrize(
    ("text", "expected"),
    [("1k,4K", (1024, 4096)), ("1k, 4k ,8", (1024, 4096, 8)), (" 512", (512,))],
    ids=["either_k", "spaces", "one"],
)
def test_numbers_with_commas(text, expected):
    assert cli_common.numbers("--lengths", text) == expected


@pytest.mark.parametrize("text", ["", "k", "1m", "1,,2", "1.5k"])
def test_other_numbers_are_refused_by_name(text):
    with pytest.raises(typer.BadParameter, match="expected whole numbers separated by commas") as caught:
        cli_common.numbers("--lengths", text)
    assert caught.value.param_hint == "--lengths"


def test_spaces_around_the_commas_of_providers_and_lengths(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(suites, "run_sweep", lambda plans, folder, console: asked.extend(plans) or True)
    result = bench(
        *("sweep", "--device", "cpu", "--out", filled(tmp_path)),
        *("--providers", "ours-torch, sdpa", "--lengths", "256, 1K", "--windows", "64 ,128"),
    )
    assert result.exit_code == 0, result.output
    assert [(plan.providers, plan.lengths, plan.windows) for plan in asked] == [
        (("ours-torch", "sdpa"), (256, 1024), (64, 128))
    ]


def test_files_have_the_same_formats_for_all_commands():
    assert cli_common._FORMATS == packing._FORMS


def test_spaces_around_the_commas_of_architectures():
    result = bench("inspect", "--architecture", "sm_90, sm_1")
    assert result.exit_code == 2
    assert "got sm_1, expected sm_80" in " ".join(result.output.replace("│", " ").split())


@pytest.mark.parametrize("command", ["sweep", "core", "model", "roofline"])
def test_more_threads_than_cpus_are_refused_by_name(tmp_path, monkeypatch, command):
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    where = [tmp_path] if command == "roofline" else ["--out", tmp_path / "out"]
    result = bench(command, *where, "--threads", 4)
    assert_one_line(result, "--threads: got 4, expected at most 3, the CPUs of this machine.")
    assert not list(tmp_path.iterdir())


def test_as_many_threads_as_cpus_are_taken(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    monkeypatch.setattr(core, "run_core", lambda *arguments, **options: asked.append(options["threads"]) or [])
    assert bench("core", "--device", "cpu", "--out", tmp_path, "--threads", 3).exit_code == 0
    assert asked == [3]
