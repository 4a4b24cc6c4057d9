"""Notebooks run from top to bottom, without a GPU or network, and are stored with the outputs of such a run."""

import base64
import re

import nbformat
import pytest
import stored_notebooks

NAMES = {"attention_patterns", "linear_scaling", "kernel_in_your_model", "long_documents", "performance_anatomy"}
MOST_BYTES = 1_500_000
each_notebook = pytest.mark.parametrize("path", stored_notebooks.NOTEBOOKS, ids=lambda path: path.stem)


@pytest.fixture
def stored(path):
    return nbformat.read(path, as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_all_notebooks_are_here_and_listed():
    assert {path.stem for path in stored_notebooks.NOTEBOOKS} == NAMES
    index = (stored_notebooks.FOLDER / "README.md").read_text()
    assert set(re.findall(r"\]\((\w+)\.ipynb\)", index)) == NAMES


def on_stderr(outputs):
    return [output.text for output in outputs if output.output_type == "stream" and output.name == "stderr"]


@each_notebook
def test_runs_from_top_to_bottom(path):
    """In a fresh kernel and an empty folder; nbclient raises what a cell raised."""
    done = stored_notebooks.normalised(stored_notebooks.run(path))
    outputs = stored_notebooks.outputs_of(done)
    assert all(output.output_type != "error" for output in outputs)
    assert not on_stderr(outputs)
    assert [cell.execution_count for cell in code_cells(done)] == list(range(1, len(code_cells(done)) + 1))
    assert not stored_notebooks.machine_paths(stored_notebooks.text_of(done))


@each_notebook
def test_is_stored_as_it_ran(stored):
    cells = code_cells(stored)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1)), (
        "run it with tests/support/stored_notebooks.py"
    )
    outputs = stored_notebooks.outputs_of(stored)
    assert outputs
    assert not [output for output in outputs if output.output_type == "error"]
    assert not on_stderr(outputs)


@each_notebook
def test_every_picture_that_is_drawn_is_stored(stored):
    def pictures(cell):
        return [output.data["image/png"] for output in cell.outputs if "image/png" in output.get("data", {})]

    drawing = [cell for cell in code_cells(stored) if re.search(r"plt\.show\(\)|display\(draw_", cell.source)]
    assert drawing
    for cell in drawing:
        assert pictures(cell), cell.source
        for data in pictures(cell):
            assert base64.b64decode(data).startswith(b"\x89PNG")


@each_notebook
def test_nothing_of_the_machine_or_the_editor_is_stored(path, stored):
    assert not stored_notebooks.machine_paths(stored_notebooks.text_of(stored))
    assert "application/vnd.jupyter.widget" not in path.read_text()
    assert stored == stored_notebooks.normalised(nbformat.read(path, as_version=4))
    nbformat.validate(stored)


@each_notebook
def test_is_small_enough_for_a_repository(path):
    assert path.stat().st_size < MOST_BYTES


@each_notebook
def test_begins_with_a_question_and_ends_with_caveats(stored):
    """An article: what is asked, how, and what the answer is not worth; one variable makes everything larger."""
    first, last = stored.cells[0], stored.cells[-1]
    assert first.cell_type == last.cell_type == "markdown"
    assert first.source.startswith("# ")
    assert "**Question.**" in first.source
    assert "**Method.**" in first.source
    assert "## Caveats" in last.source
    assert re.search(r"^SCALE = 1$", "\n".join(cell.source for cell in code_cells(stored)[:1]), re.MULTILINE)


@pytest.mark.parametrize("text", ["/tmp/x/results.csv", "in /home/someone/y", "'/opt/project/main'"])
def test_paths_of_a_machine_are_found(text):
    assert stored_notebooks.machine_paths(text)


@pytest.mark.parametrize("text", ["https://arxiv.org/abs/2004.05150", "and/or", "bench/results", "./tmp/x"])
def test_other_text_with_slashes_is_no_path(text):
    assert not stored_notebooks.machine_paths(text)


def test_every_technique_of_the_table_is_in_the_log():
    """Sections exist, and hold both numbers; nothing else could be compared."""
    log = (stored_notebooks.FOLDER.parent / "bench" / "LOG.md").read_text()
    rows = (stored_notebooks.FOLDER / "techniques.csv").read_text().splitlines()[1:]
    assert rows
    for row in rows:
        _, _, before, after, _, section = row.split(",", 5)
        day, _, title = section.partition(": ")
        of_day = "".join(part for part in log.split("\n## ") if part.startswith(day))
        text = of_day.split(f"**{title}", 1)[1].split("\n**", 1)[0]
        for number in (before, after):
            assert re.search(rf"(?<![\d.]){re.escape(number)}(?![\d]|\.\d)", text), (section, number)
