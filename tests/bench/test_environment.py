"""What a run ran in: one session a command, resumed runs merged, nothing that names a user or a folder of the machine."""

import json
import pathlib

import pytest

from longformer_triton.bench import environment
from longformer_triton.bench.cases import FORWARD, Case
from longformer_triton.bench.measure import Measurement
from longformer_triton.bench.record import OK, Record

ORIGIN = {"device": "a processor", "threads": "2", "torch": "2.0", "commit": "abc1234", "date": "2026-01-01T00:00:00+00:00"}


def append(folder, origin, length=8):
    Record(folder).append(Case("sdpa", FORWARD, length, None), OK, origin, Measurement(1, 1, 1, 3, 1, 1, 1, 0))


def sessions(folder):
    return json.loads((folder / "environment.json").read_text())["sessions"]


def test_the_first_row_brings_the_environment(tmp_path):
    Record(tmp_path)
    assert not (tmp_path / "environment.json").exists()
    append(tmp_path, ORIGIN)
    (session,) = sessions(tmp_path)
    assert session["commit"] == "abc1234"
    assert session["uncommitted_changes"] is False
    assert session["cpu"]["usable_cores"] >= 1
    assert session["versions"]["torch"]
    assert session["torch_build"]["libraries"]


def test_a_run_resumed_under_another_commit_adds_a_session(tmp_path):
    append(tmp_path, ORIGIN)
    append(tmp_path, {**ORIGIN, "commit": "def5678+", "date": "2026-01-02"}, length=16)
    assert [(session["commit"], session["uncommitted_changes"]) for session in sessions(tmp_path)] == [
        ("abc1234", False), ("def5678", True),
    ]  # fmt: skip


def test_a_run_resumed_in_the_same_environment_adds_its_date(tmp_path):
    append(tmp_path, ORIGIN)
    append(tmp_path, {**ORIGIN, "date": "2026-01-02"}, length=16)
    (session,) = sessions(tmp_path)
    assert session["dates"] == ["2026-01-01T00:00:00+00:00", "2026-01-02"]


@pytest.mark.parametrize("text", ["{", "[]", '{"sessions": 3}', '{"sessions": [3]}', '{"other": []}'])
def test_a_foreign_file_is_refused_before_anything_is_written(tmp_path, text):
    (tmp_path / "environment.json").write_text(text)
    with pytest.raises(ValueError, match="no list of sessions"):
        Record(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["environment.json"]
    assert (tmp_path / "environment.json").read_text() == text


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["/opt/venv/bin/longformer-triton", "bench", "sweep"], "longformer-triton bench sweep"),
        (["/opt/package/cli.py", "bench"], "longformer-triton bench"),
        (["longformer-triton", "--out", "results/long"], "longformer-triton --out results/long"),
        (["longformer-triton", "--out", "/data/someone/my results"], "longformer-triton --out 'my results'"),
        (["longformer-triton", "--out=/data/someone/results"], "longformer-triton --out=results"),
        (["longformer-triton", "--out", "../../someone/results"], "longformer-triton --out results"),
        (["longformer-triton", "--lengths", "1k,4k"], "longformer-triton --lengths 1k,4k"),
    ],
)
def test_command_lines_lose_the_folders_of_the_machine(arguments, line):
    assert environment.command_line(arguments) == line


def test_a_home_directory_does_not_give_its_user_away(monkeypatch):
    monkeypatch.setattr(pathlib.Path, "home", lambda: pathlib.Path("/home/someone"))
    assert environment.command_line(["x", "--out", "/home/someone"]) == "x --out '~'"
    assert environment.without_folders("/home/someone:/home/someone/lib") == "~:lib"


def test_variables_are_those_that_matter():
    found = environment.variables(
        {
            "OMP_NUM_THREADS": "2",
            "MALLOC_ARENA_MAX": "1",
            "TRITON_CACHE_DIR": "/home/someone/cache",
            "LD_PRELOAD": "/usr/lib/libjemalloc.so.2",
            "TRITON_API_KEY": "hidden",
            "HOME": "/home/someone",
            "HOSTNAME": "machine",
        }
    )
    assert found == {
        "LD_PRELOAD": "libjemalloc.so.2", "MALLOC_ARENA_MAX": "1", "OMP_NUM_THREADS": "2", "TRITON_CACHE_DIR": "cache",
    }  # fmt: skip


def test_the_file_names_neither_host_nor_home(tmp_path):
    import platform

    append(tmp_path, ORIGIN)
    text = (tmp_path / "environment.json").read_text()
    assert str(pathlib.Path.home()) not in text.replace('"/', '"')
    assert len(platform.node()) < 3 or platform.node() not in text
