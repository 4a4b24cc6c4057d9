"""Checkpoints that are cut, corrupt, incomplete, malicious or of another model: refused, with the name of the file."""

import errno
import json
import os
import pathlib
import pickle
import re

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from model_cases import ours
from safetensors.torch import save_file

import longformer_triton
from longformer_triton import LongformerForMaskedLM, LongformerModel
from longformer_triton.model import CheckpointError, files, loading

TENSORS = {f"layer.{number}": torch.arange(6.0).reshape(2, 3) + number for number in range(3)}
# id: (name, what writes it)
FORMATS = {
    "safetensors": ("model.safetensors", lambda path: save_file(TENSORS, path)),
    "bin": ("pytorch_model.bin", lambda path: torch.save(TENSORS, path)),
    "bin_before_torch_1.6": (
        "pytorch_model.bin",
        lambda path: torch.save(TENSORS, path, _use_new_zipfile_serialization=False),
    ),
}


@pytest.fixture(scope="module", params=FORMATS.values(), ids=FORMATS)
def intact(request, tmp_path_factory):
    """(file, content) of three tensors, written once: torch puts addresses of memory into its older format."""
    file, write = request.param
    path = tmp_path_factory.mktemp("intact") / file
    write(path)
    assert files.read_weights(path.parent).keys() == TENSORS.keys()
    return file, path.read_bytes()


def refused(folder, file, words="", *, model=LongformerModel):
    """Loading is refused by a message with the file's name and the words; its exception."""
    with pytest.raises(CheckpointError, match=rf"(?s){re.escape(str(folder / file))}: .*{words}") as refusal:
        model.from_pretrained(folder)
    return refusal.value


@pytest.fixture
def whole(tmp_path):
    """A checkpoint in one file."""
    ours("LongformerModel").save_pretrained(tmp_path)
    return tmp_path


@pytest.fixture
def sharded(tmp_path):
    """A checkpoint in several shards."""
    ours("LongformerModel").save_pretrained(tmp_path, max_shard_size="4KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    return tmp_path


@pytest.fixture
def index(sharded):
    """The path of a sharded checkpoint's index."""
    return sharded / "model.safetensors.index.json"


# weights


def outcome(folder):
    """The tensors of a folder, or the message that refuses them."""
    try:
        return files.read_weights(folder)
    except CheckpointError as error:
        return str(error)


@given(data=st.data())
def test_a_file_cut_at_any_byte_is_refused(intact, tmp_path_factory, data):
    file, content = intact
    path = tmp_path_factory.mktemp("cut") / file
    path.write_bytes(content[: data.draw(st.integers(0, len(content) - 1), label="kept bytes")])
    with pytest.raises(CheckpointError, match=re.escape(str(path))):
        files.read_weights(path.parent)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@given(place=st.integers(0, 899), value=st.integers(0, 255))
@example(place=0, value=ord("q")).via("a pickle that reads from its empty stack")
def test_a_file_with_a_changed_byte_gives_tensors_or_is_refused(intact, tmp_path_factory, place, value):
    """Never another exception, which would say neither which file it is nor that it is damaged."""
    file, content = intact
    path = tmp_path_factory.mktemp("changed") / file
    # The structure is at the beginning of every format, and at the end of a zip.
    places = [*range(min(600, len(content))), *range(max(600, len(content) - 300), len(content))]
    changed = bytearray(content)
    changed[places[place % len(places)]] = value
    path.write_bytes(changed)
    got = outcome(path.parent)
    if isinstance(got, str):
        assert str(path) in got
    else:
        assert all(isinstance(tensor, torch.Tensor) for tensor in got.values())


@pytest.mark.parametrize(
    "content", [b"", b"<!DOCTYPE html>", b"version https://git-lfs.github.com/spec/v1\n"], ids=["empty", "html", "lfs"]
)
@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_what_was_downloaded_in_place_of_a_file_is_refused(whole, file, content):
    (whole / "model.safetensors").unlink()
    (whole / file).write_bytes(content)
    refused(whole, file)


def test_a_file_that_is_cut_is_refused_by_the_model(whole):
    path = whole / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    refused(whole, "model.safetensors", "truncated or damaged")


def test_a_checkpoint_without_weights_is_refused(whole):
    (whole / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=rf"{whole.name}: holds neither model\.safetensors nor pytorch_model\.bin"):
        LongformerModel.from_pretrained(whole)


def test_a_directory_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere: no such directory"):
        LongformerModel.from_pretrained(tmp_path / "nowhere")


def test_a_file_in_place_of_the_directory_is_refused(whole):
    with pytest.raises(CheckpointError, match=r"model\.safetensors: is a file, expected the directory"):
        LongformerModel.from_pretrained(whole / "model.safetensors")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"state_dict": TENSORS}, "holds a dict, expected a mapping of names to tensors"),
        ([torch.ones(2)], "holds a list"),
        (torch.ones(2), "holds a Tensor"),
        ({"epoch": 3}, "holds a dict"),
    ],
    ids=["nested", "list", "tensor", "numbers"],
)
def test_a_pickle_of_no_state_is_refused(whole, content, words):
    (whole / "model.safetensors").unlink()
    torch.save(content, whole / "pytorch_model.bin")
    refused(whole, "pytorch_model.bin", words)


