"""Saving over an old checkpoint: whatever breaks on the way, what loads is all old or all new; and nothing stale is left."""

import json
import os
import pathlib

import pytest
import torch
from model_cases import ours

from longformer_triton import LongformerConfig, LongformerModel
from longformer_triton.model import files

SIZES = {"whole": "5GB", "shards": "4KB"}
from_size = pytest.mark.parametrize("before", SIZES)
to_size = pytest.mark.parametrize("after", SIZES)


class CrashError(BaseException):
    """Like KeyboardInterrupt, no Exception that code on the way might take for its own."""


def filled():
    """A model of which every parameter differs from every other model's."""
    model = ours("LongformerModel")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    return model


def crash():
    raise CrashError


def crashing(function, call, end=crash):
    """``function`` until its ``call``-th call, which is the end; counted from 1."""
    calls = 0

    def wrapped(*arguments, **options):
        nonlocal calls
        calls += 1
        if calls == call:
            end()
        return function(*arguments, **options)

    return wrapped


def crash_while_saving(monkeypatch, place, call, model, folder, **options):
    """Whether saving crashed; False if it has fewer calls."""
    owner, name = place
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, crashing(getattr(owner, name), call))
        try:
            model.save_pretrained(folder, **options)
        except CrashError:
            return True
    return False


def loads_as(folder, *models):
    """The places of those ``models`` whose state loads from the folder."""
    state = LongformerModel.from_pretrained(folder).state_dict()
    return [
        place
        for place, model in enumerate(models)
        if all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    ]


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@from_size
@to_size
@pytest.mark.parametrize("call", [1, 2], ids=["first_file", "second_file"])
@pytest.mark.parametrize("place", [(files, "save_file"), (pathlib.Path, "write_text"), (os, "fsync")], ids=lambda it: it[1])
def test_a_crash_while_writing_leaves_the_old_checkpoint_as_it_was(tmp_path, monkeypatch, before, after, place, call):
    old, new = filled(), filled()
    old.save_pretrained(tmp_path, max_shard_size=SIZES[before])
    content = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    if not crash_while_saving(monkeypatch, place, call, new, tmp_path, max_shard_size=SIZES[after]):
        assert loads_as(tmp_path, old, new) == [1], "no crash, and yet not saved"
        return
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == content


@from_size
@to_size
@pytest.mark.parametrize("place", [(pathlib.Path, "replace"), (pathlib.Path, "unlink")], ids=lambda it: it[1])
def test_a_crash_while_files_take_their_places_leaves_all_old_or_all_new(tmp_path, monkeypatch, before, after, place):
    """Shards of two checkpoints have the same names: a mixture of both would load, and be neither."""
    old, new = filled(), filled()
    call, crashed = 0, True
    while crashed:
        call += 1
        folder = tmp_path / str(call)
        old.save_pretrained(folder, max_shard_size=SIZES[before])
        crashed = crash_while_saving(monkeypatch, place, call, new, folder, max_shard_size=SIZES[after])
        found = loads_as(folder, old, new)
        assert found in ([0], [1]), f"after a crash at call {call} of {place[1]} a mixture loads"
    assert call > 1
    assert found == [1]


def test_a_crash_in_the_first_save_leaves_no_checkpoint(tmp_path, monkeypatch):
    assert crash_while_saving(monkeypatch, (files, "save_file"), 1, filled(), tmp_path)
    assert names(tmp_path) == []


def test_a_model_that_cannot_be_saved_leaves_the_old_checkpoint(tmp_path):
    """A function as activation cannot be written to JSON, parameters on no device not at all."""
    old = filled()
    old.save_pretrained(tmp_path)
    content = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    unnamed = filled()
    unnamed.config.hidden_act = torch.tanh
    with pytest.raises(ValueError, match="hidden_act"):
        unnamed.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"^state_dict: got embeddings.word_embeddings.weight on meta, .* from_pretrained"):
        filled().to("meta").save_pretrained(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == content


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (3, "^state_dict: got int, expected a mapping"),
        ([torch.zeros(2)], "^state_dict: got list, expected a mapping"),
        ({"a": 3}, r"^state_dict: got \{'a': int\}, expected a mapping"),
        ({1: torch.zeros(2)}, r"^state_dict: got \{1: Tensor\}, expected a mapping"),
    ],
    ids=["number", "list", "no_tensor", "no_name"],
)
def test_a_state_is_a_mapping_of_names_to_tensors(tmp_path, state, message):
    with pytest.raises(TypeError, match=message):
        filled().save_pretrained(tmp_path, state_dict=state)
    assert not list(tmp_path.iterdir())


