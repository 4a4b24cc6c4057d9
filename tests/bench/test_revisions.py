"""Two git revisions: a small repository, its worktrees, and that they are gone whatever happens."""

import pathlib
import shutil
import subprocess
import tempfile

import pytest
from typer.testing import CliRunner

from longformer_triton.bench import revisions
from longformer_triton.bench.cases import FORWARD, Case
from longformer_triton.bench.measure import Measurement
from longformer_triton.bench.record import OK, Record
from longformer_triton.cli import app

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
# A package whose benchmark writes down its own version.
CLI = """
import pathlib, sys
version = {version}
if __name__ == "__main__":
    folder = pathlib.Path(sys.argv[sys.argv.index("--out") + 1])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "said").write_text(f"{{version}} {{' '.join(sys.argv[1:-2])}}")
    sys.exit({status})
"""


def git(root, *arguments):
    identity = ["-c", "user.name=nobody", "-c", "user.email=nobody@example.org", "-c", "commit.gpgsign=false"]
    return subprocess.run(["git", *identity, *arguments], cwd=root, check=True, capture_output=True, text=True).stdout


def commit(root, version, status=0):
    (root / "__init__.py").write_text("")
    (root / "cli.py").write_text(CLI.format(version=version, status=status))
    git(root, "add", ".")
    git(root, "commit", "-m", f"version {version}")
    git(root, "tag", f"v{version}")


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A repository whose root is the package, with two tags; temporary files go beside it, where a test can look for them."""
    root, scratch = tmp_path / "repository", tmp_path / "scratch"
    root.mkdir()
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    git(root, "init", "--quiet")
    commit(root, 1)
    commit(root, 2)
    return root


def assert_nothing_is_left(root):
    assert len(git(root, "worktree", "list").splitlines()) == 1
    assert list((root.parent / "scratch").iterdir()) == []
    assert git(root, "status", "--porcelain") == ""


def test_each_revision_runs_its_own_code_and_leaves_nothing_behind(root, tmp_path):
    announced = []
    measured = revisions.measure_revisions(
        "v1", "v2", ["sweep", "--quick"], tmp_path / "out", root=root, announce=announced.append
    )
    said = [(folder / "said").read_text() for folder in (measured.first, measured.second, measured.again)]
    assert said == [f"{version} bench sweep --quick" for version in (1, 2, 1)]
    assert len(announced) == 3
    assert_nothing_is_left(root)


def test_the_first_runs_once_where_drift_is_not_asked_for(root, tmp_path):
    measured = revisions.measure_revisions("v1", "v2", ["sweep"], tmp_path / "out", again=False, root=root)
    assert measured.again is None
    assert len(list((tmp_path / "out").iterdir())) == 2


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_worktrees_go_when_a_run_is_interrupted(root, tmp_path, error):
    def run(folder: pathlib.Path, arguments):
        assert (folder / "longformer_triton" / "cli.py").exists()
        assert len(git(root, "worktree", "list").splitlines()) == 3
        (folder / "longformer_triton" / "compiled").write_text("a file of its own")
        raise error

    with pytest.raises(error):
        revisions.measure_revisions("v1", "v2", [], tmp_path / "out", root=root, run=run)
    assert_nothing_is_left(root)


def test_a_run_that_was_stopped_stops_all(root, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        revisions.measure_revisions("v1", "v2", [], tmp_path / "out", root=root, run=lambda folder, arguments: 130)
    assert_nothing_is_left(root)


def test_a_failed_run_is_an_error_that_names_the_commit(root, tmp_path):
    commit(root, 3, status=2)
    with pytest.raises(ValueError, match=r"ended with exit status 2; perhaps"):
        revisions.measure_revisions("v1", "v3", ["sweep"], tmp_path / "out", root=root)
    assert_nothing_is_left(root)


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ("v1", "v9", "--revisions: got v9, expected a commit, a branch or a tag of this checkout"),
        ("v1", "v1", "same commit"),
        ("--help", "v1", "expected a commit"),
    ],
)
def test_revisions_that_cannot_be_compared_are_refused(root, tmp_path, first, second, message):
    with pytest.raises(ValueError, match=message):
        revisions.measure_revisions(first, second, [], tmp_path / "out", root=root)
    assert not (tmp_path / "out").exists()
    assert_nothing_is_left(root)


def test_a_python_that_finds_another_copy_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "")
    with pytest.raises(ValueError, match="elsewhere"):
        revisions.run_cli(tmp_path, [])


def test_the_command_compares_what_was_measured(tmp_path, monkeypatch):
    def measure(first, second, arguments, out, **options):
        assert arguments == ["sweep", "--quick", "--providers", "ours-torch"]
        folders = [tmp_path / name for name in ("first", "second", "again")]
        for folder, time in zip(folders, (1.0, 2.0, 1.0), strict=True):
            measured = Measurement(time, time, time, 3, time, 1.0, 0.1, 0.0)
            Record(folder).append(Case("ours-torch", FORWARD, 8, 8), OK, {"device": "a processor", "date": ""}, measured)
        return revisions.Measured(*folders)

    monkeypatch.setattr(revisions, "measure_revisions", measure)
    result = CliRunner().invoke(app, ["bench", "compare", "--revisions", "a", "b", "--options", "--providers ours-torch"])
    assert result.exit_code == 0, result.output
    assert "2.000 (2.000 to 2.000)" in result.output
    assert "The first against itself, before and after the second: 1 cell, second" in result.output


def test_options_that_no_shell_would_take_are_refused_by_name():
    result = CliRunner().invoke(app, ["bench", "compare", "--revisions", "a", "b", "--options", "'x"])
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith('error: --options: got "\'x", expected options of `bench sweep`')
    assert len(result.stderr.splitlines()) == 1


def test_a_folder_that_cannot_be_made_is_refused_before_anything_is_checked_out(root, tmp_path, monkeypatch):
    monkeypatch.setattr(revisions, "repository", lambda: root)
    (tmp_path / "file").write_text("")
    result = CliRunner().invoke(app, ["bench", "compare", "--revisions", "v1", "v2", "--out", str(tmp_path / "file")])
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(f"error: out: {tmp_path / 'file'}: File exists; expected a folder")
    assert_nothing_is_left(root)
