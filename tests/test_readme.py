"""The README keeps its word: two set-up commands, code that runs, pictures that exist, figures that were measured."""

import pathlib
import re

import pytest

from longformer_triton.bench import readme
from longformer_triton.bench.report import documents

ROOT = pathlib.Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
RESULTS = ROOT / "bench" / "results"


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.M | re.S)


def test_there_are_exactly_two_set_up_commands():
    commands = [line for block in blocks("bash") for line in block.splitlines()]
    assert len(commands) == 2
    assert "bench sweep --quick" in commands[0]
    assert "pytest" in commands[1]


def test_ci_calls_the_test_command_of_the_readme():
    pattern = re.search(r"grep -E '(.*?)' README.md", (ROOT / ".ci" / "run").read_text()).group(1)
    assert len(re.findall(pattern, README, flags=re.M)) == 1


def test_python_blocks_run_in_order():
    namespace = {}
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), namespace)
    assert namespace["out"].shape == (2, 8, 1000, 64)


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\(([^)#:]+)\)", README))))
def test_linked_files_exist(target):
    assert (ROOT / target).exists()


def test_blocks_of_the_readme_are_the_recorded_files():
    assert {"core table", "model table"} <= set(readme.blocks(README))
    assert readme.updated(README, RESULTS) == README, "run: longformer-triton bench readme"


def test_no_measured_number_is_typed_by_hand():
    """Outside its blocks the section holds no digit, but in the names of files and commands."""
    section = re.search(r"^## Measured\n(.*?)^## ", README, flags=re.M | re.S).group(1)
    typed = re.sub(r"\]\([^)]*\)|`[^`]*`", "", readme.without_blocks(section))
    assert not re.findall(r"[^\n]*\d[^\n]*", typed)


@pytest.mark.parametrize(
    "folder", sorted(path.parent for path in RESULTS.glob("*/results.csv")), ids=lambda folder: folder.name
)
def test_recorded_tables_are_what_their_data_give(folder):
    recorded = {name: text for name, text in documents(folder).items() if (folder / name).exists()}
    for name, text in recorded.items():
        assert (folder / name).read_text() == text, f"run: longformer-triton bench report {folder.relative_to(ROOT)}"
    if not recorded:
        pytest.skip("this folder's data were recorded without a table")


def test_no_text_file_names_a_folder_of_one_machine():
    text = "\n".join(path.read_text() for path in ROOT.glob("*.md"))
    assert not re.search(r"(?<![\w.])/(home|root|work|tmp)/", text)