class Evil:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return pathlib.Path.touch, (self.path,)


@pytest.mark.parametrize(
    "save",
    [
        torch.save,
        lambda content, path: torch.save(content, path, _use_new_zipfile_serialization=False),
        lambda content, path: path.write_bytes(pickle.dumps(content, protocol=2)),
    ],
    ids=["zip", "before_torch_1.6", "plain_pickle"],
)
@pytest.mark.parametrize("in_a_shard", [False, True], ids=["whole", "shard"])
def test_a_pickle_that_wants_to_execute_code_is_not_executed(whole, save, in_a_shard):
    (whole / "model.safetensors").unlink()
    trace = whole / "executed"
    file = "pytorch_model-00001-of-00001.bin" if in_a_shard else "pytorch_model.bin"
    if in_a_shard:
        (whole / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {"layer.0": file}}))
    save({**TENSORS, "evil": Evil(trace)}, whole / file)
    refused(whole, file, "execute code")
    assert not trace.exists()
    # Without the refusal it would have been: the test sees something.
    torch.load(whole / file, weights_only=False) if save is torch.save else pickle.loads(pickle.dumps(Evil(trace)))
    assert trace.exists()


# shards


@pytest.mark.parametrize("damage", ["removed", "cut"])
def test_a_damaged_shard_is_refused_by_its_own_name(sharded, damage):
    shard = sorted(sharded.glob("*.safetensors"))[1]
    if damage == "cut":
        shard.write_bytes(shard.read_bytes()[:100])
    else:
        shard.unlink()
    error = refused(sharded, shard.name)
    assert isinstance(error, FileNotFoundError) == (damage == "removed")


def test_an_index_that_names_an_absent_shard_is_refused(index):
    content = json.loads(index.read_text())
    content["weight_map"]["embeddings.LayerNorm.bias"] = "model-00099-of-00099.safetensors"
    index.write_text(json.dumps(content))
    refused(index.parent, "model-00099-of-00099.safetensors", "index")


def test_an_index_that_names_an_absent_tensor_is_refused(index):
    content = json.loads(index.read_text())
    content["weight_map"]["embeddings.forgotten"] = content["weight_map"]["embeddings.LayerNorm.bias"]
    index.write_text(json.dumps(content))
    refused(index.parent, index.name, r"embeddings\.forgotten")


