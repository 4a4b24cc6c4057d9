"""LongformerConfig: fields and defaults of transformers, JSON in both directions, kept keys, AllenAI's windows, refusals."""

import copy
import inspect
import json
import math

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from longformer_triton import LongformerConfig, estimate_memory
from longformer_triton.model import CheckpointError, settings

ALLENAI = {
    "num_hidden_layers": 2,
    "attention_mode": "sliding_chunks",
    "attention_window": [32, 64],
    "attention_dilation": [1, 1],
    "autoregressive": False,
}
OWN = inspect.signature(LongformerConfig).parameters
TAKEN = {*OWN, *dir(LongformerConfig), "model_type", "torch_dtype", "attention_dilation", "autoregressive", "self"}


@pytest.fixture(scope="module")
def original():
    """The configuration class of transformers."""
    return pytest.importorskip("transformers", reason="transformers is not installed").LongformerConfig


@pytest.fixture
def _nothing_told(monkeypatch):
    """Unknown keys are named once in a process; as in a fresh one."""
    monkeypatch.setattr(settings, "_told", set())


def warnings(caplog):
    return [record.getMessage() for record in caplog.records]


@st.composite
def fields(draw):
    """Fields of a valid configuration, some left out."""
    layers, heads = draw(st.integers(1, 4)), draw(st.integers(2, 5))
    window = st.integers(1, 300).map(lambda side: 2 * side)
    labels = draw(st.lists(st.text(max_size=5), min_size=1, max_size=4, unique=True))
    required = {"num_hidden_layers": st.just(layers), "num_attention_heads": st.just(heads)}
    required["hidden_size"] = st.integers(1, 9).map(lambda size: size * heads)
    optional = {
        "attention_window": window | st.lists(window, min_size=layers, max_size=layers),
        "pad_token_id": st.integers(0, 9),
        "sep_token_id": st.integers(0, 9),
        "vocab_size": st.integers(10, 99),
        "max_position_embeddings": st.integers(10, 99),
        "hidden_act": st.sampled_from(sorted(settings.ACTIVATIONS)),
        "hidden_dropout_prob": st.floats(0, 1),
        # What the kernels can drop: multiples of 1/256.
        "attention_probs_dropout_prob": st.integers(0, 255).map(lambda share: share / 256),
        "layer_norm_eps": st.floats(0, 1e-3),
        "onnx_export": st.booleans(),
        "id2label": st.just(dict(enumerate(labels))),
        "problem_type": st.sampled_from(settings.PROBLEM_TYPES),
        "output_hidden_states": st.booleans(),
        "tie_word_embeddings": st.booleans(),
        "pruned_heads": st.dictionaries(st.integers(0, layers - 1), st.just([0])),
        "architectures": st.just(["LongformerForMaskedLM"]),
        "dtype": st.sampled_from(["float32", "bfloat16"]),
    }
    return draw(st.fixed_dictionaries(required, optional=optional))


leaves = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
json_values = st.recursive(leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3))
unknown_keys = st.dictionaries(
    # Names that Python cannot write, and None, have tests of their own.
    st.from_regex(r"[A-Za-z_]\w{0,8}", fullmatch=True).filter(lambda name: name.isidentifier() and name not in TAKEN),
    json_values.filter(lambda value: value is not None),
    max_size=4,
)


def test_every_default_is_that_of_transformers(original):
    page = [value for value in inspect.signature(original).parameters.values() if value.kind is value.POSITIONAL_OR_KEYWORD]
    assert [(value.name, value.default) for value in page] == [
        (value.name, value.default) for value in OWN.values() if value.kind is value.POSITIONAL_OR_KEYWORD
    ]
    expected = original()
    ours = LongformerConfig().to_dict()
    assert {name: getattr(expected, name) for name in ours} == ours


@given(fields=fields(), unknown=unknown_keys)
def test_a_configuration_survives_its_dictionary_and_its_json(fields, unknown):
    config = LongformerConfig.from_dict({**fields, **unknown})
    assert LongformerConfig.from_dict(config.to_dict()) == config
    assert LongformerConfig.from_dict(json.loads(config.to_json_string())) == config
    for name, value in unknown.items():
        assert getattr(config, name) == config.to_dict()[name] == value


