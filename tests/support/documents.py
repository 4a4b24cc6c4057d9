"""Markdown, as far as tests read it: blocks of code, links, headings, and the command lines in it."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import re
import shlex
from collections.abc import Iterator

ROOT = pathlib.Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
_FENCE = re.compile(r"^(?P<indent> *)```(?P<language>[^\s`]*)[^\n]*\n(?P<code>.*?)^(?P=indent)```$", flags=re.M | re.S)
# Lines that are indented by four, behind an empty line: code too, in Markdown.
_INDENTED = re.compile(r"(?<=\n\n)(?:    [^\n]+\n|\n)+")
# A command line begins a line, or follows what starts or feeds a process; variables may be set in front of it.
_WORD = r"""(?:"[^"\n]*"|'[^'\n]*'|[^\s`|;&>"']+)"""
_COMMAND = re.compile(rf"(?:^|[|;`]|&&) *(?:[A-Z_]+=\S+ )*longformer-triton(?P<arguments>(?: +{_WORD})*)", flags=re.M)


def pages() -> list[pathlib.Path]:
    """README, CONTRIBUTING and every page of the documentation, as paths from the root."""
    found = [path for path in DOCS.rglob("*.md") if "_build" not in path.parts]
    return [pathlib.Path("README.md"), pathlib.Path("CONTRIBUTING.md"), *sorted(path.relative_to(ROOT) for path in found)]


@dataclasses.dataclass(frozen=True)
class Block:
    """A block of code; ``language`` is "indented" where no fence says it."""

    language: str
    code: str
    line: int


def blocks(text: str) -> list[Block]:
    """Every block of code in a page, in order."""
    found = [Block(fence["language"], fence["code"], text.count("\n", 0, fence.start()) + 1) for fence in _FENCE.finditer(text)]
    rest = _FENCE.sub(lambda fence: "\n" * fence[0].count("\n"), text)
    for match in _INDENTED.finditer(rest):
        if match[0].strip():
            found.append(Block("indented", match[0], rest.count("\n", 0, match.start()) + 1))
    return sorted(found, key=lambda block: block.line)


def prose(text: str) -> str:
    """A page without its blocks of code."""
    return _FENCE.sub("", text)


def anchors(text: str) -> set[str]:
    """What links into a page may name: its headings, by GitHub's rule."""
    headings = re.findall(r"^#+ (.+)$", prose(text), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links(text: str) -> list[str]:
    """Targets of links and pictures, outside of code."""
    return re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`\n]*`(?!\])", "", prose(text)))


def command_lines(text: str) -> Iterator[list[str]]:
    """The arguments of every ``longformer-triton ...`` in a text, without what a shell would take."""
    for match in _COMMAND.finditer(text):
        yield shlex.split(match["arguments"], comments=True)


def notebook_text(path: pathlib.Path) -> str:
    """What a notebook says and runs, without outputs."""
    return "\n\n".join("".join(cell["source"]) for cell in json.loads(path.read_text())["cells"])
