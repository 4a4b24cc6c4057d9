"""The side-by-side comparison of the core: what it refuses, what it says of itself, and the singular of its threads."""

import pytest
from typer.testing import CliRunner

from longformer_triton.bench import core
from longformer_triton.cli import app


def run(*arguments, **options):
    return CliRunner().invoke(app, ["bench", *map(str, arguments)], env={"COLUMNS": "150"}, **options)


@pytest.mark.parametrize("dtype", ["int3", "float64"])
def test_other_dtypes_are_refused_before_anything_is_written(tmp_path, dtype):
    result = run("core", "--device", "cpu", "--dtype", dtype, "--out", tmp_path / "out")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == f"error: dtype: got {dtype}, expected one of float32, bfloat16, float16.\n"
    assert not list(tmp_path.iterdir())


def test_the_longest_text_has_a_dtype_that_there_is(tmp_path):
    result = run("longest", "--device", "cpu", "--dtype", "int3", "--out", tmp_path / "out")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("error: dtype: got int3, expected one of float32")
    assert not list(tmp_path.iterdir())


def test_the_help_promises_a_resumption_only_where_there_is_one():
    resumes = {command: "a rerun resumes there" in help_of(command) for command in ("sweep", "model", "longest")}
    assert all(resumes.values()), resumes
    for command in ("core", "tokenizer"):
        assert "resumes" not in help_of(command)
        assert "a rerun measures all" in help_of(command)


def help_of(command):
    return " ".join(run(command, "--help").stdout.replace("│", " ").split())


@pytest.mark.parametrize(("threads", "told"), [("1", ", 1 thread, torch"), ("2", ", 2 threads, torch"), ("", "cpu, torch")])
def test_threads_are_counted_in_words(threads, told):
    origin = {"device": "cpu", "threads": threads, "torch": "2", "transformers": "4", "date": "2026-01-01", "commit": "abc"}
    assert told in core.as_markdown([core.Result("forward", 1.0, 2.0, 2.0, 3.0)], "float32", 7, origin)
