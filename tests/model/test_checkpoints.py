"""Checkpoints that fit: to transformers and back, shards, older files, dtypes, devices, overrides, tied weights."""

import inspect
import json
import logging

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from model_cases import MODELS, TINY, Texts, filled, ours, theirs
from safetensors import safe_open

import longformer_triton
from longformer_triton import LongformerConfig, LongformerForMaskedLM, LongformerModel
from longformer_triton.model import files, loading

each_model = pytest.mark.parametrize("name", MODELS)
FORMATS = {
    "safetensors": {},
    "safetensors_shards": {"max_shard_size": "4KB"},
    "bin": {"safe_serialization": False},
    "bin_shards": {"safe_serialization": False, "max_shard_size": "4KB"},
}


@pytest.fixture(scope="module")
def transformers():
    return pytest.importorskip("transformers", reason="transformers is not installed")


def assert_same_state(got, expected):
    assert got.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(got[name], tensor, rtol=0, atol=0, msg=lambda why, name=name: f"{name}: {why}")


def weights_files(folder):
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".json" or "index" in path.name)


@each_model
@pytest.mark.parametrize("shards", [{}, {"max_shard_size": "4KB"}], ids=["whole", "shards"])
def test_transformers_loads_what_was_saved_here(transformers, tmp_path, name, shards):
    model = filled(ours(name))
    model.save_pretrained(tmp_path, **shards)
    loaded, info = getattr(transformers, name).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert_same_state(loaded.state_dict(), model.state_dict())


@each_model
@pytest.mark.parametrize("options", FORMATS.values(), ids=FORMATS)
def test_what_transformers_saved_loads_here_without_a_word(transformers, tmp_path, caplog, name, options):
    original = filled(theirs(name))
    original.save_pretrained(tmp_path, **options)
    assert (len(weights_files(tmp_path)) > 2) == ("max_shard_size" in options)
    caplog.clear()
    caplog.set_level(logging.WARNING, "longformer_triton")
    loaded, info = getattr(longformer_triton, name).from_pretrained(tmp_path, output_loading_info=True)
    assert info == {"missing_keys": [], "unexpected_keys": [], "mismatched_keys": []}
    assert not [record for record in caplog.records if record.name.startswith("longformer_triton")]
    assert_same_state(loaded.state_dict(), original.state_dict())
    assert not loaded.training


@each_model
def test_a_model_that_was_saved_and_loaded_computes_the_same(tmp_path, name):
    model = filled(ours(name))
    model.save_pretrained(tmp_path / "new" / "folder")
    loaded = type(model).from_pretrained(str(tmp_path / "new" / "folder"))
    inputs = Texts(globals_="some", choices=2 if name.endswith("Choice") else 0).inputs(name)
    torch.testing.assert_close(loaded(**inputs).to_tuple(), model(**inputs).to_tuple(), rtol=0, atol=0)
    assert loaded.config == model.config
    assert loaded.config.architectures == [name]
    assert all(parameter.requires_grad for parameter in loaded.parameters())


def test_the_model_does_not_hang_on_its_files(tmp_path):
    """Training it, or removing the folder, changes neither the other."""
    model = filled(ours("LongformerModel"))
    model.save_pretrained(tmp_path)
    loaded = LongformerModel.from_pretrained(tmp_path)
    with torch.no_grad():
        for parameter in loaded.parameters():
            parameter.zero_()
    assert_same_state(LongformerModel.from_pretrained(tmp_path).state_dict(), model.state_dict())


