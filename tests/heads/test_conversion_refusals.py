"""What is refused, before anything is written; where a result may go; and what is there after a crash."""

import json
import os
import pathlib
import shutil

import pytest
import torch
from conversion_cases import KINDS, saved
from safetensors.torch import load_file, save_file

from longformer_triton import LongformerForMaskedLM, LongformerModel, convert_to_longformer
from longformer_triton.model import CheckpointError, conversion_files, files

transformers = pytest.importorskip("transformers", reason="transformers is not installed")
pytestmark = pytest.mark.usefixtures("one_thread")

SIZE = {"max_positions": 100, "attention_window": 16}


class CrashError(BaseException):
    """Like KeyboardInterrupt, no Exception that code on the way might take for its own."""


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """{kind: a folder that must not be changed}."""
    root = tmp_path_factory.mktemp("sources")
    for kind in KINDS:
        torch.manual_seed(7)
        saved(root / kind, kind, "ForMaskedLM")
    return {kind: root / kind for kind in KINDS}


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def edited(source, folder, **entries):
    """A copy of a source with other entries in its config.json; ... removes one."""
    shutil.copytree(source, folder)
    kept = {**json.loads((folder / "config.json").read_text()), **entries}
    (folder / "config.json").write_text(json.dumps({name: value for name, value in kept.items() if value is not ...}))
    return folder


ENTRIES = {
    "distilbert": (
        {"model_type": "distilbert"},
        CheckpointError,
        "got model_type 'distilbert', expected one of roberta, xlm-r",
    ),
    "albert": ({"model_type": "albert"}, CheckpointError, "got model_type 'albert'"),
    "nothing": ({"model_type": ...}, CheckpointError, "got model_type None"),
    "longformer": ({"model_type": "longformer"}, CheckpointError, "is a Longformer already: .*resize_position_embeddings"),
    "decoder": ({"is_decoder": True}, NotImplementedError, "got is_decoder true, expected an encoder"),
    "cross": ({"add_cross_attention": True}, NotImplementedError, "got add_cross_attention true"),
    "relative": (
        {"position_embedding_type": "relative_key_query"},
        NotImplementedError,
        "got .*'relative_key_query', .*'absolute'",
    ),
    "activation": ({"hidden_act": "mish"}, (ValueError, NotImplementedError), "hidden_act: got 'mish'"),
    "heads": ({"num_attention_heads": 5}, ValueError, "hidden_size: got 12 with 5 attention heads, expected a multiple"),
    "layers": ({"num_hidden_layers": 3}, CheckpointError, "parameters of the encoder are missing, such as .*layer.2"),
    "no_layers": ({"num_hidden_layers": 0}, ValueError, "num_hidden_layers: got 0"),
    "words": (
        {"vocab_size": 41},
        CheckpointError,
        r"another shape than its config.json says: .*\(40, 12\) instead of \(41, 12\)",
    ),
    "positions": ({"max_position_embeddings": 30}, CheckpointError, "another shape .*position_embeddings.weight"),
    "padding": ({"pad_token_id": None}, TypeError, "pad_token_id: got None"),
    "dropout": ({"attention_probs_dropout_prob": 0.001}, ValueError, "attention_probs_dropout_prob: got 0.001"),
}


@pytest.mark.parametrize(("entries", "error", "words"), ENTRIES.values(), ids=ENTRIES)
@pytest.mark.parametrize("kind", ["roberta", "bert"])
def test_sources_that_cannot_become_a_longformer_are_refused_by_name(sources, tmp_path, kind, entries, error, words):
    source = edited(sources[kind], tmp_path / "source", **entries)
    with pytest.raises(error, match=words):
        convert_to_longformer(source, tmp_path / "result", **SIZE)
    assert not (tmp_path / "result").exists()


def test_heads_wider_than_the_kernels_take_are_refused(tmp_path):
    saved(tmp_path / "source", "roberta", hidden_size=514, num_attention_heads=2)
    with pytest.raises(ValueError, match="num_attention_heads: got 2 of 257 dimensions each, expected at most 256"):
        convert_to_longformer(tmp_path / "source", tmp_path / "result", **SIZE)
    assert not (tmp_path / "result").exists()


def test_a_head_that_would_compute_something_else_is_refused(tmp_path):
    """BERT's predicts words with the encoder's activation, Longformer's always with GELU."""
    saved(tmp_path / "source", "bert", "ForMaskedLM", hidden_act="relu")
    with pytest.raises(
        NotImplementedError, match=r"hidden_act: got 'relu' in the head of a BERT.*architecture='LongformerModel'"
    ):
        convert_to_longformer(tmp_path / "source", tmp_path / "result", **SIZE)
    assert not (tmp_path / "result").exists()
    assert type(convert_to_longformer(tmp_path / "source", architecture="LongformerModel", **SIZE)) is LongformerModel


