"""Operators under the compiler: their contracts, one graph for many lengths, export, and activation checkpointing."""

import functools

import pytest
import torch
from attention_cases import OPTION_CASES, Case, each
from torch._dynamo.backends.debugging import aot_eager
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from longformer_triton.kernels import (
    AttentionPattern,
    absorbed_global_attention,
    compaction,
    longformer_attention,
    ops,
    sliding_window_attention,
)


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def graphs_compiled() -> int:
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


@pytest.fixture
def _counters():
    torch._dynamo.utils.counters.clear()


@pytest.mark.parametrize("function", ["windows", "rows", "absorbed"])
def test_a_first_call_of_any_size_compiles_once(function):
    """With dynamic=True a float default became an input of the graph, whose value was then read: compiled twice.

    Seen with a backend that traces further than "eager", which never notices.
    """
    compiled = []

    def backend(graph, inputs):
        compiled.append(graph)
        return aot_eager(graph, inputs)

    def run(query, key, value, mask):
        if function == "windows":
            return sliding_window_attention(query, key, value, window=3, attention_mask=mask)
        pattern = AttentionPattern.from_masks(mask, mask, window=3, max_globals=20)
        rows = pattern.gather_global(query)
        if function == "rows":
            return longformer_attention(query, key, value, rows, key, value, pattern)
        weight = torch.ones(query.shape[1] * query.shape[3], 7)
        return absorbed_global_attention(key[:, 0, :, :7], rows, weight, weight, None, pattern)

    torch.compile(run, backend=backend, fullgraph=True, dynamic=True)(*torch.randn(3, 2, 4, 20, 8), torch.ones(2, 20))
    assert len(compiled) == 1


def op_arguments(case: Case) -> tuple:
    """The arguments of ``ops.attention`` for a case."""
    inputs, pattern = case.inputs(torch.float32), case.pattern()
    inputs += [None] * (6 - len(inputs))
    seed, threshold = (torch.tensor(3), 77) if case.dropout_p else (None, 0)
    return (*inputs, *ops.pattern_arguments(pattern), 0.5, seed, threshold, "torch")


OPCHECK_CASES = ("plain", "dilated_per_head", "grouped_heads", "padding_holes", "global_rows", "dropout", "window_covers_all")


@each({name: OPTION_CASES[name] for name in OPCHECK_CASES})
def test_attention_keeps_its_contract(case):
    torch.library.opcheck(ops.attention, op_arguments(Case(**{**vars(case), "seq_len": 9})))


@each({name: OPTION_CASES[name] for name in ("global_rows", "dropout", "all_global_rows")})
def test_global_rows_keep_their_contract(case):
    arguments = op_arguments(Case(**{**vars(case), "seq_len": 9}))
    torch.library.opcheck(ops.global_rows, arguments[3:])


@each({name: OPTION_CASES[name] for name in ("grouped_heads", "global_rows", "dropout")})
@pytest.mark.parametrize("wanted", [0, 2])
def test_the_shorter_way_of_eager_mode_gives_the_gradients_of_the_registered_one(case, wanted):
    """Compiled graphs take the one that is registered, eager calls the other."""
    gradients = []
    for attention in (ops.attention, functools.partial(ops.call, ops.attention)):
        arguments = op_arguments(case)
        arguments[wanted].requires_grad_()
        out, lse = attention(*arguments)
        finite = torch.where(lse.isfinite(), lse, 0)
        gradients.append(torch.autograd.grad(out.square().sum() + finite.sum(), arguments[wanted])[0])
    assert torch.equal(*gradients)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_vmap_is_a_loop_with_gradients():
    states = torch.randn(3, 1, 2, 16, 8, requires_grad=True)

    def attend(query):
        return sliding_window_attention(query, query.cos(), query.sin(), window=3)

    expected, got = torch.stack([attend(query) for query in states]), torch.vmap(attend)(states)
    assert torch.equal(got, expected)
    weight = torch.randn_like(got)
    assert torch.equal(*(torch.autograd.grad(out, states, weight)[0] for out in (got, expected)))


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_vmap_reads_no_masks():
    states, mask = torch.randn(3, 2, 2, 10, 8), torch.tensor([[1.0] * 10, [1.0] * 7 + [0.0] * 3]).expand(3, 2, 10)

    def attend(query, real):
        return sliding_window_attention(query, query, query, window=1, attention_mask=real)

    expected = torch.stack([attend(*pair) for pair in zip(states, mask, strict=True)])
    assert torch.equal(torch.vmap(attend)(states, mask), expected)


@pytest.mark.parametrize("max_globals", [None, 3])
def test_global_index_keeps_its_contract(max_globals):
    marks = torch.tensor([[True, False, True, False], [False, False, False, True]])
    torch.library.opcheck(compaction.global_index, (marks, max_globals))


