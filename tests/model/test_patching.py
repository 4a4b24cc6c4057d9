"""Patched models of transformers against the same models unpatched: everything that comes out, and every gradient."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_cases import MODELS, Texts
from patching_cases import ALL, LEDS, batch_for, original, problems, takes_head_masks
from torch.utils import _pytree as pytree

from longformer_triton import AttentionPattern, patch_transformers

transformers = pytest.importorskip("transformers", reason="transformers is not installed")
pytestmark = pytest.mark.usefixtures("one_thread")
TOLERANCE = 2e-5
EVERYTHING = {"output_attentions": True, "output_hidden_states": True}


def tensors(outputs):
    """(name, tensor) of everything in a model's outputs, in order."""
    named = outputs.items() if hasattr(outputs, "items") else enumerate(outputs)
    return [(f"{name}{place}", leaf) for name, part in named for place, leaf in enumerate(pytree.tree_leaves(part))]


def assert_same(got, expected):
    """Names, order, shapes, dtypes, and numbers to rounding."""
    assert type(got) is type(expected)
    assert len(got) == len(expected)
    for (name, mine), (same, theirs) in zip(tensors(got), tensors(expected), strict=True):
        assert name == same
        assert mine.dtype == theirs.dtype, name
        scale = max(1.0, theirs.abs().max().item())
        assert_close(mine / scale, theirs / scale, name)


def assert_close(got, expected, name, tolerance=TOLERANCE):
    torch.testing.assert_close(got, expected, rtol=0, atol=tolerance, msg=lambda why: f"{name}: {why}")


def gradients(model, outputs):
    """By name, None where nothing came: those of the loss, or of what a model without one gives."""
    target = outputs["loss"] if "loss" in outputs else sum(part.square().sum() for _, part in tensors(outputs))
    names, parameters = zip(*model.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(target, parameters, allow_unused=True), strict=True))


def assert_same_gradients(got, expected):
    scale = max(1e-2, *(grad.abs().max().item() for grad in expected.values() if grad is not None))
    for name, grad in expected.items():
        if name.endswith("word_embeddings.weight") and got[name] is None and grad is not None:
            # Padding goes through the table even where texts come as embeddings, and leaves nothing there.
            assert not grad.any()
        elif grad is None:
            assert got[name] is None, name
        else:
            assert_close(got[name] / scale, grad / scale, f"gradient of {name}")


def check(name, options, inputs):
    model = original(name, **options)
    expected, lean = model(**inputs, **EVERYTHING), model(**inputs)
    expected_gradients = gradients(model, lean)
    assert patch_transformers(model) is model
    got = model(**inputs)
    assert_same(model(**inputs, **EVERYTHING), expected)
    assert_same(got, lean)
    assert_same_gradients(gradients(model, got), expected_gradients)


@pytest.mark.parametrize("name", ALL)
@given(data=st.data())
@settings(max_examples=25)
def test_any_configuration_and_batch(name, data):
    check(name, *data.draw(problems(name)))


@pytest.mark.extended
@pytest.mark.parametrize("name", ALL)
@given(data=st.data())
@settings(max_examples=300)
def test_many_configurations_and_batches(name, data):
    check(name, *data.draw(problems(name)))


@pytest.mark.parametrize("name", ALL)
def test_tuples_are_the_same(name):
    model = original(name)
    inputs = batch_for(name, Texts(globals_="some", choices=2 if name.endswith("Choice") else 0))
    options = [{"return_dict": False}, {"return_dict": False, **EVERYTHING}]
    expected = [model(**inputs, **option) for option in options]
    patch_transformers(model)
    for option, outputs in zip(options, expected, strict=True):
        got = model(**inputs, **option)
        assert_same(got, outputs)
        assert [type(part) for part in got] == [type(part) for part in outputs]