def test_a_crash_leaves_the_old_configuration(tmp_path, monkeypatch):
    LongformerConfig(hidden_size=24).save_pretrained(tmp_path)
    monkeypatch.setattr(os, "fsync", crashing(os.fsync, 1))
    with pytest.raises(CrashError):
        LongformerConfig(hidden_size=36).save_pretrained(tmp_path)
    assert names(tmp_path) == ["config.json"]
    assert LongformerConfig.from_pretrained(tmp_path).hidden_size == 24


def test_a_file_has_its_name_only_when_all_are_complete_on_disk(tmp_path, monkeypatch):
    """Renamed before it is flushed, a file could be empty after a power cut."""
    steps = []
    fsync, replace = os.fsync, pathlib.Path.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (steps.append("flush"), fsync(handle))[1])
    monkeypatch.setattr(pathlib.Path, "replace", lambda path, to: (steps.append(pathlib.Path(to).name), replace(path, to))[1])
    filled().save_pretrained(tmp_path)
    expected = ("config.json", "model.safetensors")
    first = min(steps.index(name) for name in expected)
    assert steps[:first].count("flush") >= len(expected)
    assert names(tmp_path) == sorted(expected)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
@from_size
@to_size
@pytest.mark.parametrize("place", [(pathlib.Path, "replace"), (pathlib.Path, "unlink")], ids=lambda it: it[1])
def test_the_death_of_the_process_leaves_all_old_or_all_new(tmp_path, monkeypatch, before, after, place):
    """As by SIGKILL or a power cut: no ``finally`` and no ``except`` gets to tidy up."""
    old, new = filled(), filled()
    owner, name = place
    call, died = 0, True
    while died:
        call += 1
        folder = tmp_path / str(call)
        old.save_pretrained(folder, max_shard_size=SIZES[before])
        child = os.fork()
        if child == 0:
            dies = crashing(getattr(owner, name), call, lambda: os._exit(9))
            setattr(owner, name, dies)
            new.save_pretrained(folder, max_shard_size=SIZES[after])
            os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert status in (0, 9)
        died = status == 9
        assert loads_as(folder, old, new) in ([0], [1]), f"after death at call {call} of {name} a mixture loads"
        # What the dead process left is no obstacle to the next save.
        new.save_pretrained(folder, max_shard_size=SIZES[after])
        assert loads_as(folder, old, new) == [1]


# what an earlier save left

STALE = [
    "model.safetensors",
    "model.safetensors.index.json",
    "model-00001-of-00099.safetensors",
]
KEPT = ["tokenizer.json", "vocab.json", "README.md", "optimizer.bin", "training_args.bin", "adapter_model.safetensors"]


@to_size
def test_weights_of_an_earlier_save_are_removed_and_everything_else_stays(tmp_path, after):
    for name in STALE + KEPT:
        (tmp_path / name).write_text("of an earlier save")
    model = filled()
    model.save_pretrained(tmp_path, max_shard_size=SIZES[after])
    left = [name for name in names(tmp_path) if (tmp_path / name).read_bytes() == b"of an earlier save"]
    assert left == sorted(KEPT)
    assert loads_as(tmp_path, model) == [0]


@from_size
@to_size
def test_every_file_left_belongs_to_the_last_save(tmp_path, before, after):
    old, new = filled(), filled()
    for size in (SIZES[before], "2KB" if before == "shards" else "5GB"):
        old.save_pretrained(tmp_path, max_shard_size=size)
    new.save_pretrained(tmp_path, max_shard_size=SIZES[after])
    if after == "whole":
        expected = {"model.safetensors"}
    else:
        index = tmp_path / "model.safetensors.index.json"
        expected = {index.name, *json.loads(index.read_text())["weight_map"].values()}
    assert set(names(tmp_path)) == {"config.json", *expected}
    assert loads_as(tmp_path, old, new) == [1]


def test_a_file_in_the_way_is_named(tmp_path):
    (tmp_path / "mine").write_text("mine")
    for thing in (ours("LongformerModel"), ours("LongformerModel").config):
        with pytest.raises(ValueError, match=r"directory: got .*mine, which is a file, expected a folder"):
            thing.save_pretrained(tmp_path / "mine")
    assert (tmp_path / "mine").read_text() == "mine"