@given(fields=fields())
def test_json_of_one_is_read_and_written_back_by_the_other(original, tmp_path_factory, fields):
    folder = tmp_path_factory.mktemp("configurations")
    mine = LongformerConfig(**fields)
    mine.save_pretrained(folder)
    theirs = original.from_pretrained(folder)
    assert {name: getattr(theirs, name) for name in fields if name != "dtype"} == {
        name: getattr(mine, name) for name in fields if name != "dtype"
    }
    theirs.save_pretrained(folder)
    back = LongformerConfig.from_pretrained(folder)
    assert {name: getattr(back, name) for name in OWN if name != "unknown"} == {
        name: getattr(mine, name) for name in OWN if name != "unknown"
    }
    back.save_pretrained(folder)
    assert original.from_pretrained(folder).to_dict() == theirs.to_dict()


@pytest.mark.parametrize("name", ["eos_token_id", "a_key_of_others"])
def test_a_null_is_read_back_as_a_null(tmp_path, name):
    """Left out of the file, it would come back as the default, or not at all."""
    LongformerConfig.from_dict({name: None}).save_pretrained(tmp_path)
    assert getattr(LongformerConfig.from_pretrained(tmp_path), name, "gone") is None


@pytest.mark.parametrize("name", ["my-key", "vision.size", "two words", ""])
def test_a_key_that_is_no_identifier_is_kept_too(name):
    """As transformers does: a file of others is not ours to refuse."""
    assert LongformerConfig.from_dict({name: 1}).to_dict()[name] == 1


def test_to_dict_and_from_dict_share_nothing_with_the_configuration():
    entries = {"attention_window": [4, 4], "num_hidden_layers": 2, "nested": {"deep": [1]}}
    before = copy.deepcopy(entries)
    config = LongformerConfig.from_dict(entries)
    config.nested["deep"].append(2)
    config.attention_window[0] = 8
    assert entries == before
    config.to_dict()["nested"]["deep"].append(3)
    assert config.nested == {"deep": [1, 2]}


def test_overrides_replace_entries(tmp_path):
    LongformerConfig(hidden_size=24, problem_type="regression").save_pretrained(tmp_path)
    config = LongformerConfig.from_pretrained(tmp_path, hidden_size=36, problem_type=None)
    assert (config.hidden_size, config.problem_type) == (36, None)


@pytest.mark.usefixtures("_nothing_told")
def test_a_key_that_nothing_reads_is_named_once(caplog):
    for _ in range(2):
        LongformerConfig(use_cache=True, _name_or_path="somewhere", mystery=1)
    assert len(warnings(caplog)) == 1
    assert "mystery" in warnings(caplog)[0]
    assert "use_cache" not in warnings(caplog)[0]
    assert "_name_or_path" not in warnings(caplog)[0]


def test_fields_of_this_package_are_written_only_where_they_were_changed():
    assert not {"absorb_global_projections", "max_globals"} & LongformerConfig().to_dict().keys()
    changed = LongformerConfig(absorb_global_projections=False, max_globals=3)
    assert changed.to_dict()["absorb_global_projections"] is False
    assert LongformerConfig.from_dict(changed.to_dict()) == changed


def test_the_model_type_is_longformer_whatever_the_file_was():
    """A RoBERTa's file that was read is a Longformer's when it is written."""
    assert LongformerConfig.from_dict({"model_type": "roberta"}).to_dict()["model_type"] == "longformer"


@pytest.mark.parametrize("name", ["dtype", "torch_dtype"])
@pytest.mark.parametrize("value", ["bfloat16", "torch.bfloat16", torch.bfloat16], ids=str)
def test_a_dtype_is_read_by_either_name_and_written_by_its_own(name, value):
    config = LongformerConfig.from_dict({name: value})
    assert config.dtype is torch.bfloat16
    assert config.to_dict()["dtype"] == "bfloat16"
    assert "torch_dtype" not in config.to_dict()


def test_configurations_are_equal_where_all_entries_are():
    assert LongformerConfig() == LongformerConfig()
    assert LongformerConfig(extra=1) != LongformerConfig(extra=2)
    assert LongformerConfig() != LongformerConfig().to_dict()


def test_one_window_stands_for_all_layers_and_a_later_change_takes_effect():
    config = LongformerConfig(num_hidden_layers=3, attention_window=8)
    assert config.windows() == [8, 8, 8]
    config.attention_window = [2, 4, 6]
    assert config.windows() == [2, 4, 6]


