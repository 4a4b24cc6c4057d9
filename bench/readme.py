"""Blocks of a document that repeat files under ``bench/results/``, so that no measured number is typed by hand.

A block stands between ``<!-- NAME: begin -->`` and ``<!-- NAME: end -->``, each on a line of its own. NAME is a file's path
under the results, such as ``cpu-quick/report.md``; ``core table`` is short for ``cpu-core/core.md``, and any other ``X table``
alike.
"""

from __future__ import annotations

import pathlib
import re

_BEGIN = re.compile(r"^<!-- (?P<name>[^\n]+?): begin -->\n", re.MULTILINE)
_ANY = re.compile(r"^<!-- [^\n]+?: (?:begin|end) -->$", re.MULTILINE)


def source(name: str, results: pathlib.Path) -> pathlib.Path:
    """The file that a block repeats.

    Raises:
        ValueError: the name leads out of ``results``, or there is no such file.
    """
    short = re.fullmatch(r"([\w-]+) table", name)
    path = results / (f"cpu-{short[1]}/{short[1]}.md" if short else name)
    if not path.resolve().is_relative_to(results.resolve()) or not path.is_file():
        raise ValueError(f"block {name}: {path} is no file of the results; write it with `longformer-triton bench report DIR`.")
    return path


def blocks(text: str) -> dict[str, tuple[int, int]]:
    """Where the body of each block begins and ends, by name.

    Raises:
        ValueError: a block does not end, ends without a beginning, holds another one, or stands twice.
    """
    found: dict[str, tuple[int, int]] = {}
    position = 0
    while begin := _BEGIN.search(text, position):
        name, closing = begin["name"], f"<!-- {begin['name']}: end -->"
        end = text.find(f"\n{closing}", begin.end() - 1) + 1
        marks = [mark[0] for mark in _ANY.finditer(text, position)][:2]
        if not end or marks != [begin[0].rstrip("\n"), closing]:
            raise ValueError(f"block {name}: expected it to end with {closing} before any other block.")
        if name in found:
            raise ValueError(f"block {name}: it stands twice.")
        found[name] = (begin.end(), end)
        position = end + len(closing)
    if _ANY.search(text, position):
        raise ValueError("blocks: the last one ends twice, or without a beginning.")
    return found


def updated(text: str, results: pathlib.Path) -> str:
    """The document with every block replaced by its file.

    Raises:
        ValueError: blocks are malformed, there is none, or a file is missing.
    """
    found = blocks(text)
    if not found:
        raise ValueError(
            "document: it has no block such as <!-- cpu-quick/report.md: begin -->, so there is nothing to update."
        )
    for name, (begin, end) in reversed(found.items()):
        text = text[:begin] + source(name, results).read_text() + text[end:]
    return text


def without_blocks(text: str) -> str:
    """The document without what its blocks hold: what people typed."""
    for begin, end in reversed(blocks(text).values()):
        text = text[:begin] + text[end:]
    return text
