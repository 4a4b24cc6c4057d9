"""What the commands share: options, numbers as people write them, errors as one line."""

from __future__ import annotations

import contextlib
import errno
import os
import pathlib
from collections.abc import Iterator
from typing import Annotated, NoReturn

import typer

RESUMED_AND_DRAWN = typer.Option("--out", help="Folder of results.csv and the pictures; a rerun resumes there.")
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1; the default is a GPU if there is one.")]

# Those of heads.packing, whose import brings torch, which `tokenize` does without; a test compares the two.
_FORMATS = ("text", "lines", "jsonl")
# What to do about an error of the system, by its number.
_ADVICE = {
    errno.ENOENT: "check how it is written",
    errno.EEXIST: "expected a folder, or a path where nothing is yet",
    errno.ENOTDIR: "expected a folder, or a path where nothing is yet",
    errno.EISDIR: "expected a file there; move the folder away, or name another place",
    errno.EACCES: "get the permission, or name another place",
    errno.EPERM: "get the permission, or name another place",
    errno.EROFS: "name another place",
    errno.ENOSPC: "free some space, or name another place",
    errno.EDQUOT: "free some space, or name another place",
}
# Errors of writing, which do not say to which file.
_OF_WRITING = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


def fail(message: str) -> NoReturn:
    """Say what is wrong on standard error, and end with status 2."""
    typer.echo(f"error: {message}", err=True)
    raise typer.Exit(2)


@contextlib.contextmanager
def in_one_line(*also: type[Exception], **places: pathlib.Path) -> Iterator[None]:
    """End the command with one line where what runs inside raises ValueError, OSError or one of ``also``.

    Args:
        also: other exceptions whose message is the line.
        places: the files and folders that the command was given, by the names of their options or arguments; first the one
            that is written to.
    """
    speak_for_themselves: tuple[type[Exception], ...] = (ValueError, *also)
    try:
        yield
    except speak_for_themselves as error:
        fail(str(error))
    except BrokenPipeError:
        raise  # whoever reads the output wants no more of it, which Click deals with
    except OSError as error:
        fail(_in_words(error, places))


def _in_words(error: OSError, places: dict[str, pathlib.Path]) -> str:
    """Which of the ``places``, which file, the system's reason, what to do. Without places, standard output is written to."""
    if isinstance(error.filename, (str, bytes)):
        where = pathlib.Path(os.fsdecode(error.filename))
        near = (name for name, place in places.items() if _are_nested(where.absolute(), place.absolute()))
        told = [next(near, ""), str(where)]
    elif error.errno in _OF_WRITING:
        told = [f"{name}: {place}" for name, place in places.items()][:1] or ["standard output"]
    else:
        return str(error)
    return ": ".join(filter(None, [*told, reason_of(error)]))


def reason_of(error: OSError) -> str:
    """The system's reason, and what to do."""
    return f"{error.strerror or error}; {_ADVICE.get(error.errno or 0, 'name another place')}."


def _are_nested(one: pathlib.Path, other: pathlib.Path) -> bool:
    return one.is_relative_to(other) or other.is_relative_to(one)


def _no_more_than_cpus(threads: int | None) -> int | None:
    most = os.cpu_count()
    if threads is not None and most is not None and threads > most:
        # OpenMP ends the process without a word when it cannot start them all.
        fail(f"--threads: got {threads}, expected at most {most}, the CPUs of this machine.")
    return threads


Threads = Annotated[int | None, typer.Option(help="CPU threads; the default is torch's.", min=1, callback=_no_more_than_cpus)]


def not_empty(name: str | None) -> str | None:
    """A callback for options that name a checkpoint: refuses "", which a shell makes of a variable that is not set."""
    if name == "":
        raise typer.BadParameter("got nothing, expected a directory, or a name on the hub; is a variable of the shell not set?")
    return name


def known_format(form: str | None) -> str | None:
    """A callback for options that name a format of files: refuses others."""
    if form is not None and form not in _FORMATS:
        raise typer.BadParameter(f"got {form!r}, expected one of {', '.join(_FORMATS)}")
    return form


Model = Annotated[str, typer.Option("--model", "-m", help="A checkpoint directory, or a name on the hub.", callback=not_empty)]


def names(text: str) -> tuple[str, ...]:
    """Comma-separated names; spaces around them are left out."""
    return tuple(part.strip() for part in text.split(","))


def numbers(name: str, text: str) -> tuple[int, ...]:
    """Comma-separated whole numbers; a k or K stands for 1024."""
    try:
        return tuple(int(part[:-1]) * 1024 if part.endswith(("k", "K")) else int(part) for part in names(text))
    except ValueError:
        message = f"got {text!r}, expected whole numbers separated by commas, such as 512,1k,16k"
        raise typer.BadParameter(message, param_hint=name) from None


def device_or_best(requested: str | None) -> str:
    """The device asked for, else a GPU if there is one, else the CPU. Ends the command if the one asked for is not here."""
    from longformer_triton.kernels import backends

    if requested is not None:
        try:
            return str(backends.present(requested))
        except ValueError as error:
            fail(str(error))
    return backends.best_device()
