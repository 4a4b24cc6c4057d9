"""Notebooks run in a fresh kernel, and what a stored one looks like.

``python tests/support/stored_notebooks.py [name ...]`` runs the notebooks, all of them if none is named, and stores them with
their outputs, as the tests want them.
"""

from __future__ import annotations

import os
import pathlib
import re
import sys
import tempfile
import time

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

FOLDER = pathlib.Path(__file__).resolve().parents[2] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
_SECONDS_A_CELL = 600
# A reader needs to know that it is Python; which one ran it last is no news.
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
# Set, they would change what the kernel does: Triton would interpret, pictures would not be shown, and so on.
_NOT_INHERITED = ("TRITON_INTERPRET", "MPLBACKEND", "PYTHONPATH")


def run(path: pathlib.Path) -> NotebookNode:
    """The notebook with new outputs, from a fresh kernel whose working directory is an empty folder.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell raised; the message shows the cell and its traceback.
    """
    notebook = nbformat.read(path, as_version=4)
    environment = {name: value for name, value in os.environ.items() if name not in _NOT_INHERITED}
    with tempfile.TemporaryDirectory() as folder:
        client = NotebookClient(
            notebook, timeout=_SECONDS_A_CELL, resources={"metadata": {"path": folder}}, record_timing=False
        )
        client.execute(env=environment)
    return notebook


def normalised(notebook: NotebookNode) -> NotebookNode:
    """The same notebook as a reader of its changes wants it: numbered ids, no metadata of a run, streams in one piece."""
    notebook.metadata = nbformat.from_dict(METADATA)
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number:02d}"
        cell.metadata = NotebookNode()
        if cell.cell_type == "code":
            for output in cell.outputs:
                if "metadata" in output:
                    output.metadata = NotebookNode()
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    return notebook


def text_of(notebook: NotebookNode) -> str:
    """What a reader reads: sources and textual outputs, without the bytes of pictures."""
    parts = [cell.source for cell in notebook.cells]
    for output in outputs_of(notebook):
        parts.append(str(output.get("text", "")))
        parts += [str(data) for kind, data in output.get("data", {}).items() if not kind.startswith("image/png")]
    return "\n".join(parts)


def outputs_of(notebook: NotebookNode) -> list[NotebookNode]:
    """All outputs in their order."""
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


def machine_paths(text: str) -> list[str]:
    """Paths that name a folder of one machine."""
    return re.findall(r"(?<![\w.:/])/(?:home|root|work|tmp|usr|opt|Users|var)/[\w.-]+", text)


def main(names: list[str]) -> None:
    """Run and store; a notebook that fails stays as it was."""
    for path in NOTEBOOKS:
        if names and path.stem not in names:
            continue
        start = time.perf_counter()
        notebook = normalised(run(path))
        nbformat.write(notebook, path)
        print(f"{path.name}: {time.perf_counter() - start:.0f} s, {path.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main([pathlib.Path(name).stem for name in sys.argv[1:]])
