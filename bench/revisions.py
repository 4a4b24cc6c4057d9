"""The same benchmark on two git revisions of this package, each from a temporary checkout.

The repository's root is the package, so a worktree in a folder of its own, called ``longformer_triton``, is all that an
interpreter needs to find on its path; nothing is installed. Each revision runs its own benchmark code. They run one after the
other, so a machine that drifts favours one of them: the first runs again after the second, and what it then differs from itself
is what a reader should not believe of the second.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence

PACKAGE = "longformer_triton"
# Runs a revision's benchmark: (folder that holds the package, arguments after `longformer-triton bench`) -> exit status.
Runner = Callable[[pathlib.Path, Sequence[str]], int]
# The exit status of a command that Ctrl-C stopped, and how long it may take to stop.
_INTERRUPTED, _GRACE_SECONDS = 130, 20


def repository() -> pathlib.Path:
    """The root of the checkout that runs.

    Raises:
        ValueError: the package is installed from a wheel, or git is missing.
    """
    root = pathlib.Path(__file__).resolve().parent.parent
    if _git(root, "rev-parse", "--show-prefix").strip():
        raise ValueError(f"--revisions: the package lies inside another repository, {root.name}; run it from its own checkout.")
    return root


class _GitError(ValueError):
    """Git refused, and said why."""


def _git(root: pathlib.Path, *arguments: str) -> str:
    try:
        # In a session of its own: Ctrl-C in a terminal reaches us, who clean up, and not git in the middle of its work.
        done = subprocess.run(
            ["git", *arguments], cwd=root, capture_output=True, text=True, check=True, start_new_session=True
        )  # fmt: skip
    except FileNotFoundError:
        raise ValueError("--revisions: git is not installed, expected it to check the revisions out.") from None
    except subprocess.CalledProcessError as error:
        raise _GitError(f"--revisions: git {arguments[0]} failed: {error.stderr.strip()}") from None
    return done.stdout


def resolve(root: pathlib.Path, revision: str) -> str:
    """The abbreviated commit that a revision names.

    Raises:
        ValueError: it names none, or several.
    """
    if revision.startswith("-"):
        raise ValueError(f"--revisions: got {revision}, expected a commit, a branch or a tag.")
    try:
        return _git(root, "rev-parse", "--verify", "--short", f"{revision}^{{commit}}").strip()
    except _GitError:
        raise ValueError(
            f"--revisions: got {revision}, expected a commit, a branch or a tag of this checkout, and of one commit alone; "
            "`git log --oneline --all` lists them."
        ) from None


@contextlib.contextmanager
def worktree(root: pathlib.Path, commit: str) -> Iterator[pathlib.Path]:
    """A folder that holds the package as of ``commit``; gone afterwards, whatever happens, and forgotten by git."""
    # Among the system's temporary files, so that no interpreter finds the checkout of today beside it.
    folder = pathlib.Path(tempfile.mkdtemp(prefix="longformer-revision-"))
    try:
        _git(root, "worktree", "add", "--detach", str(folder / PACKAGE), commit)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        _forget(root, folder / PACKAGE)


def _forget(root: pathlib.Path, place: pathlib.Path) -> None:
    """Make git forget a worktree whose folder is gone, and no other one."""
    # Forced twice: git locks a worktree while it makes it, and an interruption leaves the lock.
    with contextlib.suppress(ValueError):
        _git(root, "worktree", "remove", "--force", "--force", str(place))


def run_cli(folder: pathlib.Path, arguments: Sequence[str]) -> int:
    """``longformer-triton bench ...`` of the package in ``folder``; returns the exit status.

    Raises:
        ValueError: an interpreter finds another copy of the package first.
    """
    path = os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "PYTHONPATH": path}
    where = [sys.executable, "-c", f"import {PACKAGE}; print({PACKAGE}.__file__)"]
    found = subprocess.run(where, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if not pathlib.Path(found.stdout.strip() or "/").is_relative_to(folder):
        raise ValueError(
            f"--revisions: Python finds {PACKAGE} elsewhere than in the revision's checkout. {found.stderr.strip()}"
        )
    command = [sys.executable, "-m", f"{PACKAGE}.cli", "bench", *arguments]
    with subprocess.Popen(command, cwd=folder, env=environment) as child:
        try:
            return child.wait()
        except KeyboardInterrupt:
            # It got the same signal, and ends by itself after its last finished cell is on disk.
            try:
                child.wait(_GRACE_SECONDS)
            except subprocess.TimeoutExpired:
                child.kill()
            raise


@dataclasses.dataclass(frozen=True)
class Measured:
    """Folders of results: of the first revision, of the second, and of the first once more."""

    first: pathlib.Path
    second: pathlib.Path
    again: pathlib.Path | None


def measure_revisions(
    first: str,
    second: str,
    arguments: Sequence[str],
    out: pathlib.Path,
    *,
    again: bool = True,
    root: pathlib.Path | None = None,
    run: Runner = run_cli,
    announce: Callable[[str], object] = lambda _: None,
) -> Measured:
    """Run a benchmark (``longformer-triton bench ...``) on two revisions; rows that are in ``out`` already are left alone.

    Args:
        first, second: commits, branches or tags.
        arguments: a command of the benchmarks and its options, without ``--out``.
        out: gets one folder a revision, named by its commit.
        again: whether the first runs once more after the second, into a folder of its own.

    Raises:
        ValueError: a revision does not exist, both are the same commit, or a run failed.
        OSError: ``out`` cannot be made.
        KeyboardInterrupt: the user stopped it; the worktrees are gone, every finished row is in ``out``.
    """
    root = repository() if root is None else root
    commits = [resolve(root, revision) for revision in (first, second)]
    if commits[0] == commits[1]:
        raise ValueError(f"--revisions: {first} and {second} are the same commit, {commits[0]}; expected two different ones.")
    out = out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    measured = Measured(out / commits[0], out / commits[1], out / f"{commits[0]}-again" if again else None)
    with contextlib.ExitStack() as stack:
        places = [stack.enter_context(worktree(root, commit)) for commit in commits]
        for place, folder in ((places[0], measured.first), (places[1], measured.second), (places[0], measured.again)):
            if folder is None:
                continue
            announce(f"{folder.name}: bench {shlex.join(arguments)}")
            status = run(place, [*arguments, "--out", str(folder)])
            if status == _INTERRUPTED:
                raise KeyboardInterrupt
            if status != 0:
                raise ValueError(
                    f"--revisions: the benchmark of {folder.name} ended with exit status {status}; "
                    "perhaps that revision does not know these options yet."
                )
    return measured