def test_numbers_of_numpy_are_as_good_as_others(tmp_path):
    """Loops over settings give them; JSON does not take them."""
    config = LongformerConfig(
        attention_window=numpy.array([8, 16]), num_hidden_layers=numpy.int64(2), hidden_dropout_prob=numpy.float32(0.5)
    )
    config.vocab_size = numpy.int32(100)
    assert json.loads(config.to_json_string())["attention_window"] == [8, 16]
    assert (config.num_hidden_layers, config.hidden_dropout_prob, config.vocab_size) == (2, 0.5, 100)
    for window in numpy.array([4, 6]):
        config.attention_window = window
        assert config.windows() == [window, window]
    assert estimate_memory(config, seq_len=numpy.int64(64)) == estimate_memory(config, seq_len=64)


def test_a_function_as_activation_works_and_is_refused_only_by_json():
    config = LongformerConfig(hidden_act=torch.tanh)
    assert config.to_dict()["hidden_act"] is torch.tanh
    with pytest.raises(ValueError, match=r"^hidden_act: .*tanh.*'gelu'"):
        config.to_json_string()


# labels


def test_labels_have_two_names_by_default_and_follow_their_number():
    config = LongformerConfig()
    assert (config.num_labels, config.label2id) == (2, {"LABEL_0": 0, "LABEL_1": 1})
    config.num_labels = 3
    assert config.id2label == {0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"}
    assert config.label2id == {"LABEL_0": 0, "LABEL_1": 1, "LABEL_2": 2}


def test_one_map_of_labels_gives_the_other():
    names = {"1": "yes", "0": "no"}
    assert LongformerConfig(id2label=names).label2id == {"no": 0, "yes": 1}
    assert LongformerConfig(label2id={"no": 0, "yes": 1, "both": 2}).id2label == {0: "no", 1: "yes", 2: "both"}


def test_another_number_of_labels_forgets_their_names():
    config = LongformerConfig.from_dict({"id2label": {"0": "no", "1": "yes"}, "label2id": {"no": 0, "yes": 1}}, num_labels=3)
    assert config.id2label == {0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"}
    assert config.label2id == {"LABEL_0": 0, "LABEL_1": 1, "LABEL_2": 2}


def test_the_same_number_of_labels_keeps_their_names():
    """As the setter of num_labels does, and transformers: the number is no news."""
    config = LongformerConfig.from_dict({"id2label": {"0": "no", "1": "yes"}}, num_labels=2)
    assert config.id2label == {0: "no", 1: "yes"}


def test_new_names_of_labels_replace_both_maps():
    file = LongformerConfig(id2label={0: "no", 1: "yes"}).to_dict()
    assert LongformerConfig.from_dict(file, id2label={0: "a", 1: "b", 2: "c"}).label2id == {"a": 0, "b": 1, "c": 2}


# AllenAI


@pytest.mark.parametrize(
    "signs",
    [
        {"attention_mode": "sliding_chunks"},
        {"attention_mode": "tvm"},
        {"attention_dilation": 1},
        {"attention_dilation": [1, 1]},
        {"autoregressive": False},
    ],
    ids=lambda signs: "_".join(map(str, *signs.items())),
)
@pytest.mark.parametrize(("given", "expected"), [(32, 64), ([32, 64], [64, 128])], ids=["one_window", "a_window_each"])
def test_one_sided_windows_of_allenai_are_doubled_and_that_is_said_once(caplog, signs, given, expected):
    config = LongformerConfig.from_dict({"num_hidden_layers": 2, "attention_window": given, **signs})
    assert config.attention_window == expected
    assert [str(given) in text and str(expected) in text and "AllenAI" in text for text in warnings(caplog)] == [True]


def test_windows_of_allenai_in_a_tuple_are_doubled_one_by_one():
    assert list(LongformerConfig.from_dict({**ALLENAI, "attention_window": (32, 64)}).attention_window) == [64, 128]


def test_converted_windows_are_not_converted_again(caplog, tmp_path):
    LongformerConfig.from_dict(ALLENAI).save_pretrained(tmp_path)
    caplog.clear()
    again = LongformerConfig.from_pretrained(tmp_path)
    assert again.attention_window == LongformerConfig.from_dict(again.to_dict()).attention_window == [64, 128]
    assert not warnings(caplog)


def test_an_override_beside_allenais_windows_means_both_sides():
    assert LongformerConfig.from_dict(ALLENAI, attention_window=10).attention_window == 10


@pytest.mark.parametrize("mode", [None, "longformer"])
def test_windows_of_hugging_face_stay_and_so_does_their_mode(caplog, mode):
    """Their published files have an attention_mode too."""
    config = LongformerConfig.from_dict({"attention_window": 32, "attention_mode": mode})
    assert (config.attention_window, config.attention_mode) == (32, mode)
    assert not warnings(caplog)


@pytest.mark.parametrize(
    ("name", "value", "remedy"),
    [
        ("attention_mode", "n2", "attention_window to the length of the longest text"),
        ("attention_mode", "sliding_chunks_no_overlap", "the weights fit sliding windows"),
        ("attention_dilation", [1, 2], "takes a dilation"),
        ("attention_dilation", 2, "takes a dilation"),
        ("autoregressive", True, "causal on request"),
    ],
    ids=["n2", "no_overlap", "dilations", "dilation", "autoregressive"],
)
def test_what_no_sliding_window_equals_is_refused(name, value, remedy):
    shown = str(value).lower() if isinstance(value, bool) else repr(value).replace("[", r"\[")
    with pytest.raises(NotImplementedError, match=rf"^{name}: got {shown}, .*{remedy}"):
        LongformerConfig.from_dict({**ALLENAI, name: value})


# refusals: id: (fields, exception, regular expression that the message must match)
REFUSALS = {
    "hidden_size_zero": ({"hidden_size": 0}, ValueError, r"^hidden_size: got 0, .*int >= 1"),
    "vocab_size_float": ({"vocab_size": 10.0}, TypeError, r"^vocab_size: got 10.0, .*int >= 1"),
    "layers_text": ({"num_hidden_layers": "2"}, TypeError, r"^num_hidden_layers: got '2'"),
    "layers_bool": ({"num_hidden_layers": True}, TypeError, r"^num_hidden_layers: got True"),
    "heads_none": ({"num_attention_heads": None}, TypeError, r"^num_attention_heads: got None"),
    "heads_do_not_divide": ({"hidden_size": 10, "num_attention_heads": 3}, ValueError, r"^hidden_size: got 10 .*3 .*multiple"),
    "intermediate_negative": ({"intermediate_size": -1}, ValueError, r"^intermediate_size: got -1"),
    "types_zero": ({"type_vocab_size": 0}, ValueError, r"^type_vocab_size: got 0"),
    "padding_negative": ({"pad_token_id": -1}, ValueError, r"^pad_token_id: got -1, .*>= 0"),
    "padding_outside_vocabulary": ({"pad_token_id": 30522}, ValueError, r"^vocab_size: got 30522, .*pad_token_id \(30522\)"),
    "padding_outside_positions": ({"pad_token_id": 512}, ValueError, r"^max_position_embeddings: got 512.*pad_token_id"),
    "separator_text": ({"sep_token_id": "2"}, TypeError, r"^sep_token_id: got '2'"),
    "chunk_negative": ({"chunk_size_feed_forward": -1}, ValueError, r"^chunk_size_feed_forward: got -1"),
    "dropout_above_one": ({"hidden_dropout_prob": 1.5}, ValueError, r"^hidden_dropout_prob: got 1.5, .*<= 1"),
    "dropout_negative": ({"attention_probs_dropout_prob": -0.1}, ValueError, r"^attention_probs_dropout_prob: got -0.1"),
    "dropout_text": ({"hidden_dropout_prob": "0.1"}, TypeError, r"^hidden_dropout_prob: got '0.1'"),
    "dropout_nan": ({"hidden_dropout_prob": math.nan}, ValueError, r"^hidden_dropout_prob: got nan"),
    "epsilon_negative": ({"layer_norm_eps": -1e-5}, ValueError, r"^layer_norm_eps: got -1e-05"),
    "epsilon_infinite": ({"layer_norm_eps": math.inf}, ValueError, r"^layer_norm_eps: got inf"),
    "range_nan": ({"initializer_range": math.nan}, ValueError, r"^initializer_range: got nan"),
    "activation_unknown": ({"hidden_act": "swish9"}, ValueError, r"^hidden_act: got 'swish9', .*gelu, relu, silu, gelu_new"),
    "problem_unknown": ({"problem_type": "ranking"}, ValueError, r"^problem_type: got 'ranking', .*regression"),
    "window_odd": ({"attention_window": 7}, ValueError, r"^attention_window: got 7, .*even.*both sides.*AllenAI"),
    "window_zero": ({"attention_window": 0}, ValueError, r"^attention_window: got 0"),
    "window_one_bad": ({"attention_window": [4] * 11 + [-2]}, ValueError, r"^attention_window: got -2"),
    "window_short": ({"attention_window": [4, 4]}, ValueError, r"^attention_window: got 2 values, .*12 layers"),
    "window_float": ({"attention_window": 4.0}, TypeError, r"^attention_window: got 4.0"),
    "window_bool": ({"attention_window": True}, TypeError, r"^attention_window: got True"),
    "window_text": ({"attention_window": "4"}, TypeError, r"^attention_window: got '4'"),
    "absorb_text": ({"absorb_global_projections": "yes"}, ValueError, r"^absorb_global_projections: got 'yes', .*'auto'"),
    "max_globals_negative": ({"max_globals": -1}, ValueError, r"^max_globals: got -1"),
    "dtype_unknown": ({"dtype": "float12"}, ValueError, r"^dtype: got 'float12', .*'bfloat16'"),
    "dtype_no_dtype": ({"dtype": "nn"}, ValueError, r"^dtype: got 'nn'"),
    "labels_zero": ({"num_labels": 0}, ValueError, r"^num_labels: got 0, .*>= 1"),
    "labels_float": ({"num_labels": 2.0}, ValueError, r"^num_labels: got 2.0"),
    "labels_disagree": ({"num_labels": 3, "id2label": {0: "a"}}, ValueError, r"^num_labels: got 3 .*id2label of 1"),
    "labels_list": ({"id2label": ["a"]}, TypeError, r"^id2label: got list, .*mapping"),
    "labels_ids_list": ({"label2id": ["a"]}, TypeError, r"^label2id: got list"),
    "labels_no_number": ({"id2label": {"a": "b"}}, (TypeError, ValueError), r"^id2label: got .*'a'"),
    "pruned_layer": ({"pruned_heads": {12: [0]}}, ValueError, r"^pruned_heads: got heads \[0\] of layer 12, .*below 12"),
    "pruned_head": ({"pruned_heads": {0: [12]}}, ValueError, r"^pruned_heads: got heads \[12\]"),
    "pruned_all": ({"pruned_heads": {0: list(range(12))}}, ValueError, r"^pruned_heads: .*one head left"),
    "pruned_list": ({"pruned_heads": [0]}, TypeError, r"^pruned_heads: got .*\[0\]"),
    "pruned_no_number": ({"pruned_heads": {"a": [0]}}, (TypeError, ValueError), r"^pruned_heads: got .*'a'"),
    "key_is_a_method": ({"windows": 4}, ValueError, r"^windows: got 4, .*method"),
}


@pytest.mark.parametrize(("fields", "exception", "message"), REFUSALS.values(), ids=REFUSALS)
def test_refusal(fields, exception, message):
    with pytest.raises(exception, match=message):
        LongformerConfig.from_dict(fields)


def test_a_later_change_is_checked_on_request():
    config = LongformerConfig()
    config.hidden_size = 7
    with pytest.raises(ValueError, match=r"^hidden_size: got 7"):
        config.validate()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"{", "no JSON"),
        (b"\xff\xfe\x00", "no JSON"),
        (b"", "no JSON"),
        (b"[1]", "list.*JSON object"),
        (b'{"model_type": "bert"}', "'bert'.*longformer, roberta, xlm-roberta, camembert: .*convert_to_longformer"),
        (b'{"model_type": "led"}', r"'led'.*camembert: .*patch_transformers\(model\)"),
        (b'{"model_type": "t5"}', r"'t5'.*camembert: others are not served, but for bert \(convert_to_longformer\)"),
        (b'{"model_type": null}', "None.*longformer"),
    ],
    ids=["cut", "binary", "empty", "array", "bert", "led", "other_model", "null_model"],
)
def test_a_file_that_is_no_configuration_is_refused_with_its_name(tmp_path, content, words):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"(?s)config\.json: .*{words}"):
        LongformerConfig.from_pretrained(tmp_path)


def test_a_missing_file_is_a_file_not_found_with_its_name(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config\.json: no such file"):
        LongformerConfig.from_pretrained(tmp_path)
