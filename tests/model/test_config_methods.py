"""Configurations as files of any name, changed in several fields at once, and under older names."""

import json

import pytest
import torch
from model_cases import ours

from longformer_triton import LongformerConfig
from longformer_triton.model import CheckpointError


def test_files_of_any_name_hold_a_configuration(tmp_path):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    config = LongformerConfig(hidden_size=24, num_attention_heads=2, dtype="bfloat16")
    config.to_json_file(tmp_path / "mine.json")
    assert LongformerConfig.from_json_file(tmp_path / "mine.json") == config
    theirs = transformers.LongformerConfig.from_json_file(tmp_path / "mine.json")
    assert (theirs.hidden_size, theirs.model_type) == (24, "longformer")
    theirs.to_json_file(tmp_path / "theirs.json", use_diff=False)
    assert LongformerConfig.from_json_file(tmp_path / "theirs.json").hidden_size == 24
    config.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text()) == json.loads((tmp_path / "mine.json").read_text())


@pytest.mark.parametrize("dtype", [None, "dtype", "torch_dtype"])
def test_what_is_no_field_comes_back_on_request(tmp_path, dtype):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "longformer", "note": "kept"}))
    without_effect = {"trust_remote_code": True, "attn_implementation": "eager", "proxies": None, "revision": "main"}
    fields = {"hidden_size": 24, "num_attention_heads": 2, "note": "mine", "num_labels": 3}
    fields |= {} if dtype is None else {dtype: torch.float16}
    given = {**fields, **without_effect, "foo": False, "bar": None}
    config, unused = LongformerConfig.from_pretrained(tmp_path, return_unused_kwargs=True, **given)
    _, theirs = transformers.LongformerConfig.from_pretrained(tmp_path, return_unused_kwargs=True, **given)
    assert unused == theirs
    assert unused == {"foo": False, "bar": None} | ({} if dtype is None else {"dtype": torch.float16})
    assert config == LongformerConfig(**fields)
    assert LongformerConfig.from_pretrained(tmp_path, **given) == LongformerConfig(**fields, foo=False, bar=None)
    assert LongformerConfig.from_dict({"foo": 1}, foo=2, bar=3, return_unused_kwargs=True)[1] == {"bar": 3}
    with pytest.raises(NotImplementedError, match=r"^gguf_file: got 'a.gguf', expected None"):
        LongformerConfig.from_pretrained(tmp_path, gguf_file="a.gguf")


def test_several_fields_are_set_together_or_not_at_all():
    config = LongformerConfig()
    config.update({"hidden_size": 24, "num_attention_heads": 2, "note": "kept"})
    assert (config.hidden_size, config.num_attention_heads, config.note) == (24, 2, "kept")
    config.update({"id2label": {"0": "neg", "1": "pos"}, "dtype": "bfloat16", "pruned_heads": {"0": [1]}})
    assert (config.id2label, config.label2id) == ({0: "neg", 1: "pos"}, {"neg": 0, "pos": 1})
    assert (config.dtype, config.pruned_heads) == (torch.bfloat16, {0: [1]})
    before = config.to_dict()
    with pytest.raises(ValueError, match="hidden_size: got 25 with 2 attention heads"):
        config.update({"vocab_size": 77, "hidden_size": 25, "other": 1})
    assert config.to_dict() == before


def test_files_of_other_models_are_refused_and_folders_left_alone(tmp_path):
    (tmp_path / "bert.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(CheckpointError, match="got model_type 'bert', expected one of longformer"):
        LongformerConfig.from_json_file(tmp_path / "bert.json")
    with pytest.raises(IsADirectoryError):
        LongformerConfig().to_json_file(tmp_path)
    with pytest.raises(TypeError, match="push_to_hubb: got an unexpected argument"):
        LongformerConfig().save_pretrained(tmp_path, push_to_hubb=False)
    assert [path.name for path in tmp_path.iterdir()] == ["bert.json"]


@pytest.mark.parametrize("given", [None, 3, b"folder"], ids=repr)
def test_what_is_no_path_is_refused_by_the_name_of_the_argument(given):
    model = ours("LongformerModel")
    for write, name in (
        (model.save_pretrained, "save_directory"), (model.config.save_pretrained, "save_directory"),
        (model.config.to_json_file, "json_file_path"), (LongformerConfig.from_json_file, "json_file"),
    ):  # fmt: skip
        with pytest.raises(TypeError, match=f"^{name}: got {given!r}, expected a path"):
            write(given)


def test_the_dtype_has_an_older_name():
    config = LongformerConfig(torch_dtype="float16")
    assert config.torch_dtype == config.dtype == torch.float16
    config.torch_dtype = "bfloat16"
    assert config.dtype == torch.bfloat16
    assert "torch_dtype" not in config.to_dict()