@given(size=st.one_of(st.integers(1, 40_000), st.sampled_from(["1KB", "3 KiB", "1mb", "5GB"])), whole=st.booleans())
def test_shards_of_any_size_hold_the_same(tmp_path_factory, size, whole):
    tensors = {f"layer.{number}": torch.randn(number + 1, 70) for number in range(12)} | {"empty": torch.zeros(0, 3)}
    folder = tmp_path_factory.mktemp("shards")
    for name, write in files.write_weights(tensors, size).items():
        write(folder / name)
    assert_same_state(files.read_weights(folder), tensors)
    shards = {path.name: load_names(path) for path in folder.glob("*.safetensors")}
    if len(shards) == 1:
        assert list(shards) == ["model.safetensors"]
        return
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert index["weight_map"] == {name: file for file, names in shards.items() for name in names}
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in tensors.values())
    for names in shards.values():
        held = sum(tensors[name].nbytes for name in names)
        assert held <= files.size_in_bytes(size) or sum(tensors[name].nbytes > 0 for name in names) == 1


def load_names(path):
    with safe_open(path, framework="pt") as file:
        return list(file.keys())


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (7, 7),
        ("5000000", 5 * 10**6),
        (8e9, 8 * 10**9),
        ("2KB", 2000),
        ("2kb", 2000),
        ("1MB", 10**6),
        ("3 MiB", 3 * 2**20),
        ("5GB", 5 * 10**9),
        ("1GiB", 2**30),
        ("1KIB", 1024),
    ],
    ids=str,
)
def test_sizes_are_numbers_or_texts(size, expected):
    assert files.size_in_bytes(size) == expected


@pytest.mark.parametrize("size", [0, -1, True, 1.5, None, "0KB", "GB", "0", "5", "1048575", "5.5", "5TB", "-5GB"], ids=repr)
def test_other_sizes_are_refused_before_anything_is_written(tmp_path, size):
    with pytest.raises(ValueError, match=r"^max_shard_size: got .*'5GB'"):
        ours("LongformerModel").save_pretrained(tmp_path, max_shard_size=size)
    assert not list(tmp_path.iterdir())


def test_safetensors_go_before_older_files(tmp_path):
    model = filled(ours("LongformerModel"))
    model.save_pretrained(tmp_path)
    torch.save({"embeddings.word_embeddings.weight": torch.zeros(40, 12)}, tmp_path / "pytorch_model.bin")
    assert_same_state(LongformerModel.from_pretrained(tmp_path).state_dict(), model.state_dict())


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before_torch_1.6"])
def test_both_older_formats_of_torch_are_read(tmp_path, zipped):
    model = filled(ours("LongformerModel"))
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    assert_same_state(LongformerModel.from_pretrained(tmp_path).state_dict(), model.state_dict())


def test_parameters_that_shared_memory_in_the_file_do_not_in_the_model(tmp_path):
    """As where global projections were made from the local ones without a copy: training one would train the other."""
    model = ours("LongformerModel")
    model.config.save_pretrained(tmp_path)
    of_first = "encoder.layer.0.attention.self."
    state = model.state_dict()
    state[of_first + "query_global.weight"] = state[of_first + "query.weight"]
    torch.save(state, tmp_path / "pytorch_model.bin")
    loaded = LongformerModel.from_pretrained(tmp_path)
    assert_same_state(loaded.state_dict(), state)
    attention = loaded.encoder.layer[0].attention.self
    assert attention.query_global.weight.data_ptr() != attention.query.weight.data_ptr()


def test_parameters_that_are_views_are_saved_whole(tmp_path):
    """Transposed storage, as after loading another library's weights."""
    model = filled(ours("LongformerModel"))
    dense = model.encoder.layer[0].intermediate.dense
    dense.weight.data = dense.weight.data.t().contiguous().t()
    assert not dense.weight.is_contiguous()
    model.save_pretrained(tmp_path)
    assert_same_state(LongformerModel.from_pretrained(tmp_path).state_dict(), model.state_dict())


def test_another_state_can_be_saved_in_place_of_the_models_own(tmp_path):
    """An averaged model, or one gathered from several processes."""
    model = ours("LongformerModel")
    averaged = {name: torch.randn_like(tensor) for name, tensor in model.state_dict().items()}
    model.save_pretrained(tmp_path, state_dict=averaged)
    assert_same_state(LongformerModel.from_pretrained(tmp_path).state_dict(), averaged)


