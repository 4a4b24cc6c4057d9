"""The README keeps its word: two set-up commands, code that runs, pictures that exist, figures that were measured."""

import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()


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


@pytest.mark.parametrize("name", ["core", "model"])
def test_the_measured_tables_are_the_recorded_ones(name):
    table = re.search(rf"<!-- {name} table: begin -->\n(.*?)<!-- {name} table: end -->", README, flags=re.S).group(1)
    assert table == (ROOT / "bench" / "results" / f"cpu-{name}" / f"{name}.md").read_text()


def test_no_text_file_names_a_folder_of_one_machine():
    text = "\n".join(path.read_text() for path in ROOT.glob("*.md"))
    assert not re.search(r"(?<![\w.])/(home|root|work|tmp)/", text)
