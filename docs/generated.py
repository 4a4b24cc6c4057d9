"""What pages of the reference hold without anyone writing it: public names, by room, and the commands, by their ``--help``.

A page says ``<!-- public names: kernels -->`` or ``<!-- commands -->`` where they go. Names come from ``__all__``, so that
a new one appears by itself. Docstrings are changed a little on the way, see :func:`readable`.
"""

from __future__ import annotations

import html
import importlib
import inspect
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sphinx.application import Sphinx

PACKAGE = "longformer_triton"
ROOMS = ("kernels", "model", "heads", "tokenization")
_MARK = re.compile(r"^<!-- (public names: (?P<room>\w+)|commands) -->$", flags=re.M)
# Bases whose members are documented once, and those of other packages, which document them.
_BASES = ("LongformerPreTrainedModel", "ModelOutput")
_FOREIGN = ("ABC", "BaseException", "Mapping", "Module", "MutableMapping", "OSError", "UserDict", "ValueError", "dict", "tuple")
_LINK_UP = re.compile(r"\[(?P<text>[^\]`]+)\]\((?P<target>\.\./[^)#\s]+)\)")
_RETURNS = re.compile(r"^Returns:$", flags=re.M)
_ROLE = re.compile(r"(:(?:func|meth|class|attr):`)(?=\w)")
_NAMED = re.compile(r"^(?:Attributes|Raises):\n(?: .*\n?|\n)*", flags=re.M)
_SEVERAL = re.compile(r"^( +)(\w+(?:, \w+)+): (.*(?:\n\1 +.*)*)$", flags=re.M)
_EXAMPLE = re.compile(r"^Examples?:\n(?P<body>(?: .*\n?|\n)*)", flags=re.M)


def public_names(room: str) -> list[str]:
    """Full names of what a room offers, by the modules they are made in; by the shorter name where there are two."""
    package, module = importlib.import_module(PACKAGE), importlib.import_module(f"{PACKAGE}.{room}")
    found = {name: f"{PACKAGE}.{room}.{name}" for name in module.__all__ if not inspect.ismodule(getattr(module, name))}
    at_the_root = {name: getattr(package, name) for name in package.__all__}
    found |= {name: f"{PACKAGE}.{name}" for name, member in at_the_root.items() if member.__module__.split(".")[1] == room}
    return sorted(found.values(), key=lambda full_name: member_of(full_name).__module__)


def member_of(full_name: str) -> Any:
    """The function or class of that name."""
    home, _, name = full_name.rpartition(".")
    return getattr(importlib.import_module(home), name)


def directives(room: str) -> str:
    """Markdown that documents every public name of a room."""
    lines = []
    for full_name in public_names(room):
        member, name = member_of(full_name), full_name.rpartition(".")[2]
        kind = "autoclass" if inspect.isclass(member) else "autofunction"
        lines += [f"## {name}", "", "```{eval-rst}", f".. {kind}:: {full_name}"]
        if inspect.isclass(member):
            lines += ["   :members:", "   :special-members: __call__", f"   :inherited-members: {','.join(_BASES + _FOREIGN)}"]
            lines += ["   :show-inheritance:"] * any(base.__name__ in _BASES for base in member.__bases__)
        lines += ["```", ""]
    return "\n".join(lines)


def commands() -> str:
    """Markdown of every command's help, by typer's own generator, without its title."""
    call = [sys.executable, "-m", "typer", f"{PACKAGE}.cli", "utils", "docs", "--name", "longformer-triton"]
    text = subprocess.run(call, capture_output=True, text=True, check=True, cwd="/").stdout
    _, _, body = text.partition("\n")
    # Inside code, Markdown shows entities as they are written.
    return "\n".join(html.unescape(line) if line.startswith("    ") else line for line in body.splitlines())


def fill(app: Sphinx, page: str, source: list[str]) -> None:
    """Replace the marks of a page that Sphinx has read, and let links to files outside of ``docs`` hand out the file."""
    text = _MARK.sub(lambda mark: commands() if mark["room"] is None else directives(mark["room"]), source[0])
    folder, inside = Path(app.env.doc2path(page)).parent, Path(app.srcdir).resolve()

    def to_file(link: re.Match[str]) -> str:
        is_page = (folder / link["target"]).resolve().is_relative_to(inside)
        return link[0] if is_page else f"{{download}}`{link['text']} <{link['target']}>`"

    source[0] = _LINK_UP.sub(to_file, text)


def readable(_app: Sphinx, kind: str, _name: str, _member: Any, _options: Any, lines: list[str]) -> None:
    """Tell napoleon what it does not know of our docstrings, before it reads one.

    "a, b: text" describes each name, in attributes and errors as in arguments. What stands below ``Example:`` is code. A colon
    in the first line of a property or of ``Returns:`` ends no type. A name in a reference may be one of any room.
    """

    def repeated(entry: re.Match[str]) -> str:
        indent, names, text = entry.groups()
        return "\n".join(f"{indent}{name}: {text}" for name in names.split(", "))

    def as_code(example: re.Match[str]) -> str:
        body = example["body"]
        return example[0] if ">>>" in body else f"Example:\n    .. code-block:: python\n\n{textwrap.indent(body, '    ')}"

    text = "\n".join(lines)
    text = _NAMED.sub(lambda section: _SEVERAL.sub(repeated, section[0]), text)
    text = _EXAMPLE.sub(as_code, text)
    text = _RETURNS.sub(":returns:", text)
    text = _ROLE.sub(r"\1.", text)
    # The empty comment in front is a first line without a colon.
    lines[:] = [*(["..", ""] if kind in ("property", "attribute") else []), *text.split("\n")]


def setup(app: Sphinx) -> dict[str, Any]:
    """Connect to Sphinx; napoleon reads docstrings with priority 500."""
    app.connect("source-read", fill)
    app.connect("autodoc-process-docstring", readable, priority=400)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