# dtype and device


@pytest.fixture(scope="module")
def in_bfloat16(tmp_path_factory):
    """(folder, model) of a model whose parameters were saved in bfloat16."""
    folder = tmp_path_factory.mktemp("bfloat16")
    model = filled(ours("LongformerForMaskedLM")).to(torch.bfloat16)
    model.save_pretrained(folder)
    return folder, model


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, torch.float32),
        ({"dtype": "auto"}, torch.bfloat16),
        ({"dtype": torch.float64}, torch.float64),
        ({"dtype": "float16"}, torch.float16),
        ({"dtype": "torch.bfloat16"}, torch.bfloat16),
        ({"torch_dtype": torch.float16}, torch.float16),
        ({"dtype": torch.float64, "torch_dtype": torch.float16}, torch.float64),
    ],
    ids=["default", "auto", "dtype", "name", "long_name", "older_name", "new_name_wins"],
)
def test_every_parameter_has_the_dtype_that_was_asked_for(in_bfloat16, options, expected):
    folder, model = in_bfloat16
    loaded = LongformerForMaskedLM.from_pretrained(folder, **options)
    assert {parameter.dtype for parameter in loaded.parameters()} == {loaded.dtype} == {expected}
    assert_same_state(loaded.state_dict(), {name: tensor.to(expected) for name, tensor in model.state_dict().items()})


def test_the_file_says_its_dtype_to_transformers_too(transformers, in_bfloat16):
    folder, model = in_bfloat16
    assert json.loads((folder / "config.json").read_text())["dtype"] == "bfloat16"
    loaded = transformers.LongformerForMaskedLM.from_pretrained(folder, dtype="auto")
    assert_same_state(loaded.state_dict(), model.state_dict())


def test_auto_looks_at_the_tensors_where_the_configuration_says_nothing(in_bfloat16):
    folder, model = in_bfloat16
    config = LongformerConfig.from_dict({**model.config.to_dict(), "dtype": None})
    assert LongformerForMaskedLM.from_pretrained(folder, config=config, dtype="auto").dtype is torch.bfloat16


@pytest.mark.parametrize("dtype", ["float12", torch.int32, "int8", "bool"], ids=str)
def test_a_dtype_of_no_parameters_is_refused(in_bfloat16, dtype):
    with pytest.raises((ValueError, TypeError), match=rf"^dtype: got .*{dtype}"):
        LongformerForMaskedLM.from_pretrained(in_bfloat16[0], dtype=dtype)


@pytest.mark.parametrize("device", ["meta", torch.device("meta"), "cpu", None], ids=repr)
@pytest.mark.parametrize("argument", ["device", "device_map"])
def test_every_parameter_is_on_the_device_that_was_asked_for(in_bfloat16, argument, device):
    loaded = LongformerForMaskedLM.from_pretrained(in_bfloat16[0], **{argument: device})
    expected = torch.device("cpu" if device is None else device)
    assert {parameter.device for parameter in loaded.parameters()} == {loaded.device} == {expected}


@pytest.mark.parametrize("device", ["meta", torch.device("meta"), "cpu"], ids=repr)
def test_a_map_of_all_layers_to_one_device_is_that_device(in_bfloat16, device):
    loaded = LongformerForMaskedLM.from_pretrained(in_bfloat16[0], device_map={"": device})
    assert loaded.device == torch.device(device)


@pytest.mark.parametrize(("has_gpu", "expected"), [(True, "cuda"), (False, "cpu")], ids=["with_gpu", "without"])
def test_the_automatic_map_is_a_gpu_where_there_is_one(in_bfloat16, monkeypatch, has_gpu, expected):
    asked = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    monkeypatch.setattr(loading.backends, "present", lambda device: asked.append(device) or torch.device("meta"))
    LongformerForMaskedLM.from_pretrained(in_bfloat16[0], device_map="auto")
    LongformerForMaskedLM.from_pretrained(in_bfloat16[0], device_map="auto", device="cpu")
    assert asked == [expected, "cpu"]


