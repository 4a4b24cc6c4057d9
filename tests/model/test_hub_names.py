"""Names on the hub, without a network: a stand-in takes the place of huggingface_hub."""

import fnmatch
import importlib.machinery
import importlib.util
import json
import sys
import types

import pytest
import torch
from model_cases import ours

from longformer_triton import LongformerConfig, LongformerForMaskedLM, LongformerModel, convert_to_longformer
from longformer_triton.model import CheckpointError

NAME = "allenai/longformer-base-4096"


@pytest.fixture
def hub(monkeypatch):
    """What is asked of the hub, and what it answers: a directory, or an exception of the hub's own."""

    def snapshot_download(name, **options):
        answer.calls.append((name, options))
        if isinstance(answer.gives, Exception):
            raise answer.gives
        return str(answer.gives)

    module, errors = types.ModuleType("huggingface_hub"), types.ModuleType("huggingface_hub.errors")
    module.__spec__ = importlib.machinery.ModuleSpec("huggingface_hub", None)
    module.snapshot_download = snapshot_download
    for name, base in (("HfHubHTTPError", OSError), ("LocalEntryNotFoundError", OSError), ("HFValidationError", ValueError)):
        setattr(errors, name, type(name, (base,), {}))
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    monkeypatch.setitem(sys.modules, "huggingface_hub.errors", errors)
    answer = types.SimpleNamespace(calls=[], gives=None, errors=errors)
    return answer


def test_a_name_is_downloaded_and_loads(hub, tmp_path):
    model = ours("LongformerModel")
    model.save_pretrained(tmp_path)
    hub.gives = tmp_path
    loaded = LongformerModel.from_pretrained(NAME)
    torch.testing.assert_close(loaded.state_dict(), model.state_dict(), rtol=0, atol=0)
    assert {name for name, _ in hub.calls} == {NAME}


@pytest.mark.parametrize(
    ("file", "wanted"),
    [
        ("config.json", True),
        ("model.safetensors", True),
        ("model-00001-of-00002.safetensors", True),
        ("model.safetensors.index.json", True),
        ("tf_model.h5", False),
        ("flax_model.msgpack", False),
        ("rust_model.ot", False),
        ("onnx/model.onnx", False),
        ("modeling_custom.py", False),
    ],
)
def test_only_files_that_something_here_reads_are_downloaded(hub, tmp_path, file, wanted):
    """A repository also holds the weights of other frameworks, and code."""
    ours("LongformerModel").save_pretrained(tmp_path)
    hub.gives = tmp_path
    LongformerModel.from_pretrained(NAME)
    patterns = [pattern for _, options in hub.calls for pattern in options["allow_patterns"]]
    assert any(fnmatch.fnmatch(file, pattern) for pattern in patterns) == wanted


def test_options_of_the_hub_go_to_the_hub_and_nowhere_else(hub, tmp_path):
    ours("LongformerModel").save_pretrained(tmp_path)
    hub.gives = tmp_path
    options = {
        "revision": "main",
        "token": "secret",
        "cache_dir": "somewhere",
        "local_files_only": True,
        "force_download": False,
    }
    loaded = LongformerForMaskedLM.from_pretrained(NAME, **options, hidden_dropout_prob=0.5)
    for _, got in hub.calls:
        assert {name: got[name] for name in options} == options
        assert "hidden_dropout_prob" not in got
    assert loaded.config.hidden_dropout_prob == 0.5
    assert not options.keys() & loaded.config.to_dict().keys()


def test_a_conversion_downloads_the_tokenizer_too(hub, tmp_path):
    """SentencePiece's file is neither JSON nor text; and options of the hub go there alone."""
    ours("LongformerModel").save_pretrained(tmp_path)
    entries = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(
        json.dumps({**entries, "model_type": "xlm-roberta", "architectures": ["XLMRobertaModel"]})
    )
    hub.gives = tmp_path
    assert type(convert_to_longformer(NAME, max_positions=200, revision="main")) is LongformerModel
    patterns = [pattern for _, options in hub.calls for pattern in options["allow_patterns"]]
    for file in ("sentencepiece.bpe.model", "vocab.json", "merges.txt", "tokenizer_config.json", "model.safetensors"):
        assert any(fnmatch.fnmatch(file, pattern) for pattern in patterns), file
    assert all(options["revision"] == "main" for _, options in hub.calls)


@pytest.mark.parametrize("option", ["revision", "token", "cache_dir"])
def test_a_configuration_takes_options_of_the_hub_too(hub, tmp_path, option):
    """Kept as an unknown key, a token would be written into the next config.json, and a revision would be passed over."""
    LongformerConfig().save_pretrained(tmp_path)
    hub.gives = tmp_path
    config = LongformerConfig.from_pretrained(NAME, **{option: "secret"})
    assert "secret" not in config.to_json_string()
    assert hub.calls[0][1].get(option) == "secret"


def test_a_directory_of_that_name_goes_before_the_hub(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ours("LongformerModel").save_pretrained(NAME)
    LongformerModel.from_pretrained(NAME)
    assert hub.calls == []


@pytest.mark.parametrize("error", ["HfHubHTTPError", "LocalEntryNotFoundError", "OSError"])
def test_what_the_hub_does_not_give_is_refused_with_the_name(hub, error):
    hub.gives = OSError("no route") if error == "OSError" else getattr(hub.errors, error)("no route")
    with pytest.raises(FileNotFoundError, match=rf"^{NAME}: .*hub.*no route") as refusal:
        LongformerModel.from_pretrained(NAME)
    assert isinstance(refusal.value, CheckpointError)


def test_a_snapshot_without_weights_is_refused(hub, tmp_path):
    LongformerConfig().save_pretrained(tmp_path)
    hub.gives = tmp_path
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors.*pytorch_model\.bin"):
        LongformerModel.from_pretrained(NAME)


@pytest.mark.parametrize("name", ["a/b/c", "./nowhere", "../nowhere", "/nowhere/at/all", "two words", "a\\b"])
def test_what_can_be_no_name_never_reaches_the_hub(hub, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError):
        LongformerModel.from_pretrained(name)
    assert hub.calls == []


def test_without_the_hubs_package_the_error_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match=rf"^{NAME}: no such directory.*huggingface_hub.*pip install"):
        LongformerModel.from_pretrained(NAME)