@pytest.mark.parametrize("name", ["LongformerModel", "LEDModel"])
@pytest.mark.parametrize("globals_", ["none", "some"])
@pytest.mark.parametrize("kind", ["autocast", "bfloat16"])
def test_low_precision_is_no_worse_than_unpatched(name, globals_, kind):
    """The same dtypes, attention maps included, and errors against float32 of the same size."""
    model = original(name)
    inputs = batch_for(name, Texts(batch=3, seq_len=37, globals_=globals_))
    exact = [part for _, part in tensors(model(**inputs, **EVERYTHING))]
    if kind == "bfloat16":
        model.bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=kind == "autocast"):
        unpatched = [part for _, part in tensors(model(**inputs, **EVERYTHING))]
        patched = [part for _, part in tensors(patch_transformers(model)(**inputs, **EVERYTHING))]
    assert [part.dtype for part in patched] == [part.dtype for part in unpatched]
    assert torch.bfloat16 in [part.dtype for part in patched]
    for mine, theirs, true in zip(patched, unpatched, exact, strict=True):
        allowed = 2 * (theirs.float() - true).abs().max() + torch.finfo(torch.bfloat16).eps * true.abs().max()
        assert (mine.float() - true).abs().max() <= allowed


def test_embeddings_of_led_are_dropped_in_training():
    model = patch_transformers(original("LEDModel", dropout=0.5)).train()
    embedded = model(**batch_for("LEDModel", Texts()), output_hidden_states=True).encoder_hidden_states[0]
    assert 0.4 < (embedded == 0).float().mean() < 0.6


def train_step(model, inputs):
    torch.manual_seed(3)
    model.zero_grad(set_to_none=True)
    model(**inputs).loss.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("reentrant", [False, True], ids=["not_reentrant", "reentrant"])
@pytest.mark.parametrize("name", ["LongformerForMaskedLM", "LEDForConditionalGeneration"])
def test_checkpointed_gradients_with_dropout_are_bit_equal(name, reentrant):
    rates = ("hidden_dropout_prob", "attention_probs_dropout_prob") if name in MODELS else ("dropout", "attention_dropout")
    model = patch_transformers(original(name, **dict.fromkeys(rates, 0.2))).train()
    inputs = batch_for(name, Texts(globals_="some", seq_len=30))
    expected, again = train_step(model, inputs), train_step(model, inputs)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    got = train_step(model, inputs)
    for gradient, repeated in zip(expected.values(), again.values(), strict=True):
        assert gradient is repeated or torch.equal(gradient, repeated)
    for name_, gradient in expected.items():
        assert gradient is got[name_] or torch.equal(gradient, got[name_]), name_


@pytest.mark.parametrize("name", ["LongformerModel", "LEDModel"])
def test_attention_probabilities_are_dropped_in_training_alone(name):
    rate = "attention_probs_dropout_prob" if name in MODELS else "attention_dropout"
    model = patch_transformers(original(name, **{rate: 0.5}))
    inputs = batch_for(name, Texts())
    clean = model(**inputs)[0]
    torch.testing.assert_close(model(**inputs)[0], clean, rtol=0, atol=0)
    model.train()
    first, second = model(**inputs)[0], model(**inputs)[0]
    assert not torch.allclose(first, clean, atol=1e-2)
    assert not torch.allclose(first, second, atol=1e-2)


@pytest.mark.parametrize("name", ["LongformerForSequenceClassification", "LEDForConditionalGeneration"])
def test_training_reaches_the_same_parameters(name):
    """An optimizer that was made before patching goes on; weight decay passes over what got no gradient, as unpatched."""
    model = original(name).train()
    twin = copy.deepcopy(model)
    optimizers = [torch.optim.SGD(one.parameters(), lr=1e-2, momentum=0.9, weight_decay=0.5) for one in (model, twin)]
    patch_transformers(model)
    for step, kind in enumerate(("none", "some", "none")):
        inputs = batch_for(name, Texts(globals_=kind, seed=step))
        for one, optimizer in zip((model, twin), optimizers, strict=True):
            optimizer.zero_grad()
            one(**inputs).loss.backward()
            optimizer.step()
    for name_, value in twin.state_dict().items():
        assert_close(model.state_dict()[name_], value, name_)