ARGUMENTS = {
    "odd_window": ({"attention_window": 15}, ValueError, "attention_window: got 15, expected even numbers >= 2"),
    "no_window": ({"attention_window": 0}, ValueError, "attention_window: got 0"),
    "negative_window": ({"attention_window": -2}, ValueError, "attention_window: got -2"),
    "windows_of_three": ({"attention_window": [4, 4, 4]}, ValueError, "attention_window: got 3 values, .*2 layers"),
    "one_odd_window": ({"attention_window": [4, 5]}, ValueError, "attention_window: got 5"),
    "window_in_text": ({"attention_window": "512"}, TypeError, "attention_window: got '512'"),
    "fewer_positions": (
        {"max_positions": 23},
        ValueError,
        r"max_positions: got 23, expected at least \d+: \d rows of padding and the 24",
    ),
    "no_positions": ({"max_positions": 0}, ValueError, "max_positions: got 0"),
    "positions_in_text": ({"max_positions": "4k"}, TypeError, "max_positions: got '4k', expected an int"),
    "half_a_position": ({"max_positions": 99.5}, TypeError, "max_positions: got 99.5, expected an int"),
    "class": (
        {"architecture": "LongformerForCausalLM"},
        ValueError,
        "architecture: got 'LongformerForCausalLM', expected None or",
    ),
    "type": ({"dtype": "float31"}, ValueError, "dtype: got 'float31'"),
    "whole_numbers": ({"dtype": "int32"}, ValueError, "dtype: got torch.int32, expected a floating-point dtype"),
    "separator": ({"sep_token_id": -1}, ValueError, "sep_token_id: got -1"),
    "unknown": ({"hidden_size": 3}, TypeError, "hidden_size: got unexpected arguments"),
    "destination": ({"destination": 3}, TypeError, "destination: got 3, expected a directory"),
    "no_destination": ({"destination": ""}, TypeError, "destination: got '', expected a directory"),
}


@pytest.mark.parametrize(("arguments", "error", "words"), ARGUMENTS.values(), ids=ARGUMENTS)
@pytest.mark.parametrize("kind", ["roberta", "bert"])
def test_arguments_that_do_not_fit_are_refused_by_name(sources, tmp_path, kind, arguments, error, words):
    with pytest.raises(error, match=words):
        convert_to_longformer(sources[kind], **{"destination": tmp_path / "result", **SIZE, **arguments})
    assert not (tmp_path / "result").exists()


@pytest.mark.parametrize(("kind", "fewest"), [("roberta", 26), ("bert", 25)])
def test_the_source_s_own_number_of_positions_is_the_least(sources, kind, fewest):
    with pytest.raises(ValueError, match=f"max_positions: got {fewest - 1}, expected at least {fewest}"):
        convert_to_longformer(sources[kind], max_positions=fewest - 1)
    assert convert_to_longformer(sources[kind], max_positions=fewest).config.max_position_embeddings == fewest


