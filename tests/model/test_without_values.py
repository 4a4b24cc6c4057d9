"""Models on tensors that have shapes and no values to read: on meta, fake ones, and those that make_fx traces."""

import pytest
import torch
from model_cases import MODELS, TINY, Texts, ours
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from longformer_triton.model import longformer

pytestmark = pytest.mark.usefixtures("one_thread")

DROPOUT = {"hidden_dropout_prob": 0.25, "attention_probs_dropout_prob": 0.25}
TOO_LONG = TINY["max_position_embeddings"]


def inputs_of(name, seq_len=13):
    by_task = name.endswith(("SequenceClassification", "Choice", "Answering"))
    choices = 2 if name.endswith("Choice") else 0
    return Texts(seq_len=seq_len, padding="none", globals_="by_task" if by_task else "some", choices=choices).inputs(name)


def fake():
    """Tensors without values; whatever depends on some becomes a symbol."""
    return FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)


@pytest.fixture(autouse=True)
def _nothing_told(monkeypatch):
    monkeypatch.setattr(longformer, "_told", set())


@pytest.mark.parametrize("name", MODELS)
def test_models_run_and_train_on_meta(name):
    """Which global tokens there are nobody can count there: the configuration says how many at most."""
    with torch.device("meta"):
        model = ours(name, max_globals=13, **DROPOUT).train()
    inputs, expected = inputs_of(name), ours(name)(**inputs_of(name))
    outputs = model(**{key: value.to("meta") for key, value in inputs.items()})
    for key, value in expected.items():
        assert (outputs[key].shape, outputs[key].device.type) == (value.shape, "meta"), key
    outputs.to_tuple()[0].sum().backward()
    for layer in model.base_model.encoder.layer:
        assert layer.output.dense.weight.grad.shape == layer.output.dense.weight.shape


@pytest.mark.parametrize("max_globals", [None, 13], ids="max_globals_{}".format)
@pytest.mark.parametrize("name", MODELS)
def test_models_run_and_train_on_fake_tensors(name, max_globals):
    expected = ours(name)(**inputs_of(name))
    with fake():
        model = ours(name, max_globals=max_globals, **DROPOUT).train()
        outputs = model(**inputs_of(name))
        outputs.to_tuple()[0].sum().backward()
    for key, value in expected.items():
        assert outputs[key].shape == value.shape, key


@pytest.mark.parametrize("max_globals", [None, 13], ids="max_globals_{}".format)
@pytest.mark.parametrize("name", MODELS)
def test_make_fx_traces_models(name, max_globals):
    """Without a mask of padding, and with all tokens global, about both of which eager mode has advice."""
    model, inputs = ours(name, max_globals=max_globals), inputs_of(name)
    inputs.pop("attention_mask")
    inputs["global_attention_mask"] = torch.ones_like(inputs["input_ids"])
    graph = make_fx(lambda ids: model(**{**inputs, "input_ids": ids}).to_tuple()[0])(inputs["input_ids"])
    inputs["input_ids"] = inputs["input_ids"].flip(0)
    torch.testing.assert_close(graph(inputs["input_ids"]), model(**inputs).to_tuple()[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("where", ["meta", "fake"])
def test_of_ids_without_values_the_shape_says_whether_they_are_too_long(where):
    with torch.device("meta") if where == "meta" else fake():
        model, ids = ours("LongformerModel", max_globals=1), torch.ones((2, TOO_LONG), dtype=torch.long)
        with pytest.raises(ValueError, match=f"input_ids: got {TOO_LONG} tokens, expected at most {TOO_LONG - 2}"):
            model(ids)
