"""Every block of code in README, CONTRIBUTING and the pages of the documentation runs, and prints what the page says."""

import contextlib
import io
import pathlib
import re
import shlex
import shutil

import documents
import pytest
import torch
from typer.testing import CliRunner

from longformer_triton.cli import app

pytestmark = pytest.mark.usefixtures("one_thread")

# `python` and `py` run, one after the other in one namespace for each page; `output` is what the block before printed; `bash`
# is typed in the same folder; `text` is no code. Indented blocks are commands too.
LANGUAGES = {"python", "py", "output", "bash", "indented", "text", "{toctree}", "{eval-rst}"}
# Commands that take a moment. The options of all others are checked in test_command_lines.py.
CHEAP = ("fill-mask", "answer", "classify", "tag", "choose", "embed", "tokenize", "convert")
# What sets up an environment or tests it: .ci/run does these things.
SET_UP = ("pip install", "python -m venv", "pytest", "ruff", "bash .ci/run", "sphinx-build")
PAGES = [page for page in documents.pages() if documents.blocks((documents.ROOT / page).read_text())]


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_languages_of_blocks_are_known(page):
    found = documents.blocks((documents.ROOT / page).read_text())
    assert {block.language for block in found} <= LANGUAGES


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_blocks_run_in_order(page, filled_folder, tmp_path, monkeypatch):
    found = documents.blocks((documents.ROOT / page).read_text())
    folder = shutil.copytree(filled_folder, tmp_path / "folder", symlinks=True)
    monkeypatch.chdir(folder)
    namespace, printed = {"__name__": "page"}, ""
    for block in found:
        where = f"{page}, line {block.line}"
        if block.language in ("python", "py"):
            printed = run_python(block.code, namespace, where)
        elif block.language in ("bash", "indented"):
            for line in shell_lines(block.code):
                run_shell(line, where)
        elif block.language == "output":
            assert without_spaces_at_ends(printed) == without_spaces_at_ends(block.code), where


def run_python(code, namespace, where):
    torch.manual_seed(0)
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(code, where, "exec"), namespace)
    return out.getvalue()


def shell_lines(code):
    return [line.strip() for line in code.splitlines() if line.strip() and not line.strip().startswith("#")]


def run_shell(line, where):
    """Run a command that is cheap; others are ours, with options that another test checks, or set up an environment."""
    own = list(documents.command_lines(line))
    if not own:
        line = re.sub(r"^(?:[A-Z_]+=\S+ )+", "", line)
        assert line.startswith(SET_UP), f"{where}: neither a command of ours nor one that sets up an environment: {line}"
    elif all(arguments and arguments[0] in CHEAP for arguments in own):
        command, _, file = line.partition(" > ")
        program, *words = shlex.split(command)
        assert program == "longformer-triton", f"{where}: only a command and the file that it writes can be run: {line}"
        files = {word: [str(path) for path in pathlib.Path().glob(word)] for word in words if "*" in word}
        done = CliRunner().invoke(app, [word for given in words for word in files.get(given, [given])])
        assert done.exit_code == 0, f"{where}: {line}\n{done.output}"
        if file:
            pathlib.Path(file).write_text(done.stdout)


def without_spaces_at_ends(text):
    return [line.rstrip() for line in text.strip("\n").splitlines()]


def test_a_page_that_prints_something_else_fails(filled_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(documents, "ROOT", tmp_path)
    (tmp_path / "page.md").write_text("```python\nprint(1)\n```\n\n```output\n2\n```\n")
    with pytest.raises(AssertionError, match=r"page\.md, line 5"):
        test_blocks_run_in_order(pathlib.Path("page.md"), filled_folder, tmp_path, monkeypatch)