@pytest.mark.parametrize("damage", ["no_config", "no_weights", "cut_off", "no_tensor_of_it"])
def test_damaged_sources_are_refused(sources, tmp_path, damage):
    source = edited(sources["roberta"], tmp_path / "source")
    weights = source / "model.safetensors"
    if damage == "no_config":
        (source / "config.json").unlink()
    elif damage == "no_weights":
        weights.unlink()
    elif damage == "cut_off":
        weights.write_bytes(weights.read_bytes()[:-100])
    else:
        save_file({"other": torch.zeros(3)}, weights, {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"config\.json|model\.safetensors|none of its 0 tensors"):
        convert_to_longformer(source, tmp_path / "result", **SIZE)
    assert not (tmp_path / "result").exists()


def test_a_source_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such directory"):
        convert_to_longformer(tmp_path / "missing", tmp_path / "result")


# --- destinations -----------------------------------------------------------------------------------------------------


def test_the_source_is_no_destination(sources, tmp_path):
    source = edited(sources["roberta"], tmp_path / "source")
    (tmp_path / "link").symlink_to(source)
    before = content(source)
    for destination in (source, tmp_path / "link", tmp_path / "link" / ".." / "source"):
        with pytest.raises(CheckpointError, match=r"destination: .* is the source"):
            convert_to_longformer(source, destination, overwrite=True, **SIZE)
    assert content(source) == before


@pytest.mark.parametrize("overwrite", [False, True], ids=["careful", "overwrite"])
@pytest.mark.parametrize("holds", ["notes", "another_checkpoint", "longformer", "file"])
def test_what_would_be_lost_or_mixed_up_is_refused(sources, tmp_path, holds, overwrite):
    folder = tmp_path / "result"
    if holds == "another_checkpoint":
        shutil.copytree(sources["bert"], folder)
    elif holds == "longformer":
        convert_to_longformer(sources["bert"], folder, **SIZE)
    elif holds == "file":
        folder.write_text("dear diary")
    else:
        folder.mkdir()
        (folder / "notes.txt").write_text("dear diary")
    words = {
        "notes": "holds files that are no checkpoint .*notes.txt",
        "another_checkpoint": "holds a checkpoint of model_type 'bert'",
        "longformer": r"holds a Longformer already.*overwrite=True \(--overwrite\)",
        "file": "is a file, expected a directory",
    }
    if holds == "longformer" and overwrite:
        convert_to_longformer(sources["roberta"], folder, overwrite=True, **SIZE)
        assert json.loads((folder / "config.json").read_text())["pad_token_id"] == 1
        return
    before = folder.read_bytes() if folder.is_file() else content(folder)
    with pytest.raises(CheckpointError, match=words[holds]):
        convert_to_longformer(sources["roberta"], folder, overwrite=overwrite, **SIZE)
    assert (folder.read_bytes() if folder.is_file() else content(folder)) == before


def test_a_path_through_a_file_is_refused(sources, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"destination: .*file is a file"):
        convert_to_longformer(sources["roberta"], tmp_path / "file" / "result", **SIZE)


def test_empty_and_new_directories_are_taken(sources, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / ".gitkeep").write_text("")
    for folder in (tmp_path / "empty", tmp_path / "new" / "deep", os.fspath(tmp_path / "text")):
        convert_to_longformer(sources["roberta"], folder, **SIZE)
        assert LongformerForMaskedLM.from_pretrained(folder).config.max_position_embeddings == 100


def test_overwriting_leaves_nothing_stale(sources, tmp_path, monkeypatch):
    """Shards of the old weights, or a tokenizer of the old vocabulary, would be read instead of the new files."""
    folder = tmp_path / "result"
    source = edited(sources["bert"], tmp_path / "source")
    (source / "vocab.txt").write_text("[PAD]\n[SEP]\n")
    with monkeypatch.context() as patch:
        patch.setattr("longformer_triton.heads.conversion._MAX_SHARD_SIZE", "4KB")
        convert_to_longformer(source, folder, **SIZE)
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    (folder / "README.md").write_text("mine")
    (source / "vocab.txt").unlink()
    convert_to_longformer(source, folder, overwrite=True, **SIZE)
    assert sorted(content(folder)) == ["README.md", "config.json", "model.safetensors"]


# --- crashes ----------------------------------------------------------------------------------------------------------

PLACES = {
    "weights": (files, "save_file"),
    "text": (pathlib.Path, "write_text"),
    "copy": (shutil, "copyfile"),
    "flush": (os, "fsync"),
    "move": (pathlib.Path, "replace"),
}


@pytest.mark.parametrize(
    ("place", "call"), [(place, call) for place in PLACES for call in (1, 3) if (place, call) != ("weights", 3)]
)
@pytest.mark.parametrize("before", ["nothing", "longformer"])
def test_a_crash_leaves_the_destination_as_it_was(sources, tmp_path, monkeypatch, before, place, call):
    source, folder = edited(sources["bert"], tmp_path / "source"), tmp_path / "result"
    for name in ("vocab.txt", "special_tokens_map.json", "added_tokens.json"):
        (source / name).write_text("{}")
    if before == "longformer":
        convert_to_longformer(sources["roberta"], folder, **SIZE)
        old = content(folder)
    owner, name = PLACES[place]
    original, calls = getattr(owner, name), 0

    def crashing(*arguments, **options):
        nonlocal calls
        calls += 1
        if calls == call:
            raise CrashError
        return original(*arguments, **options)

    monkeypatch.setattr(owner, name, crashing)
    with pytest.raises(CrashError):
        convert_to_longformer(source, folder, overwrite=True, **SIZE)
    monkeypatch.undo()
    assert calls >= call
    assert content(folder) == (old if before == "longformer" else {})


def test_a_full_disk_leaves_nothing_behind(sources, tmp_path, monkeypatch):
    """Nor does anything else that goes wrong before the last file is complete."""

    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    source = edited(sources["bert"], tmp_path / "source")
    (source / "vocab.txt").write_text("[PAD]\n")
    monkeypatch.setattr(conversion_files.shutil, "copyfile", full)
    with pytest.raises(OSError, match="No space left"):
        convert_to_longformer(source, tmp_path / "result", **SIZE)
    assert content(tmp_path / "result") == {}
    monkeypatch.undo()
    convert_to_longformer(source, tmp_path / "result", **SIZE)
    assert len(load_file(tmp_path / "result" / "model.safetensors")) > 40
