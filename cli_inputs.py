"""What the commands that answer read: files, standard input, JSON lines. A bad input is named, and the rest goes on."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import pathlib
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import typer

from longformer_triton.cli_common import reason_of

_AT_ONCE = 64
STANDARD_INPUT = pathlib.Path("-")


@dataclasses.dataclass(frozen=True)
class Item:
    """One input and where it came from; ``value`` is an error's text if it cannot be read."""

    where: str
    value: Any
    is_bad: bool = False


def read_items(files: Sequence[pathlib.Path] | None, form: str | None) -> Iterator[Item]:
    """The inputs in files or standard input, bad lines among them marked.

    Raises:
        typer.BadParameter: a file is not there; raised before anything is read.
    """
    paths = files or [STANDARD_INPUT]
    for path in paths:
        with contextlib.suppress(OSError):  # of a folder that may not be read: opening says so
            # Pipes are files here too.
            if path != STANDARD_INPUT and (path.is_dir() or not path.exists()):
                what = "a folder, expected files" if path.is_dir() else "no such file"
                raise typer.BadParameter(f"{path}: {what}", param_hint="FILES")
    for path in paths:
        chosen = format_of(path, form)
        if path == STANDARD_INPUT:
            yield from _decoded("standard input", sys.stdin, chosen)
            continue
        try:
            file = path.open(encoding="utf-8")
        except OSError as error:
            yield Item(str(path), reason_of(error), is_bad=True)
            continue
        with file:
            yield from _decoded(str(path), file, chosen)


def format_of(path: pathlib.Path, form: str | None) -> str:
    """The format asked for, else what the suffix says."""
    return form or ("jsonl" if path.suffix == ".jsonl" else "text")


def _decoded(name: str, file: Iterable[str], form: str) -> Iterator[Item]:
    """The inputs of a file; where it stops being UTF-8, or cannot be read, a bad one, and the rest is not read."""
    try:
        yield from _items_of(name, _without_mark(file), form)
    except UnicodeDecodeError as error:
        yield Item(name, f"got {error}, expected UTF-8: convert the file", is_bad=True)
    except OSError as error:
        yield Item(name, reason_of(error), is_bad=True)


def _without_mark(lines: Iterable[str]) -> Iterator[str]:
    """The lines of a file without the byte order mark that some programs begin it with, which is no part of a text."""
    for number, line in enumerate(lines):
        yield line if number else line.removeprefix("\ufeff")


def _items_of(name: str, file: Iterable[str], form: str) -> Iterator[Item]:
    if form == "text":
        yield Item(name, "".join(file))
        return
    for number, line in enumerate(file, start=1):
        where = f"{name}:{number}"
        if not line.strip():
            continue
        if form == "lines":
            yield Item(where, line.rstrip("\n"))
            continue
        try:
            yield Item(where, json.loads(line))
        except ValueError as error:
            yield Item(where, f"no JSON: {error}", is_bad=True)


def answer_all(pipe: Any, items: Iterable[Item], write: Callable[[Item, Any], None], *, only: str = "", **options: Any) -> bool:
    """Write the result of each item, in order; what is wrong with an item goes to standard error, and the rest goes on.

    Args:
        pipe: called with lists of values and ``options``.
        items: what to answer.
        write: called with an item and its result.
        only: how messages of ``pipe`` name the one value of a list; where the item is from stands there instead.
        options: of ``pipe``.

    Returns:
        Whether all went well.
    """
    well = True
    iterator = iter(items)
    while chunk := list(itertools.islice(iterator, _AT_ONCE)):
        good = [item for item in chunk if not item.is_bad]
        try:
            results = iter(pipe([item.value for item in good], **options))
        except (ValueError, TypeError):
            # One of them, or all: each alone says which.
            results = None
        for item in chunk:
            try:
                if item.is_bad:
                    raise ValueError(item.value)
                result = next(results) if results is not None else pipe([item.value], **options)[0]
            except (ValueError, TypeError) as error:
                well = False
                typer.echo(f"{item.where}: {str(error).removeprefix(only)}", err=True)
                continue
            write(item, result)
    return well


def text_of(value: Any) -> Any:
    """What a command that takes texts takes of a JSON line: the line, or its field "text".

    Raises:
        ValueError: it has none.
    """
    if not isinstance(value, dict):
        return value
    if "text" not in value:
        raise ValueError(f"got no 'text' among {sorted(value)}, expected a text, or {{\"text\": a text}}.")
    return value["text"]


def without_nulls(value: Any) -> Any:
    """A JSON line in which what is null is not there."""
    return {name: field for name, field in value.items() if field is not None} if isinstance(value, dict) else value


def prepared(items: Iterable[Item], prepare: Callable[[Any], Any]) -> Iterator[Item]:
    """Items whose values ``prepare`` has changed; those of which it raises ValueError are bad."""
    for item in items:
        try:
            yield item if item.is_bad else dataclasses.replace(item, value=prepare(item.value))
        except ValueError as error:
            yield dataclasses.replace(item, value=str(error), is_bad=True)
