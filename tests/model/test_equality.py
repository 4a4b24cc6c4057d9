"""The encoder and the five heads against transformers: states, logits, losses, attention maps and every gradient."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_cases import MODELS, Texts, ours, pair, texts

pytest.importorskip("transformers", reason="transformers is not installed")
pytestmark = pytest.mark.usefixtures("one_thread")
TOLERANCE = 2e-5


def close(got, expected, name):
    scale = max(1.0, expected.abs().max().item())
    torch.testing.assert_close(got / scale, expected / scale, rtol=0, atol=TOLERANCE, msg=lambda why: f"{name}: {why}")


def assert_same_outputs(got, expected):
    assert list(got) == list(expected)
    for name in expected:
        if name == "global_attentions":
            for layer, (mine, original) in enumerate(zip(got[name], expected[name], strict=True)):
                compare_global_maps(mine, original, f"{name}[{layer}]")
        elif isinstance(expected[name], tuple):
            for layer, (mine, original) in enumerate(zip(got[name], expected[name], strict=True)):
                close(mine, original, f"{name}[{layer}]")
        else:
            close(got[name], expected[name], name)


def compare_global_maps(mine, original, name):
    """Two differences on purpose: ours have the input's length, and zeros in columns beyond a text's own global tokens."""
    original = original[:, :, : mine.shape[2]]
    used = mine.sum(2, keepdim=True) > 0.5 * mine.new_ones(())
    # A head mask below one half makes sums small without emptying a column; a column of equal numbers is an unused one.
    used = used | (original.amax(2, keepdim=True) - original.amin(2, keepdim=True) > 1e-6)
    close(mine, torch.where(used, original, 0.0), name)


def gradients(model, output):
    parameters = dict(model.named_parameters())
    target = output["loss"] if "loss" in output else output[0].square().sum() + output["pooler_output"].sum()
    grads = torch.autograd.grad(target, list(parameters.values()), allow_unused=True, materialize_grads=True)
    return dict(zip(parameters, grads, strict=True))


def assert_same_gradients(mine, got, original, expected):
    expected = gradients(original, expected)
    got = gradients(mine, got)
    assert got.keys() == expected.keys()
    # Choices that all look alike leave gradients that are nothing but rounding.
    scale = max(1e-2, *(grad.abs().max().item() for grad in expected.values()))
    for name, grad in got.items():
        close(grad / scale, expected[name] / scale, f"gradient of {name}")


@st.composite
def problems(draw, model):
    """(options of the configuration, a batch)."""
    options = {
        # transformers pads to the largest window, which the others have to divide.
        "attention_window": draw(st.sampled_from([4, 6, 32, [4, 8], [12, 4], [6, 12], [32, 4]])),
        "num_attention_heads": draw(st.sampled_from([1, 3])),
        "hidden_act": draw(st.sampled_from(["gelu", "relu", "silu", "gelu_new"])),
        "chunk_size_feed_forward": draw(st.sampled_from([0, 0, 7])),
    }
    batch = draw(texts(model))
    if options["num_attention_heads"] == 1 and "head_mask" in batch.extras:
        options["num_attention_heads"] = 3
    return options, batch


@pytest.mark.parametrize("model", MODELS)
@given(data=st.data())
@settings(max_examples=40)
def test_any_configuration_and_batch(model, data):
    options, batch = data.draw(problems(model))
    check(model, options, batch)


@pytest.mark.extended
@pytest.mark.parametrize("model", MODELS)
@given(data=st.data())
@settings(max_examples=500)
def test_many_configurations_and_batches(model, data):
    options, batch = data.draw(problems(model))
    check(model, options, batch)


def check(model, options, batch):
    # transformers cuts feed-forward chunks only where they divide the length.
    mine, original = pair(model, **{**options, "chunk_size_feed_forward": 0})
    if options["chunk_size_feed_forward"]:
        mine = ours(model, **options)
        mine.load_state_dict(original.state_dict())
    inputs = batch.inputs(model)
    extra = {"output_attentions": True, "output_hidden_states": True}
    got, expected = mine(**inputs, **extra), original(**inputs, **extra)
    assert_same_outputs(got, expected)
    lean_got, lean_expected = mine(**inputs), original(**inputs)
    assert_same_outputs(lean_got, lean_expected)
    assert_same_gradients(mine, lean_got, original, lean_expected)
    original.load_state_dict(mine.state_dict())


@pytest.mark.parametrize("model", MODELS)
def test_tuples_are_those_of_transformers(model):
    mine, original = pair(model)
    inputs = Texts(choices=2 if model.endswith("Choice") else 0).inputs(model)
    for extra in ({}, {"output_attentions": True, "output_hidden_states": True}):
        got, expected = mine(**inputs, **extra, return_dict=False), original(**inputs, **extra, return_dict=False)
        assert isinstance(got, tuple)
        assert [type(part) for part in got] == [type(part) for part in expected]


@pytest.mark.parametrize("labels", ["one_number", "numbers", "one_class", "several_classes"])
def test_losses_of_classification(labels):
    count = 1 if labels == "one_number" else 3
    mine, original = pair("LongformerForSequenceClassification", num_labels=count)
    inputs = Texts(batch=3, globals_="by_task").inputs("LongformerForSequenceClassification")
    target = {
        "one_number": torch.randn(3),
        "numbers": torch.randn(3, 3),
        "one_class": torch.tensor([2, 0, 1]),
        "several_classes": torch.tensor([[1.0, 0, 1], [0, 0, 0], [1, 1, 1]]),
    }[labels]
    inputs["labels"] = target
    if labels == "numbers":
        mine.config.problem_type = original.config.problem_type = "regression"
    assert_same_outputs(mine(**inputs), original(**inputs))
    assert mine.config.problem_type == ("regression" if labels == "numbers" else None), "a forward pass changed the model"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("labels", ["one_number", "several_classes"])
def test_losses_keep_the_precision_of_labels(labels, dtype):
    """A regression towards 1234.567 in bfloat16 is off by thousands if the target is rounded first."""
    count = 1 if labels == "one_number" else 3
    both = [model.bfloat16() for model in pair("LongformerForSequenceClassification", num_labels=count)]
    inputs = Texts(batch=2, globals_="by_task").inputs("LongformerForSequenceClassification")
    target = [1234.567, 77.77] if labels == "one_number" else [[1, 0, 1], [0, 1, 1]]
    inputs["labels"] = torch.tensor(target, dtype=dtype)
    got, expected = (model(**inputs).loss for model in both)
    assert got.dtype == expected.dtype == dtype
    # Rounded first, the number's loss would be off by 4e-3; the logits of several classes are bfloat16 in both.
    torch.testing.assert_close(got, expected, rtol=1e-3 if labels == "one_number" else 1e-2, atol=0)
    got.backward()


def test_parameters_stand_in_transformers_order():
    """The state of an optimiser knows its parameters by their numbers."""
    for name in MODELS:
        mine, original = pair(name)
        assert [one for one, _ in mine.named_parameters()] == [one for one, _ in original.named_parameters()]


def test_a_head_mask_for_all_layers_is_one_for_each():
    mine, original = pair("LongformerModel")
    inputs = Texts(globals_="some").inputs("LongformerModel")
    mask = torch.tensor([1.0, 0.0, 0.5])
    got = mine(**inputs, head_mask=mask, output_attentions=True)
    assert_same_outputs(got, original(**inputs, head_mask=mask.expand(2, 3), output_attentions=True))
