"""Training: checkpointing, autocast, gradients of every parameter, dropout, double precision, absorbed projections."""

import copy

import pytest
import torch
from model_cases import MODELS, SEPARATOR, TINY, Texts, ours
from torch import nn

pytestmark = pytest.mark.usefixtures("one_thread")

HEADS = MODELS[1:]
DROPOUT = {"hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.2}


def inputs_of(name, **options):
    return Texts(**{"globals_": "some", "choices": 2 if name.endswith("Choice") else 0, **options}).inputs(name)


def target(model, inputs, **options):
    return number_of(model(**inputs, **options))


def number_of(output):
    """Something to differentiate, in which every parameter takes part."""
    if "loss" in output:
        return output.loss
    return output.last_hidden_state.square().sum() + output.pooler_output.sum()


def gradients(model, inputs, seed=7, **options):
    """{parameter: gradient or None} of one step of training, as the optimiser would find them."""
    model.zero_grad()
    torch.manual_seed(seed)
    target(model, inputs, **options).backward()
    return {name: None if parameter.grad is None else parameter.grad.clone() for name, parameter in model.named_parameters()}


def assert_all_equal(got, expected):
    assert got.keys() == expected.keys()
    for name, grad in expected.items():
        assert torch.equal(got[name], grad), name


# --- checkpointed activations -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("reentrant", [None, False, True], ids=["default", "not_reentrant", "reentrant"])
@pytest.mark.parametrize("absorb", [True, False], ids=["absorbed", "projected"])
def test_checkpointing_changes_no_bit_of_a_gradient(reentrant, absorb):
    model = ours("LongformerForMaskedLM", **DROPOUT, absorb_global_projections=absorb).train()
    inputs = inputs_of("LongformerForMaskedLM")
    expected = gradients(model, inputs)
    assert any(not torch.equal(grad, expected[name]) for name, grad in gradients(model, inputs, seed=8).items())
    model.gradient_checkpointing_enable(None if reentrant is None else {"use_reentrant": reentrant})
    assert model.is_gradient_checkpointing
    assert_all_equal(gradients(model, inputs), expected)
    model.gradient_checkpointing_disable()
    assert not model.is_gradient_checkpointing
    assert_all_equal(gradients(model, inputs), expected)


def layer_runs(model, inputs):
    """How often layers run in a forward and a backward pass."""
    runs = []
    handles = [layer.intermediate.register_forward_hook(lambda *_: runs.append(1)) for layer in model.base_model.encoder.layer]
    target(model, inputs).backward()
    for handle in handles:
        handle.remove()
    return len(runs)


@pytest.mark.parametrize("name", MODELS)
def test_layers_run_twice_only_while_checkpointing_in_training(name):
    model, inputs = ours(name).train(), inputs_of(name)
    assert layer_runs(model, inputs) == 2
    model.gradient_checkpointing_enable()
    assert layer_runs(model, inputs) == 4
    assert layer_runs(model.eval(), inputs) == 2
    model.train().gradient_checkpointing_disable()
    assert layer_runs(model, inputs) == 2


def test_checkpointing_keeps_attention_maps_and_their_gradients():
    model, inputs = ours("LongformerModel").train(), inputs_of("LongformerModel")
    extra = {"output_attentions": True, "output_hidden_states": True}

    def of_maps():
        output = model(**inputs, **extra)
        parts = [*output.attentions, *output.global_attentions, *output.hidden_states]
        return parts, torch.autograd.grad(sum(part.square().sum() for part in parts), model.get_input_embeddings().weight)

    parts, grad = of_maps()
    model.gradient_checkpointing_enable()
    parts_again, grad_again = of_maps()
    assert all(map(torch.equal, parts_again, parts))
    assert torch.equal(*grad_again, *grad)


# --- every parameter --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("globals_", ["none", "first", "some", "all"])
@pytest.mark.parametrize("max_globals", [None, 25], ids=["counted", "with_room"])
@pytest.mark.parametrize("name", MODELS)
def test_every_parameter_gets_a_gradient(name, max_globals, globals_):
    """Data-parallel training waits for each, also of projections that a batch without global tokens leaves unused."""
    model = ours(name, max_globals=max_globals).train()
    grads = gradients(model, inputs_of(name, globals_=globals_))
    assert [parameter for parameter, grad in grads.items() if grad is None] == []
    assert all(grad.isfinite().all() for grad in grads.values())
    of_globals = [grad for parameter, grad in grads.items() if "_global." in parameter]
    assert len(of_globals) == 12
    # Gradients of key biases are rounding, since a softmax does not see them.
    assert any(grad.abs().max() > 1e-5 for grad in of_globals) == (globals_ != "none")


@pytest.mark.parametrize("absorb", [True, False], ids=["absorbed", "projected"])
def test_frozen_global_projections_stay_without_a_gradient(absorb):
    name = "LongformerForTokenClassification"
    model = ours(name, absorb_global_projections=absorb)
    for parameter_name, parameter in model.named_parameters():
        parameter.requires_grad_("_global." not in parameter_name)
    for globals_ in ("none", "some"):
        grads = gradients(model, inputs_of(name, globals_=globals_))
        assert {parameter for parameter, grad in grads.items() if grad is None} == {n for n in grads if "_global." in n}


@pytest.mark.parametrize("name", HEADS)
def test_a_few_steps_lower_the_loss(name):
    model, inputs = ours(name).train(), inputs_of(name, batch=3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        losses.append(model(**inputs).loss)
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.8 * losses[0]


# --- precision --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
@pytest.mark.parametrize("name", MODELS)
def test_autocast_has_no_nan_and_is_near_float32(name, dtype):
    """With padding, a row of nothing but padding, and global tokens; absorbed and projected."""
    model, inputs = ours(name, initializer_range=0.1).train(), inputs_of(name, batch=3)
    inputs["attention_mask"][1] = 0
    expected = target(model, inputs)
    for absorb in (True, False):
        model.config.absorb_global_projections = absorb
        with torch.autocast("cpu", dtype=dtype):
            got = target(model, inputs)
        assert all(grad.isfinite().all() for grad in torch.autograd.grad(got, list(model.parameters())))
        torch.testing.assert_close(got.float(), expected, rtol=0.05, atol=0.05)
    with torch.autocast("cpu", dtype=dtype):
        maps = model(**inputs, output_attentions=True)
    for local, of_globals in zip(maps.attentions, maps.global_attentions, strict=True):
        assert local.isfinite().all()
        assert of_globals.isfinite().all()


@pytest.mark.parametrize("name", MODELS)
def test_double_precision_is_double(name):
    """Doubles all the way: the gradient along a direction agrees with finite differences, which float32 could not.

    No padding here: its embedding gets no gradient, though the hidden states of padding do depend on it.
    """
    model, inputs = ours(name).double(), inputs_of(name, padding="none")
    output = model(**inputs, output_attentions=True)
    tensors = [part for value in output.values() for part in (value if isinstance(value, tuple) else (value,))]
    assert {part.dtype for part in tensors} == {torch.float64}
    grads = gradients(model, inputs)
    parameters = dict(model.named_parameters())
    direction = {parameter: torch.randn_like(grad) for parameter, grad in grads.items()}
    slope = sum((grads[parameter] * direction[parameter]).sum() for parameter in parameters)

    def at(step):
        moved = {parameter: value.detach() + step * direction[parameter] for parameter, value in parameters.items()}
        output = torch.func.functional_call(model, moved, kwargs=inputs)
        return number_of(output)

    # Richardson's step takes the error of the central difference from h^2 to h^4.
    coarse, fine = ((at(h) - at(-h)) / (2 * h) for h in (2e-4, 1e-4))
    torch.testing.assert_close(slope, (4 * fine - coarse) / 3, rtol=1e-6, atol=1e-6)


# --- dropout ----------------------------------------------------------------------------------------------------------

KINDS = {
    "of_states": {"hidden_dropout_prob": 0.3, "attention_probs_dropout_prob": 0.0},
    "of_probabilities": {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.3},
}


@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("globals_", ["none", "all"])
def test_dropout_belongs_to_training_and_follows_the_seed(options, globals_):
    """Either kind, and where every row is one of a global token too."""
    model, inputs = ours("LongformerModel", **options), inputs_of("LongformerModel", globals_=globals_, padding="none")

    def run(seed):
        torch.manual_seed(seed)
        return model(**inputs).last_hidden_state

    still = run(1)
    assert torch.equal(run(2), still)
    model.train()
    assert torch.equal(run(1), run(1))
    assert not torch.allclose(run(1), run(2), atol=1e-3)
    assert not torch.allclose(run(1), still, atol=1e-3)
    # Layers and rows of the batch draw masks of their own, or twins would stay twins.
    twins = {key: value[:1].expand(2, -1) for key, value in inputs.items()}
    one, two = model(**twins).last_hidden_state
    assert not torch.allclose(one, two, atol=1e-3)
    assert torch.equal(model.eval()(**inputs).last_hidden_state, still)


def test_layers_draw_dropout_masks_of_their_own():
    model = ours("LongformerModel", attention_window=4, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.5).train()
    first, second = (layer.attention.self for layer in model.encoder.layer)
    second.load_state_dict(first.state_dict())
    seen = {}
    for attention in (first, second):
        attention.register_forward_hook(lambda module, _, output: seen.update({module: output[0]}))
        attention.register_forward_pre_hook(lambda _, args: (torch.ones_like(args[0]), *args[1:]))
    model(torch.full((1, 9), 5))
    assert not torch.allclose(seen[first], seen[second])


# --- absorbed global projections --------------------------------------------------------------------------------------


def batch_of_unlike_rows(name):
    """Rows with three, one, no global token; padding at the end, in between, and a row of nothing else."""
    ids = torch.randint(3, TINY["vocab_size"], (4, 17))
    ids[:, [5, 6, 12]] = SEPARATOR
    real, marked = torch.ones_like(ids), torch.zeros_like(ids)
    real[1, 11:] = real[2, 3:5] = real[3] = 0
    marked[0, [0, 8, 16]] = marked[1, 2] = marked[3, 0] = 1
    inputs = {"input_ids": ids, "attention_mask": real, "global_attention_mask": marked}
    inputs = {key: value[:, None] if name.endswith("Choice") else value for key, value in inputs.items()}
    labels = {key: value for key, value in inputs_of(name, batch=4, seq_len=17, choices=1).items() if "label" in key}
    return inputs | labels | ({"start_positions": ids[:, 0] % 17, "end_positions": ids[:, 1] % 17} if "Ans" in name else {})


@pytest.mark.parametrize("options", [{}, DROPOUT], ids=["without_dropout", "with_dropout"])
@pytest.mark.parametrize("name", MODELS)
def test_absorbed_projections_equal_projected_tokens(name, options):
    """Outputs and all gradients, and with the same seed the same probabilities are dropped."""
    model = ours(name, **options).double().train()
    inputs = batch_of_unlike_rows(name)
    results = {}
    for absorb in (True, False):
        model.config.absorb_global_projections = absorb
        torch.manual_seed(3)
        states = model.base_model(**flat(inputs)).last_hidden_state.detach()
        results[absorb] = {"states": states} | gradients(model, inputs)
    for part, expected in results[False].items():
        torch.testing.assert_close(
            results[True][part], expected, rtol=1e-10, atol=1e-10, msg=lambda why, part=part: f"{part}: {why}"
        )
    assert any(not torch.equal(results[True][part], expected) for part, expected in results[False].items()), "one path ran"


def flat(inputs):
    """What the encoder takes of a head's arguments."""
    masks = {key: value for key, value in inputs.items() if key in ("input_ids", "attention_mask", "global_attention_mask")}
    return {key: value.flatten(0, -2) for key, value in masks.items()}


def runs_of(model, inputs, projection):
    """How many modules of this name are called in a forward pass."""
    calls = []
    replaced = copy.deepcopy(model)
    for layer in replaced.encoder.layer:
        linear = getattr(layer.attention.self, projection)
        linear.forward = lambda states, linear=linear: (
            calls.append(1) or nn.functional.linear(states, linear.weight, linear.bias)
        )
    replaced(**inputs)
    return len(calls)


def test_few_global_tokens_are_absorbed_and_many_are_not():
    """The rule G * (heads - 1) < hidden_size: with 3 heads and 12 channels, up to 5 global tokens."""
    model, ids = ours("LongformerModel"), torch.full((1, 20), 5)
    for count in (1, 5, 6, 20):
        marked = (torch.arange(20) < count).long()[None]
        auto = model(ids, global_attention_mask=marked).last_hidden_state
        same = {}
        for absorb in (True, False):
            model.config.absorb_global_projections = absorb
            same[absorb] = torch.equal(auto, model(ids, global_attention_mask=marked).last_hidden_state)
        model.config.absorb_global_projections = "auto"
        assert same[count <= 5], count


HOOKS = {
    "forward_hook": lambda linear, note: linear.register_forward_hook(lambda *_: note()),
    "forward_pre_hook": lambda linear, note: linear.register_forward_pre_hook(lambda *_: note()),
    "full_backward_hook": lambda linear, note: linear.register_full_backward_hook(lambda *_: note()),
    "full_backward_pre_hook": lambda linear, note: linear.register_full_backward_pre_hook(lambda *_: note()),
}


@pytest.mark.parametrize("projection", ["key_global", "value_global"])
@pytest.mark.parametrize("register", HOOKS.values(), ids=HOOKS)
def test_hooks_on_a_projection_are_not_passed_over(register, projection):
    model, notes = ours("LongformerModel", absorb_global_projections=True), []
    for layer in model.encoder.layer:
        register(getattr(layer.attention.self, projection), lambda: notes.append(1))
    target(model, inputs_of("LongformerModel")).backward()
    assert len(notes) == 2


class Adapted(nn.Module):
    """What an adapter library puts in the place of a linear layer."""

    def __init__(self, linear):
        super().__init__()
        self.linear, self.addition = linear, nn.Linear(linear.in_features, linear.out_features)

    def forward(self, states):
        return self.linear(states) + self.addition(states)


@pytest.mark.parametrize("projection", ["query_global", "key_global", "value_global"])
def test_adapters_on_a_projection_take_part(projection):
    model, inputs = ours("LongformerModel", absorb_global_projections=True), inputs_of("LongformerModel")
    before = model(**inputs).last_hidden_state
    attention = model.encoder.layer[0].attention.self
    setattr(attention, projection, Adapted(getattr(attention, projection)))
    after = model(**inputs).last_hidden_state
    assert not torch.allclose(after, before, atol=1e-3)
    addition = getattr(attention, projection).addition.weight
    after.square().sum().backward()
    assert addition.grad.abs().max() > 0


@pytest.mark.parametrize("projection", ["key_global", "value_global"])
def test_a_forward_that_was_replaced_is_called(projection):
    """accelerate moves weights to the device inside such a forward; until then they are elsewhere."""
    model = ours("LongformerModel", absorb_global_projections=True)
    assert runs_of(model, inputs_of("LongformerModel"), projection) == 2