@pytest.mark.parametrize("place", ["../model.safetensors", "/model.safetensors", "below/model.safetensors"])
def test_an_index_that_leads_out_of_its_directory_is_refused(index, place):
    index.write_text(json.dumps({"weight_map": {"embeddings.LayerNorm.bias": place}}))
    refused(index.parent, index.name, re.escape(repr(place)))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "no JSON"),
        ("[]", "list, expected a JSON object"),
        ("{}", "no weight_map"),
        ('{"weight_map": {}}', "no weight_map"),
        ('{"weight_map": ["a"]}', "no weight_map"),
    ],
    ids=["cut", "array", "nothing", "empty_map", "list"],
)
def test_an_index_that_is_none_is_refused(index, content, words):
    index.write_text(content)
    refused(index.parent, index.name, words)


def test_shards_without_their_index_are_refused(index):
    index.unlink()
    with pytest.raises(FileNotFoundError, match="with an index"):
        LongformerModel.from_pretrained(index.parent)


# config.json


@pytest.mark.parametrize("content", [b"{", b"", b"\x80\x02}", b"null"], ids=["cut", "empty", "pickle", "null"])
def test_a_configuration_that_is_none_is_refused(whole, content):
    (whole / "config.json").write_bytes(content)
    refused(whole, "config.json", "JSON")


def test_a_missing_configuration_is_refused(whole):
    (whole / "config.json").unlink()
    assert isinstance(refused(whole, "config.json"), FileNotFoundError)


def test_another_type_of_model_is_refused(whole):
    (whole / "config.json").write_text('{"model_type": "t5"}')
    refused(whole, "config.json", "'t5'")


@pytest.mark.parametrize("field", ["hidden_size", "vocab_size", "max_position_embeddings", "intermediate_size"])
def test_a_configuration_that_lacks_a_size_does_not_fit_the_weights(whole, field):
    """Its default is not what the tensors have; both shapes are shown."""
    path = whole / "config.json"
    path.write_text(json.dumps({name: value for name, value in json.loads(path.read_text()).items() if name != field}))
    with pytest.raises(CheckpointError, match=rf"(?s){whole.name}: .*\(.*there, .*here\)"):
        LongformerModel.from_pretrained(whole)


@pytest.mark.parametrize(
    ("field", "value", "exception"),
    [("hidden_size", "twelve", TypeError), ("hidden_act", "swish9", ValueError), ("attention_window", [4, 7], ValueError)],
    ids=["hidden_size", "hidden_act", "attention_window"],
)
def test_a_configuration_with_an_impossible_value_is_refused_by_the_fields_name(whole, field, value, exception):
    path = whole / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), field: value}))
    with pytest.raises(exception, match=rf"^{field}: got"):
        LongformerModel.from_pretrained(whole)


# nothing half-loaded


@pytest.mark.parametrize("damage", ["a_shard", "a_shape"])
def test_no_parameter_is_allocated_before_everything_is_known_to_fit(sharded, monkeypatch, damage):
    """A model that does not load leaves nothing behind, and costs nothing."""

    def allocates(*arguments):
        pytest.fail("parameters were put in place")

    monkeypatch.setattr(loading, "_fill", allocates)
    options = {}
    if damage == "a_shard":
        sorted(sharded.glob("*.safetensors"))[-1].unlink()
    else:
        options["vocab_size"] = 50
    with pytest.raises(CheckpointError):
        LongformerForMaskedLM.from_pretrained(sharded, **options)


def test_the_exception_is_public():
    assert longformer_triton.model.CheckpointError is CheckpointError
    assert issubclass(CheckpointError, ValueError)


# permissions


def forbid(monkeypatch, file):
    """As for a user who may not read the files of that name; root may."""
    opened = pathlib.Path.open

    def refuse(path, *arguments, **options):
        if path.name == file:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return opened(path, *arguments, **options)

    monkeypatch.setattr(pathlib.Path, "open", refuse)


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_files_that_may_not_be_read_are_named(whole, monkeypatch, file):
    """safetensors says of such a file that there is none."""
    forbid(monkeypatch, file)
    words = "Permission denied" if file == "config.json" else "may not be read: get the permission"
    assert not isinstance(refused(whole, file, words), FileNotFoundError)


def test_a_folder_that_may_not_be_read_is_named(whole, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    refused(whole, "", "may not be read: get the permission, or name another directory")
