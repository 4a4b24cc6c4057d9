"""``longformer-triton fits``: its tables come from the estimate, and what is wrong is one line."""

import re

import pytest
import torch
from model_cases import TINY
from typer.testing import CliRunner

from longformer_triton import LongformerConfig, LongformerForMaskedLM, estimate_memory
from longformer_triton.cli import app
from longformer_triton.model.memory import longest_text
from longformer_triton.model.memory_tables import SIZES

BASE, LARGE = (LongformerConfig(**sizes) for sizes in SIZES.values())


def call(*arguments):
    return CliRunner().invoke(app, ["fits", *map(str, arguments)], env={"COLUMNS": "100"})


def row(result, title, label):
    """The cells of a line of the table under ``title``."""
    lines = result.stdout[result.stdout.index(title) :].splitlines()
    return re.split(r"\s{2,}", next(line for line in lines if line.strip().startswith(f"{label}  ")).strip())[1:]


def test_one_memory_and_the_usual_ones_beside_it():
    result = call("--memory", "24GB", "--margin", 0.05, "--dtype", "bfloat16", "--batch", 2)
    assert result.exit_code == 0, result.output
    options = {"margin": 0.05, "dtype": torch.bfloat16, "device": "cuda"}
    for title, config in zip(SIZES, (BASE, LARGE), strict=True):
        for label, flags in (("trains", {"training": True}), ("runs", {})):
            memories = ("24GB", "8GB", "16GB", "48GB", "80GB")
            found = [longest_text(config, memory, 2, **options, **flags) for memory in memories]
            assert row(result, title, label) == [f"{tokens:,}" if tokens else "none" for tokens in found]
        checkpointed = longest_text(config, "24GB", 2, **options, training=True, checkpointing=True)
        assert row(result, title, "trains, checkpointing")[0] == f"{checkpointed:,}"
    assert "not measured" in result.stdout
    assert "5% of the memory is set aside" in " ".join(result.stdout.split())


def test_all_memories_grow():
    result = call()
    assert result.exit_code == 0, result.output
    for title in SIZES:
        for label in ("trains", "trains, checkpointing", "runs"):
            found = [0 if cell == "none" else int(cell.replace(",", "")) for cell in row(result, title, label)]
            assert len(found) == 5
            assert found == sorted(set(found))


@pytest.mark.parametrize(
    ("given", "column"), [("24000000000", "24GB"), ("25769803776", "24GiB"), ("24000000001", "24000000001"), (" 24GB", "24GB")]
)
def test_memory_may_be_a_number_of_bytes(given, column):
    result = call("--memory", f"{given}, 8GB")
    assert result.exit_code == 0, result.output
    found = [longest_text(BASE, memory, 1, margin=0.1, training=True, device="cuda") for memory in (given.strip(), "8GB")]
    assert row(result, "longformer-base-4096", "tokens") == [column, "8GB"]
    assert row(result, "longformer-base-4096", "trains") == [f"{tokens:,}" for tokens in found]


def test_every_dtype_that_is_taken_is_in_the_help():
    help_text = " ".join(call("--help").stdout.replace("│", " ").split())
    assert "float32, bfloat16, float16 or float64" in help_text
    assert call("--dtype", "float64", "--length", 100).exit_code == 0


def test_one_token_is_singular(tmp_path):
    LongformerForMaskedLM(LongformerConfig(**TINY)).save_pretrained(tmp_path)
    result = call("--model", tmp_path, "--length", 1, "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert "1 token " in result.stdout
    assert "batch 1, 1 token\n" in result.stdout
    assert "1 tokens" not in result.stdout


def test_a_length():
    result = call("--memory", "8GB,80GB", "--length", "32k")
    assert result.exit_code == 0, result.output
    needed = estimate_memory(BASE, 1, 32768, training=True, device="cuda")
    assert not needed.fits("8GB", 0.1)
    assert row(result, "longformer-base-4096", "trains") == [f"{needed.total / 2**30:.2f}", "no", "yes"]


def test_a_checkpoint(tmp_path):
    LongformerForMaskedLM(LongformerConfig(**TINY)).save_pretrained(tmp_path)
    result = call("--memory", "1MB", "--model", tmp_path, "--length", 50, "--device", "cpu", "--optimizer", "none")
    assert result.exit_code == 0, result.output
    expected = estimate_memory(
        LongformerConfig(**TINY), 1, 50, training=True, optimizer=None, architecture="LongformerForMaskedLM", device="cpu"
    )
    assert str(expected) in result.stdout


def test_a_checkpoint_that_no_longformer_computes_is_one_line(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "roberta", "is_decoder": true}')
    result = call("--model", tmp_path)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "config.json: got is_decoder true, expected an encoder" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--memory", "24XB"], "24XB"),
        (["--margin", "1"], "margin"),
        (["--optimizer", "lion"], "optimizer: got 'lion', expected one of adamw, adam, sgd, sgd-momentum or none."),
        (["--optimizer", "None"], "optimizer: got 'None', expected one of adamw, adam, sgd, sgd-momentum or none."),
        (["--dtype", "float12"], "dtype: got 'float12', expected one of float32, bfloat16, float16, float64."),
        (["--dtype", "int8"], "dtype: got 'int8', expected one of float32, bfloat16, float16, float64."),
        (["--device", "tpu"], "device"),
        (["--architecture", "BertModel"], "architecture"),
        (["--model", "/nowhere/at/all"], "no such directory"),
    ],
    ids=lambda value: "=".join(value) if isinstance(value, list) else "",
)
def test_what_is_wrong_is_one_line(arguments, message):
    result = call("--length", 100, *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--memory", "plenty"], "memory: got 'plenty'"),
        (["--length", "0"], "--length: got '0', expected one number, 1 or more"),
    ],
    ids=["memory", "length"],
)
def test_what_is_wrong_has_the_name_of_its_option(arguments, message):
    result = call(*arguments)
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())