def test_new_parameters_have_the_dtype_and_the_device_too(tmp_path):
    ours("LongformerModel").save_pretrained(tmp_path)
    loaded = LongformerForMaskedLM.from_pretrained(tmp_path, dtype=torch.float64, device="meta")
    assert {(parameter.dtype, parameter.device.type) for parameter in loaded.parameters()} == {(torch.float64, "meta")}


# overrides


def test_overrides_reach_the_configuration_and_the_constructor(tmp_path):
    ours("LongformerModel").save_pretrained(tmp_path)
    loaded = LongformerModel.from_pretrained(tmp_path, attention_window=6, hidden_dropout_prob=0.3, add_pooling_layer=False)
    assert loaded.config.attention_window == [6, 6]
    assert loaded.config.hidden_dropout_prob == 0.3
    assert loaded.pooler is None
    assert LongformerConfig.from_pretrained(tmp_path).attention_window == TINY["attention_window"], "the file changed"


def test_a_configuration_takes_the_place_of_the_directorys_own(tmp_path):
    ours("LongformerModel").save_pretrained(tmp_path)
    (tmp_path / "config.json").unlink()
    config = LongformerConfig(**TINY, max_globals=3)
    assert LongformerModel.from_pretrained(tmp_path, config=config).config.max_globals == 3
    loaded = LongformerModel.from_pretrained(tmp_path, config=config, max_globals=5)
    assert (loaded.config.max_globals, config.max_globals) == (5, 3)
    config.save_pretrained(tmp_path / "elsewhere")
    for place in (str(tmp_path / "elsewhere"), tmp_path / "elsewhere" / "config.json"):
        assert LongformerModel.from_pretrained(tmp_path, config=place).config.max_globals == 3


def test_arguments_have_transformers_names(transformers, tmp_path):
    """Whatever of theirs asks for nothing is accepted, and what asks for something is not passed over."""
    for kind in (LongformerModel, transformers.LongformerModel, LongformerConfig, transformers.LongformerConfig):
        assert "pretrained_model_name_or_path" in inspect.signature(kind.from_pretrained).parameters
        assert "save_directory" in inspect.signature(kind.save_pretrained).parameters
    nothing = {"push_to_hub": False, "variant": None, "token": None, "save_peft_format": True}
    ours("LongformerModel").config.save_pretrained(tmp_path, push_to_hub=False)
    ours("LongformerModel").save_pretrained(save_directory=tmp_path, **nothing)
    options = {"state_dict": None, "variant": None, "weights_only": True, "from_tf": False, "load_in_8bit": False}
    options |= {"generation_config": None, "use_kernels": False, "use_auth_token": None, "tp_size": None, "mirror": None}
    one_way = {"attn_implementation": "sdpa", "low_cpu_mem_usage": True, "trust_remote_code": True, "use_safetensors": True}
    LongformerModel.from_pretrained(pretrained_model_name_or_path=tmp_path, **options, **one_way)
    with pytest.raises(NotImplementedError, match=r"^push_to_hub: got True, .*upload_folder"):
        ours("LongformerModel").save_pretrained(tmp_path, push_to_hub=True)
    with pytest.raises(NotImplementedError, match=r"^variant: got 'fp16'"):
        LongformerModel.from_pretrained(tmp_path, variant="fp16")


