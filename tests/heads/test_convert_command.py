"""The command that makes checkpoints long: what it writes and says, and errors as one line."""

import errno
import json

import pytest
import torch
from conversion_cases import saved
from text_cases import tokenizer_of
from typer.testing import CliRunner

from longformer_triton import LongformerForMaskedLM, LongformerForQuestionAnswering
from longformer_triton.cli import app

pytest.importorskip("transformers", reason="transformers is not installed")
pytestmark = pytest.mark.usefixtures("one_thread")


def run(*arguments):
    return CliRunner().invoke(app, ["convert", *map(str, arguments)])


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("source") / "roberta"
    size = len(tokenizer_of(["cat"], folder.parent / "vocabulary"))
    saved(folder, "roberta", "ForMaskedLM", vocab_size=size)
    for name in ("vocab.json", "merges.txt"):
        (folder / name).write_bytes((folder.parent / "vocabulary" / name).read_bytes())
    return folder


def test_a_checkpoint_is_made_long(source, tmp_path):
    found = run(source, tmp_path / "long", "--max-positions", "1k", "--attention-window", "8,16", "--dtype", "bfloat16")
    assert (found.exit_code, found.stderr) == (0, "")
    model = LongformerForMaskedLM.from_pretrained(tmp_path / "long", dtype="auto")
    assert (model.config.attention_window, model.config.max_position_embeddings) == ([8, 16], 1024)
    assert model.dtype == torch.bfloat16
    lines = found.stdout.splitlines()
    assert lines[0].startswith("model: RobertaForMaskedLM -> LongformerForMaskedLM, 2 layers")
    assert lines[1] == "positions: 24 learned ones tiled to 1022, the most tokens that a text may have"
    assert "tokenizer: merges.txt, tokenizer_config.json, vocab.json" in lines
    assert lines[-2:] == [
        f"written: {tmp_path / 'long'}",
        f"next: longformer-triton pretrain --model {tmp_path / 'long'} (--help has an example)",
    ]


def test_the_defaults_are_those_of_the_paper(source, tmp_path):
    assert run(source, tmp_path / "long").exit_code == 0
    entries = json.loads((tmp_path / "long" / "config.json").read_text())
    assert (entries["attention_window"], entries["max_position_embeddings"], entries["dtype"]) == ([512, 512], 4098, "float32")


def test_one_layer_is_singular(tmp_path):
    saved(tmp_path / "bert", "bert", num_hidden_layers=1)
    found = run(tmp_path / "bert", tmp_path / "long")
    assert found.exit_code == 0, found.output
    assert "-> LongformerModel, 1 layer, " in found.stdout


def test_a_destination_is_named(source, tmp_path, monkeypatch):
    """An empty variable of a shell is no name of the current directory."""
    monkeypatch.chdir(tmp_path)
    found = run(source, "")
    assert found.exit_code == 2
    assert "DST: got nothing, expected a new or empty directory" in " ".join(found.stderr.split())
    assert not list(tmp_path.iterdir())
    assert run(source, ".").exit_code == 0


def test_a_full_disk_is_one_line(source, tmp_path, monkeypatch):
    def refuse(*arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("longformer_triton.heads.conversion.read_weights", refuse)
    found = run(source, tmp_path / "long")
    assert (found.exit_code, found.stdout) == (2, "")
    told = "No space left on device; free some space, or name another place."
    assert found.stderr == f"error: destination: {tmp_path / 'long'}: {told}\n"


def test_a_tokenizer_that_ours_does_not_read_is_said_and_the_next_step_is_not(tmp_path):
    saved(tmp_path / "bert", "bert")
    (tmp_path / "bert" / "vocab.txt").write_text("[PAD]\n[SEP]\n")
    found = run(tmp_path / "bert", tmp_path / "long", "--architecture", "LongformerForQuestionAnswering")
    assert found.exit_code == 0
    assert "note: this package's LongformerTokenizer, a byte-level BPE, does not read" in found.stdout
    assert "new, to be trained: qa_outputs.weight, qa_outputs.bias" in found.stdout
    assert "pretrain" not in found.stdout
    assert LongformerForQuestionAnswering.from_pretrained(tmp_path / "long").config.sep_token_id == 1


def test_a_longformer_is_replaced_only_on_request(source, tmp_path):
    assert run(source, tmp_path / "long").exit_code == 0
    found = run(source, tmp_path / "long", "--max-positions", "99")
    assert found.exit_code == 2
    assert "--overwrite" in found.stderr
    assert run(source, tmp_path / "long", "--max-positions", "99", "--overwrite", "--sep-token-id", "7").exit_code == 0
    config = LongformerForMaskedLM.from_pretrained(tmp_path / "long").config
    assert (config.max_position_embeddings, config.sep_token_id) == (99, 7)


WRONG = {
    "odd_window": (["--attention-window", "5"], "attention_window: got 5, expected even numbers"),
    "too_many_windows": (["--attention-window", "4,4,4"], "attention_window: got 3 values"),
    "fewer_positions": (["--max-positions", "9"], "max_positions: got 9, expected at least 26"),
    "type": (["--dtype", "float31"], "dtype: got 'float31'"),
    "class": (["--architecture", "Longformer"], "architecture: got 'Longformer'"),
}


@pytest.mark.parametrize(("options", "words"), WRONG.values(), ids=WRONG)
def test_errors_are_one_line_and_status_2(source, tmp_path, options, words):
    found = run(source, tmp_path / "long", *options)
    assert (found.exit_code, found.stdout) == (2, "")
    (line,) = found.stderr.splitlines()
    assert line.startswith(f"error: {words}")
    assert not (tmp_path / "long").exists()


@pytest.mark.parametrize("options", [["--max-positions", "1,2"], ["--max-positions", "many"], ["--attention-window", "wide"]])
def test_what_is_no_number_is_refused(source, tmp_path, options):
    found = run(source, tmp_path / "long", *options)
    assert found.exit_code == 2
    assert options[0] in found.stderr
    assert not (tmp_path / "long").exists()


def test_a_source_that_is_not_there_is_an_error(tmp_path):
    found = run(tmp_path / "missing", tmp_path / "long")
    assert found.exit_code == 2
    assert found.stderr.startswith("error: ")
    assert "no such directory" in found.stderr


def test_stopping_it_says_what_is_left(source, tmp_path, monkeypatch):
    def stop(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("longformer_triton.heads.conversion.read_weights", stop)
    found = run(source, tmp_path / "long")
    assert (found.exit_code, found.stderr) == (130, f"stopped; {tmp_path / 'long'} is as it was.\n")
    assert not (tmp_path / "long").exists()