def model(query, key, value, key_global, value_global, attention_mask, global_mask):
    """What a layer does: pattern, compact global rows, attention with both kinds of rows."""
    pattern = AttentionPattern.from_masks(attention_mask, global_mask, window=4)
    return longformer_attention(
        query, key, value, pattern.gather_global(query), key_global, value_global, pattern,
        dropout_p=0.1, dropout_seed=torch.zeros((), dtype=torch.int64),
    )  # fmt: skip


def model_inputs(seq_len: int, batch: int = 2, most_globals: int = 2) -> list[torch.Tensor]:
    states = [torch.randn(batch, 3, seq_len, 8, requires_grad=True) for _ in range(5)]
    attention_mask, global_mask = torch.ones(batch, seq_len, dtype=torch.int64), torch.zeros(batch, seq_len, dtype=torch.int64)
    attention_mask[:, -2:] = 0
    for sample in range(batch):
        global_mask[sample, sample : sample + 1 + sample % most_globals] = 1
    return [*states, attention_mask, global_mask]


@pytest.mark.usefixtures("_counters")
def test_one_graph_serves_many_lengths():
    """The first length compiles for itself, the second for all: fifty lengths must not mean fifty compilations."""
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for seq_len, most_globals in ((40, 1), (50, 2), (61, 2), (70, 5), (333, 3), (9, 2)):
        inputs = model_inputs(seq_len, most_globals=most_globals)
        expected, got = model(*inputs), compiled(*inputs)
        assert torch.equal(got, expected)
        weight = torch.randn(got.shape)
        for one, two in zip(
            torch.autograd.grad((got * weight).sum(), inputs[:5]),
            torch.autograd.grad((expected * weight).sum(), inputs[:5]),
            strict=True,
        ):
            torch.testing.assert_close(one, two)
    assert 1 <= graphs_compiled() <= 2


@pytest.mark.usefixtures("_counters")
def test_window_and_dilation_are_run_time_numbers():
    """A model whose layers differ in window shares one graph between them, once the compiler has seen two."""

    def layer(query, key, value, window, dilation):
        return sliding_window_attention(query, key, value, window=(window, window), dilation=dilation, return_lse=True)

    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager", dynamic=True)
    query, key, value = Case(seq_len=60).inputs()
    for window, dilation in ((3, 1), (5, 2), (17, 3), (30, 4)):
        for got, expected in zip(
            compiled(query, key, value, window, dilation), layer(query, key, value, window, dilation), strict=True
        ):
            assert torch.equal(got, expected)
    assert 1 <= graphs_compiled() <= 2, graphs_compiled()


def test_dilation_of_each_head_compiles_with_dynamic_shapes():
    """The number of heads is a symbol then, which is in no tuple."""
    layer = functools.partial(sliding_window_attention, window=2, dilation=(1, 3))
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager", dynamic=True)
    for seq_len in (8, 13):
        states = [torch.randn(2, 2, seq_len, 4) for _ in range(3)]
        assert torch.equal(compiled(*states), layer(*states))


def test_compiled_without_globals_or_masks():
    def layer(query, key, value):
        return sliding_window_attention(query, key, value, window=3, is_causal=True, dropout_p=0.25, return_lse=True)

    compiled = torch.compile(layer, fullgraph=True)
    for seq_len in (5, 9, 33):
        states = [torch.randn(2, 2, seq_len, 8, requires_grad=True) for _ in range(3)]
        out, lse = compiled(*states)
        (out.sum() + lse.sum()).backward()
        expected = sliding_window_attention(*states, window=3, is_causal=True, return_lse=True)[1]
        torch.testing.assert_close(lse, expected)
        assert all(tensor.grad.isfinite().all() for tensor in states)


def test_compiled_absorbed_attention():
    def rows(hidden, query, key_weight, value_weight, value_bias, attention_mask, global_mask):
        pattern = AttentionPattern.from_masks(attention_mask, global_mask, window=4)
        return absorbed_global_attention(hidden, pattern.gather_global(query), key_weight, value_weight, value_bias, pattern)

    compiled = torch.compile(rows, fullgraph=True, backend="aot_eager")
    weights = [torch.randn(24, 24, requires_grad=True) for _ in range(2)] + [torch.randn(24, requires_grad=True)]
    for seq_len in (30, 41, 50):
        query, *_, attention_mask, global_mask = model_inputs(seq_len)
        hidden = torch.randn(2, seq_len, 24, requires_grad=True)
        leaves = [hidden, query, *weights]
        got, expected = (call(*leaves, attention_mask, global_mask) for call in (compiled, rows))
        torch.testing.assert_close(got, expected)
        for one, two in zip(*(torch.autograd.grad(out.sum(), leaves) for out in (got, expected)), strict=True):
            torch.testing.assert_close(one, two)


class Exported(torch.nn.Module):
    """``model`` with a fixed room for globals, or any number of them."""

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return model(*inputs)