@pytest.mark.parametrize(
    ("options", "exception", "message"),
    [
        ({"attention_windw": 4}, TypeError, r"^attention_windw: got unexpected"),
        ({"add_pooling": False, "b": 1}, TypeError, r"^add_pooling, b: got unexpected"),
        (
            {"config": {"hidden_size": 12}},
            TypeError,
            r"^config: got a builtins.dict, expected a LongformerConfig of this package",
        ),
        ({"attention_window": 7}, ValueError, r"^attention_window: got 7"),
        ({"use_safetensors": False}, NotImplementedError, r"^use_safetensors: got False, expected True or None"),
        ({"device_map": "balanced"}, NotImplementedError, r"^device_map: got 'balanced', expected 'auto' or one device"),
        ({"device_map": {"encoder": 0}}, NotImplementedError, r"^device_map: got \{'encoder': 0\}, expected 'auto'"),
        ({"device_map": {"": "cpu", "encoder": 0}}, NotImplementedError, r"^device_map: got \{'': 'cpu', 'encoder': 0\}"),
        ({"device_map": {"": "disk"}}, ValueError, r"^device_map: got 'disk', expected a torch.device"),
        ({"device_map": "cuda0"}, ValueError, r"^device_map: got 'cuda0', expected a torch.device"),
    ],
    ids=[
        "misspelt",
        "two",
        "dictionary",
        "odd_window",
        "no_safetensors",
        "balanced",
        "split",
        "mostly_one",
        "disk",
        "no_device",
    ],
)
def test_an_argument_that_does_not_fit_is_refused_by_name(in_bfloat16, options, exception, message):
    with pytest.raises(exception, match=message):
        LongformerForMaskedLM.from_pretrained(in_bfloat16[0], **options)


# tied weights and pruned heads


def test_tied_weights_are_stored_once_and_tied_again(tmp_path):
    model = filled(ours("LongformerForMaskedLM"))
    model.save_pretrained(tmp_path)
    names = load_names(tmp_path / "model.safetensors")
    assert "longformer.embeddings.word_embeddings.weight" in names
    assert "lm_head.decoder.weight" not in names
    assert len([name for name in names if name in ("lm_head.bias", "lm_head.decoder.bias")]) == 1
    loaded = LongformerForMaskedLM.from_pretrained(tmp_path)
    assert loaded.lm_head.decoder.weight is loaded.get_input_embeddings().weight
    assert loaded.lm_head.bias is loaded.lm_head.decoder.bias
    assert loaded.num_parameters() == model.num_parameters()


@pytest.mark.parametrize("direction", ["from_transformers", "to_transformers"])
def test_untied_weights_stay_apart(transformers, tmp_path, direction):
    make = theirs if direction == "from_transformers" else ours
    model = make("LongformerForMaskedLM", tie_word_embeddings=False)
    filled(model).save_pretrained(tmp_path)
    loader = longformer_triton if direction == "from_transformers" else transformers
    loaded = loader.LongformerForMaskedLM.from_pretrained(tmp_path)
    assert loaded.lm_head.decoder.weight is not loaded.get_input_embeddings().weight
    assert_same_state(loaded.state_dict(), model.state_dict())


@pytest.mark.parametrize("left_out", ["lm_head.bias", "lm_head.decoder.bias"])
def test_either_name_of_a_bias_is_enough(tmp_path, left_out):
    model = filled(ours("LongformerForMaskedLM"))
    state = {name: tensor.clone() for name, tensor in model.state_dict().items() if name != left_out}
    model.save_pretrained(tmp_path, state_dict=state)
    loaded, info = LongformerForMaskedLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert_same_state(loaded.state_dict(), model.state_dict())


def test_a_pruned_model_comes_back_pruned(tmp_path):
    model = filled(ours("LongformerModel"))
    model.prune_heads({0: [1], 1: [0, 2]})
    model.save_pretrained(tmp_path)
    loaded = LongformerModel.from_pretrained(tmp_path)
    assert loaded.config.pruned_heads == {0: [1], 1: [0, 2]}
    assert_same_state(loaded.state_dict(), model.state_dict())


def test_weights_may_be_read_by_whom_the_configuration_may_be_read(tmp_path):
    ours("LongformerModel").save_pretrained(tmp_path)
    modes = {path.name: path.stat().st_mode for path in tmp_path.iterdir()}
    assert modes["model.safetensors"] == modes["config.json"]