@pytest.mark.parametrize("name", ["LongformerModel", "LEDModel"])
def test_the_random_state_after_a_pass_is_the_same(name):
    """LED's encoder draws a number for each layer even where none is dropped; what a user samples next depends on it."""
    model = original(name)
    inputs, states = batch_for(name, Texts()), []
    for _ in range(2):
        torch.manual_seed(7)
        model(**inputs)
        states.append(torch.get_rng_state())
        patch_transformers(model)
    assert torch.equal(*states)


def test_the_same_layers_are_dropped():
    model = original("LEDModel", encoder_layerdrop=0.5).train()
    inputs = batch_for("LEDModel", Texts())

    def outputs():
        return [model(**inputs, output_hidden_states=True) for seed in range(4) if torch.manual_seed(seed)]

    expected = outputs()
    patch_transformers(model)
    for got, wanted in zip(outputs(), expected, strict=True):
        assert_same(got, wanted)


@pytest.mark.parametrize("sample", [False, True], ids=["greedy", "sampled"])
def test_generated_texts_are_the_same(sample):
    model = original("LEDForConditionalGeneration")
    inputs = batch_for("LEDForConditionalGeneration", Texts(globals_="some"))
    inputs = {name: inputs[name] for name in ("input_ids", "attention_mask", "global_attention_mask")}
    texts = []
    for _ in range(2):
        torch.manual_seed(11)
        texts.append(model.generate(**inputs, max_new_tokens=8, do_sample=sample))
        patch_transformers(model)
    assert torch.equal(*texts)


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32, torch.int32], ids=str)
def test_masks_of_any_dtype_and_twos(dtype):
    model = original("LongformerModel")
    inputs = batch_for("LongformerModel", Texts(globals_="some"))
    both = {name: inputs.pop(name) for name in ("attention_mask", "global_attention_mask")}
    merged = both["attention_mask"] * (1 + both["global_attention_mask"])
    variants = [{name: mask.to(dtype) for name, mask in both.items()}, {"attention_mask": merged}]
    expected = [model(**inputs, **masks) for masks in variants]
    patch_transformers(model)
    for masks, outputs in zip(variants, expected, strict=True):
        assert_same(model(**inputs, **masks), outputs)


@pytest.mark.parametrize("name", ["LongformerModel", "LEDModel"])
def test_one_pattern_a_pass_and_none_is_kept(name, monkeypatch):
    """Masks that change in place between two passes are seen."""
    built = []
    build = AttentionPattern.from_masks.__func__
    counted = classmethod(lambda kind, *masks, **options: built.append(1) or build(kind, *masks, **options))
    monkeypatch.setattr(AttentionPattern, "from_masks", counted)
    model = original(name)
    twin = patch_transformers(copy.deepcopy(model))
    inputs = batch_for(name, Texts(globals_="first", padding="none"))
    for position in (3, 9):
        inputs["global_attention_mask"][0, position] = 1
        inputs["attention_mask"][1, position] = 0
        assert_same(twin(**inputs), model(**inputs))
    assert len(built) == 2


@pytest.mark.skipif(not takes_head_masks(), reason="this version of transformers has no head masks")
@pytest.mark.parametrize("name", ["LongformerModel", "LEDModel"])
def test_head_masks_and_their_gradients(name):
    model = original(name)
    inputs = batch_for(name, Texts(globals_="some"))
    grads = []
    for _ in range(2):
        mask = torch.tensor([[1.0, 0.0, 0.5], [0.2, 1.0, 1.0]], requires_grad=True)
        model(**inputs, head_mask=mask)[0].square().sum().backward()
        grads.append(mask.grad)
        patch_transformers(model)
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="head_mask"):
        model(**inputs, head_mask=torch.ones(3, 3))


def test_led_names_are_all_of_this_version():
    """A head that is new in transformers is not forgotten here."""
    present = {name for name in dir(transformers) if name.startswith("LED") and hasattr(getattr(transformers, name), "forward")}
    assert present - {"LEDPreTrainedModel"} <= set(LEDS)
