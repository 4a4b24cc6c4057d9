"""The reference holds every public name, each with a docstring, and the documentation builds without a warning."""

import importlib.util
import inspect
import pathlib
import re
import subprocess
import sys

import documents
import pytest

import longformer_triton


def generator():
    """docs/generated.py, which is in no package."""
    spec = importlib.util.spec_from_file_location("generated", documents.DOCS / "generated.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


GENERATED = generator()
PUBLIC = [name for room in GENERATED.ROOMS for name in GENERATED.public_names(room)]


def build(folder: pathlib.Path, source: pathlib.Path = documents.DOCS) -> subprocess.CompletedProcess[str]:
    """As .ci/run builds it."""
    call = [sys.executable, "-m", "sphinx", "--fail-on-warning", "--nitpicky", "--quiet", str(source), str(folder)]
    return subprocess.run(call, capture_output=True, text=True, check=False, cwd=folder)


@pytest.fixture(scope="module")
def sphinx_is_there():
    for package in ("sphinx", "furo", "myst_parser"):
        pytest.importorskip(package, reason=f"{package} is not installed: pip install -e '.[docs]'")


@pytest.fixture(scope="module")
def built(sphinx_is_there, tmp_path_factory):
    """{name: what it is} of the built reference."""
    from sphinx.util.inventory import InventoryFile

    folder = tmp_path_factory.mktemp("documentation")
    done = build(folder)
    assert done.returncode == 0, done.stderr
    inventory = InventoryFile.load((folder / "objects.inv").open("rb"), "", lambda base, path: path)
    return {name: kind for kind, names in inventory.items() if kind.startswith("py:") for name in names}


def test_the_generator_knows_every_public_name():
    assert {name.rpartition(".")[2] for name in PUBLIC} >= set(longformer_triton.__all__)


def test_every_room_has_a_page():
    marks = {
        mark for page in documents.DOCS.rglob("*.md") for mark in re.findall(r"<!-- public names: (\w+) -->", page.read_text())
    }
    assert marks == set(GENERATED.ROOMS)


@pytest.mark.parametrize("name", PUBLIC)
def test_public_names_have_docstrings(name):
    """Their own, and so have the members that they define."""
    member = GENERATED.member_of(name)
    assert member.__doc__
    assert not inspect.isclass(member) or member.__doc__ != member.__base__.__doc__
    for part in vars(member) if inspect.isclass(member) else ():
        attribute = inspect.getattr_static(member, part)
        if not part.startswith("_") and (inspect.isroutine(attribute) or isinstance(attribute, property)):
            assert inspect.getdoc(getattr(member, part)), f"{name}.{part}"


@pytest.mark.parametrize("name", [name for name in PUBLIC if inspect.isfunction(GENERATED.member_of(name))])
def test_every_argument_of_a_function_is_described(name):
    """By its name, somewhere in the docstring."""
    member = GENERATED.member_of(name)
    arguments = list(inspect.signature(member).parameters)
    assert [name for name in arguments if not re.search(rf"\b{name}\b", inspect.getdoc(member))] == []


@pytest.mark.parametrize("name", PUBLIC)
def test_the_built_reference_holds_every_public_name(name, built):
    assert name in built


def test_the_built_reference_holds_methods_and_fields(built):
    assert f"{GENERATED.PACKAGE}.AttentionPattern.from_masks" in built
    assert f"{GENERATED.PACKAGE}.model.base.LongformerPreTrainedModel.save_pretrained" in built
    assert f"{GENERATED.PACKAGE}.tokenization.BatchEncoding.char_to_token" in built


def test_a_reference_that_leads_nowhere_fails_the_build(sphinx_is_there, tmp_path):
    for path in documents.DOCS.glob("*.py"):
        (tmp_path / path.name).write_text(path.read_text())
    (tmp_path / "index.md").write_text("# Title\n\n{func}`longformer_triton.sliding_windows`\n")
    (tmp_path / "out").mkdir()
    done = build(tmp_path / "out", tmp_path)
    assert done.returncode != 0
    assert "longformer_triton.sliding_windows" in done.stderr


def test_commands_are_described_as_their_help_says():
    text = GENERATED.commands()
    assert "## `longformer-triton bench sweep`" in text.replace("###", "##")
    assert 'echo "The capital of France is <mask>." | longformer-triton fill-mask --model checkpoint' in text