def test_export_with_dynamic_batch_and_length():
    """optimum issue 776: an export that was silently wrong off the traced length. Here lengths, batches and counts change."""
    tokens, batch = torch.export.Dim("tokens", min=4, max=4096), torch.export.Dim("batch", max=64)
    states, mask = {0: batch, 2: tokens}, {0: batch, 1: tokens}
    program = torch.export.export(
        Exported(), tuple(model_inputs(40)), dynamic_shapes=((states,) * 5 + (mask,) * 2,), strict=False
    )
    for seq_len, size, most_globals in ((40, 2, 1), (77, 3, 3), (500, 2, 7), (12, 1, 1)):
        inputs = model_inputs(seq_len, size, most_globals)
        assert torch.equal(program.module()(*inputs), model(*inputs))


def stack(query, key, value, dropout_p):
    """Two layers, the first one's dropout seed drawn inside the checkpointed region."""
    for _ in range(2):
        query = sliding_window_attention(query, key, value, window=3, dropout_p=dropout_p)
    return query


def grads_of(function, inputs) -> list[torch.Tensor]:
    torch.manual_seed(1)
    leaves = [tensor.detach().clone().requires_grad_() for tensor in inputs]
    function(*leaves).square().sum().backward()
    return [leaf.grad for leaf in leaves]


@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "not_reentrant"])
def test_checkpointing_gives_the_same_gradients(reentrant):
    """The seed is drawn outside the operator, from torch's generator, which checkpointing restores: bit for bit the same."""
    inputs = Case(seq_len=50).inputs(torch.float32)
    plain = grads_of(lambda *states: stack(*states, 0.1), inputs)
    again = grads_of(lambda *states: checkpoint(stack, *states, 0.1, use_reentrant=reentrant), inputs)
    for one, two in zip(again, plain, strict=True):
        assert torch.equal(one, two)
    other = grads_of(lambda *states: stack(*states, 0.0), inputs)
    assert not torch.equal(other[0], plain[0])


def test_checkpointing_of_global_rows_gives_the_same_gradients():
    case = OPTION_CASES["global_rows"]
    pattern = case.pattern()

    def layer(*states):
        return longformer_attention(*states, pattern, dropout_p=0.1)

    inputs = case.inputs(torch.float32)
    for one, two in zip(
        grads_of(lambda *states: checkpoint(layer, *states, use_reentrant=False), inputs), grads_of(layer, inputs), strict=True
    ):
        assert torch.equal(one, two)


def test_selective_checkpointing_keeps_attention_and_computes_the_rest_again():
    """A policy names the operator, which has to be seen in eager mode too."""
    attention = torch.ops.longformer_triton.attention.default
    decided = []

    def policy(_, operator, *args, **options):
        decided.append(operator)
        return CheckpointPolicy.MUST_SAVE if operator is attention else CheckpointPolicy.PREFER_RECOMPUTE

    def layer(query, key, value):
        return sliding_window_attention(query.sin(), key, value, window=3, dropout_p=0.1)

    inputs = Case(seq_len=50).inputs(torch.float32)
    context = functools.partial(create_selective_checkpoint_contexts, policy)
    again = grads_of(lambda *states: checkpoint(layer, *states, use_reentrant=False, context_fn=context), inputs)
    assert attention in decided
    for one, two in zip(again, grads_of(layer, inputs), strict=True):
        assert torch.equal(one, two)


def test_compiled_checkpointing_gives_the_same_gradients():
    """A seed that is given makes both runs comparable; the recomputation inside the graph must not draw another."""
    seed = torch.tensor(11)

    def layer(query, key, value):
        return sliding_window_attention(query, key, value, window=3, dropout_p=0.1, dropout_seed=seed)

    inputs = Case(seq_len=50).inputs(torch.float32)
    compiled = torch.compile(
        lambda *states: checkpoint(layer, *states, use_reentrant=False), fullgraph=True, backend="aot_eager"
    )
    for one, two in zip(grads_of(compiled, inputs), grads_of(layer, inputs), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled_checkpointing_with_a_drawn_seed(backend):
    """Forward and recomputation see one mask, which no run beside it could tell: the function is linear in the values.

    <gradient of value, value> = <gradient of out, out> holds only if both used the same dropout mask.
    """

    def layer(query, key, value):
        return sliding_window_attention(query, key, value, window=3, dropout_p=0.25)

    query, key, value = Case(seq_len=50).inputs()
    compiled = torch.compile(lambda *states: checkpoint(layer, *states, use_reentrant=False), fullgraph=True, backend=backend)
    out = compiled(query, key, value)
    weight = torch.randn(out.shape, dtype=out.dtype)
    (grad_value,) = torch.autograd.grad(out, value, weight)
    torch.testing.assert_close((grad_value * value).sum(), (weight * out).sum(), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["attention", "attention_backward", "global_rows", "global_rows_backward"])
def test_schemas_end_in_what_is_unpacked(name):
    arguments = [argument.name for argument in getattr(torch.ops.longformer_triton, name).default._schema.arguments]
    assert tuple(arguments[-len(ops._OperatorOptions._fields) :]) == ops._OperatorOptions._fields
