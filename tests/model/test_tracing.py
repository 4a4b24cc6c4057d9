"""The encoder and the five heads under torch.compile and torch.export: one graph for many batches, equal to eager mode."""

import pytest
import torch
from model_cases import MODELS, Texts, ours

pytestmark = pytest.mark.usefixtures("one_thread")

# One layer traces fast; layers beyond it add nothing that the two of the encoder's tests do not show.
SIZES = {"num_hidden_layers": 1, "attention_window": 4}
# The first sizes differ from each other, or the compiler takes equal ones for one and the same.
BATCHES = {"traced": (3, 21), "longer": (2, 34), "shorter": (5, 9), "within_the_window": (4, 4)}


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()


def graphs():
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


def inputs_of(name, batch, seq_len, **options):
    by_task = name.endswith(("SequenceClassification", "Choice", "Answering"))
    kind = {"globals_": "by_task" if by_task else "some", "choices": 2 if name.endswith("Choice") else 0}
    return Texts(batch=batch, seq_len=seq_len, seed=seq_len, **{**kind, **options}).inputs(name)


def assert_equal_outputs(got, expected):
    assert list(got) == list(expected)
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, rtol=0, atol=1e-5, msg=lambda why, name=name: f"{name}: {why}")


# Token classification is compiled below, with its gradients.
@pytest.mark.parametrize("name", [name for name in MODELS if name != "LongformerForTokenClassification"])
def test_one_compiled_graph_serves_every_batch(name):
    model = ours(name, **SIZES)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=True)
    with torch.no_grad():
        for sizes in BATCHES.values():
            inputs = inputs_of(name, *sizes)
            assert_equal_outputs(compiled(**inputs), model(**inputs))
    assert graphs() == 1


def export(model, inputs, **options):
    # More tokens than positions: padding needs none, so the table's size must not bound the graph.
    batch, tokens = torch.export.Dim("batch", min=2, max=64), torch.export.Dim("tokens", min=4, max=4096)

    def dims(value):
        return {0: batch} if value.dim() == 1 else {0: batch, value.dim() - 1: tokens}

    shapes = {name: dims(value) for name, value in inputs.items()} | dict.fromkeys(options)
    return torch.export.export(model, (), {**inputs, **options}, dynamic_shapes=shapes, strict=False).module()


@pytest.mark.parametrize("name", MODELS)
def test_an_exported_program_takes_other_batches_and_lengths(name):
    """optimum issue 776: an export that was silently wrong off the traced length."""
    model = ours(name, **SIZES)
    program = export(model, inputs_of(name, *BATCHES["traced"]))
    for sizes in BATCHES.values():
        inputs = inputs_of(name, *sizes)
        assert_equal_outputs(program(**inputs), model(**inputs))


def test_a_text_that_is_too_long_is_refused_when_compiled_and_left_to_the_table_when_exported():
    model = ours("LongformerModel", **SIZES)
    compiled = torch.compile(model, fullgraph=True, backend="eager", dynamic=True)
    program = export(model, {"input_ids": torch.full((3, 21), 5)})
    real, padded = torch.full((2, 130), 5), torch.full((2, 130), 5).index_fill(1, torch.arange(100, 130), 1)
    assert_equal_outputs(program(input_ids=padded), model(padded))
    with pytest.raises(IndexError, match="index out of range in self"):
        program(input_ids=real)
    for ids in (real, padded):
        with pytest.raises(Exception, match="expected at most"):
            compiled(ids)


@pytest.mark.parametrize("maps", [False, True], ids=["states", "maps"])
def test_an_exported_encoder_takes_more_and_fewer_global_tokens(maps):
    model = ours("LongformerModel", **SIZES)
    program = export(model, inputs_of("LongformerModel", 3, 21, globals_="some"), output_attentions=maps)
    for kind in ("some", "first", "all"):
        inputs = inputs_of("LongformerModel", 2, 34, globals_=kind)
        assert_equal_outputs(program(**inputs, output_attentions=maps), model(**inputs, output_attentions=maps))


def test_an_export_with_room_for_globals_needs_no_count():
    model = ours("LongformerModel", **SIZES, max_globals=3)
    program = export(model, inputs_of("LongformerModel", 3, 21, globals_="first"))
    for kind in ("first", "none"):
        inputs = inputs_of("LongformerModel", 2, 34, globals_=kind)
        assert_equal_outputs(program(**inputs), model(**inputs))


def test_attention_maps_come_out_of_a_compiled_encoder():
    """Without global tokens the graph, which cannot know, gives maps of no columns."""
    model = ours("LongformerModel", **SIZES)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=True)
    extra = {"output_attentions": True, "output_hidden_states": True}
    with torch.no_grad():
        inputs = inputs_of("LongformerModel", *BATCHES["traced"], globals_="some")
        assert_equal_outputs(compiled(**inputs, **extra), model(**inputs, **extra))
        inputs = inputs_of("LongformerModel", *BATCHES["shorter"], globals_="none")
        got, expected = compiled(**inputs, **extra), model(**inputs, **extra)
    assert [tuple(of_globals.shape) for of_globals in got.global_attentions] == [(5, 3, 9, 0)]
    assert_equal_outputs({name: got[name] for name in expected}, expected)
    assert graphs() == 1, "one graph for every length, with maps too"


def test_compiled_checkpointed_training_has_the_gradients_of_eager_mode():
    model = ours("LongformerForTokenClassification", **SIZES).train()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=True)
    names, parameters = zip(*model.named_parameters(), strict=True)
    for sizes in (BATCHES["traced"], BATCHES["longer"]):
        inputs = inputs_of("LongformerForTokenClassification", *sizes)
        model.gradient_checkpointing_enable()
        got = compiled(**inputs)
        model.gradient_checkpointing_disable()
        expected = model(**inputs)
        assert_equal_outputs(got, expected)
        grads = (torch.autograd.grad(output.loss, parameters) for output in (got, expected))
        for name, one, two in zip(names, *grads, strict=True):
            torch.testing.assert_close(one, two, rtol=0, atol=1e-5, msg=lambda why, name=name: f"{name}: {why}")
    assert graphs() == 1


def test_compiled_checkpointing_recomputes_what_forward_dropped():
    """No run beside it draws the same dropout, so the one run is asked: its loss along its own gradient must fall as it says.

    The classifier's weight enters the logits linearly, and a checkpointed layer feeds them. With another dropout mask in the
    recomputation the inner product of the query's gradient with the query's direction would miss the finite difference.
    """
    dropout = {"attention_probs_dropout_prob": 0.25, "hidden_dropout_prob": 0.0}
    model = ours("LongformerForTokenClassification", **SIZES, **dropout).double().train()
    model.gradient_checkpointing_enable()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    inputs = inputs_of("LongformerForTokenClassification", 3, 21)
    value = model.longformer.encoder.layer[0].attention.self.value.weight

    def loss():
        torch.manual_seed(3)
        return compiled(**inputs).loss

    (gradient,) = torch.autograd.grad(loss(), value)
    step = 1e-5 * gradient / gradient.norm()
    with torch.no_grad():
        value += step
    higher = loss().item()
    with torch.no_grad():
        value -= 2 * step
    slope = (higher - loss().item()) / 2e-5
    assert slope == pytest.approx(gradient.norm().item(), rel=1e-5)
