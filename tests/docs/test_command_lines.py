"""Every command line that a document, a docstring or a message shows can be typed: command, options and arguments exist."""

import pathlib

import documents
import pytest
import typer

from longformer_triton.cli import app

ROOT = documents.ROOT
ROOMS = ("kernels", "model", "heads", "tokenization", "bench", "tests")
SOURCES = sorted(
    path.relative_to(ROOT)
    for path in [
        *ROOT.glob("*.md"),
        *(ROOT / "docs").rglob("*.md"),
        *ROOT.glob("*.py"),
        *(path for room in ROOMS for path in (ROOT / room).rglob("*.py")),
        *(ROOT / "bench").glob("*.md"),
        *(ROOT / "notebooks").glob("*.ipynb"),
    ]
    if "_build" not in path.parts
)


def lines_of(path: pathlib.Path) -> list[list[str]]:
    text = documents.notebook_text(ROOT / path) if path.suffix == ".ipynb" else (ROOT / path).read_text()
    return list(documents.command_lines(text))


def parse(arguments: list[str]) -> dict[str, object]:
    """What the command would be called with; names of groups alone, and commands followed by "...", are parsed so far."""
    known = arguments[: arguments.index("...")] if "..." in arguments else arguments
    command, rest = typer.main.get_command(app), list(known)
    context = None
    while hasattr(command, "resolve_command"):
        if not rest:
            return {}
        _, command, rest = command.resolve_command(command.context_class(command, parent=context), rest)
    return command.make_context("command", rest).params if rest or "..." not in arguments else {}


@pytest.mark.parametrize("path", [path for path in SOURCES if lines_of(path)], ids=str)
def test_command_lines_can_be_typed(path):
    for arguments in lines_of(path):
        try:
            parse(arguments)
        except Exception as error:
            pytest.fail(f"longformer-triton {' '.join(arguments)}: {error}")
