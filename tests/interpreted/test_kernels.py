"""The Triton kernels against the dense reference, in float64 and in the interpreter, for every option and their pairs."""

import dataclasses
import itertools

import pytest
import torch
from all_pairs import all_pairs
from attention_cases import (
    OPTION_CASES,
    Case,
    assert_close_to_float64,
    assert_same,
    each,
    naive_results,
    poisoned_allocations,
    random_cases,
)
from hypothesis import given, settings

from longformer_triton.kernels import AttentionPattern, longformer_attention, sliding_window_attention
from longformer_triton.kernels.triton_impl.descriptors import uses_descriptors
from longformer_triton.kernels.triton_impl.launch import backward_steps, forward_steps, prepare_step
from longformer_triton.kernels.triton_impl.problem import BackwardInputs, Problem
from longformer_triton.kernels.triton_impl.tuning import Target, target_of

TOLERANCE = 1e-12
BY = pytest.mark.parametrize("descriptors", [False, True], ids=["pointers", "descriptors"])

# Every pair of these values is covered. Lengths stand around multiples of the tiles.
PAIRS = {
    "seq_len": [1, 16, 37, 64, 83],
    "head_dim": [3, 16, 20],
    "heads": [2, 4],
    "key_heads": [1, 2],
    "window": [0, 5, (7, 2), (40, 90)],
    "dilation": [1, 3, "per head"],
    "padding": ["none", "right", "left", "holes", "whole_row"],
    "globals_": ["none", "differing", "some", "all"],
    "extra": ["nothing", "causal", "rows"],
    "dropout_p": [0.0, 0.3],
    "scale": [None, -0.4, 0.0],
    "tokens_first": [False, True],
    "tiles": [(16, 16), (32, 16), (16, 32)],
    "descriptors": [False, True],
}


def case_of(row: dict) -> tuple[Case, tuple[int, int], bool]:
    """One row of the covering array as (case, tiles, descriptors)."""
    options = dict(row)
    tiles, descriptors, extra = options.pop("tiles"), options.pop("descriptors"), options.pop("extra")
    if options["dilation"] == "per head":
        options["dilation"] = tuple(1 + head % 3 for head in range(options["heads"]))
    case = Case(batch=3, is_causal=extra == "causal", global_rows=extra == "rows", **options)
    # Dropout's bytes come for 64 keys at a time.
    return case, (tiles[0], 64) if case.dropout_p else tiles, descriptors


def row_id(row: dict) -> str:
    return "-".join(str(value).replace(" ", "") for value in row.values())


def assert_like_reference(case: Case) -> None:
    inputs = case.inputs()
    with poisoned_allocations():
        got = case.results(inputs, "triton")
    assert_same(got, case.results(inputs, "reference"), TOLERANCE)


@BY
@each(OPTION_CASES)
def test_each_option(case, descriptors, use_tiles):
    use_tiles(16, 64 if case.dropout_p else 16, descriptors=descriptors)
    assert_like_reference(case)


@pytest.mark.parametrize("row", all_pairs(PAIRS), ids=row_id)
def test_every_pair_of_options(row, use_tiles):
    case, tiles, descriptors = case_of(row)
    use_tiles(*tiles, descriptors=descriptors)
    assert_like_reference(case)


@given(case=random_cases(max_len=90))
@settings(max_examples=10)
def test_random_options(case):
    """With the configuration that the interpreter gets by default."""
    assert_like_reference(case)


@pytest.mark.extended
@given(case=random_cases(max_len=200))
@settings(max_examples=300)
def test_many_random_options(case):
    assert_like_reference(case)


# What rounding depends on, at a head_dim that models have: what is summed then outweighs the one rounding of the log-sum-exp
# that every attention which recomputes its probabilities has, and the textbook's has not. (In a window of one key the
# textbook's probability is exactly 1, which nothing recomputed can match: that case is one of the float64 tests only.)
PRECISION_CASES = {
    name: dataclasses.replace(OPTION_CASES[name], head_dim=64)
    for name in (
        "plain", "dilated_per_head", "grouped_heads", "padding_holes", "global_keys_causal", "global_rows",
        "negative_scale",
    )
}  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@each(PRECISION_CASES)
def test_errors_are_those_of_the_same_precision(case, dtype):
    inputs = case.inputs(dtype)
    got, same = case.results(inputs, "triton"), naive_results(case, inputs)
    exact = case.results([tensor.detach().double().requires_grad_() for tensor in inputs], "reference")
    for name in got:
        assert_close_to_float64(got[name], same[name], exact[name], name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@each({name: OPTION_CASES[name] for name in ("plain", "global_rows", "padding_holes")})
def test_large_logits_stay_finite(case, dtype):
    """Logits thirty times as large saturate the softmax; nothing may become NaN."""
    for name, tensor in case.results(case.inputs(dtype, times=5.5), "triton").items():
        assert not tensor.isnan().any(), name


@pytest.mark.parametrize("p", [1 / 256, 0.1, 0.5, 255 / 256])
@pytest.mark.parametrize("keys", [64, 128])
def test_dropout_masks_are_those_of_the_pytorch_backend(p, keys, use_tiles):
    """Scores of zero and values of one make each output the number of keys that were kept: equal to the bit."""
    case = Case(seq_len=150, window=(70, 30), dilation=(1, 2), globals_="some", global_rows=True, dropout_p=p)
    use_tiles(16, keys)
    inputs = [torch.zeros_like(tensor) + name.startswith("value") for name, tensor in zip_names(case)]
    got, expected = (case.run(inputs, backend)[0] for backend in ("triton", "torch"))
    torch.testing.assert_close(got, expected, rtol=1e-13, atol=0)


def zip_names(case: Case):
    return zip(("query", "key", "value", "query_global", "key_global", "value_global"), case.inputs(), strict=False)


def test_two_runs_are_equal_to_the_bit():
    case = OPTION_CASES["everything"]
    inputs = case.inputs(torch.float16)
    assert_same(case.results(inputs, "triton"), case.results(inputs, "triton"), 0)


def test_nothing_that_comes_in_is_overwritten():
    case = dataclasses.replace(OPTION_CASES["everything"], seq_len=30)
    inputs = case.inputs()
    before = [tensor.detach().clone() for tensor in inputs]
    out, lse = case.run(inputs, "triton")
    saved = out.detach().clone(), lse.detach().clone()
    cotangents = case.cotangents(out.dtype, lse.dtype)
    copies = [tensor.clone() for tensor in cotangents]
    torch.autograd.grad((out, lse), inputs, cotangents)
    for tensor, copy in zip((*inputs, out, lse, *cotangents), (*before, *saved, *copies), strict=True):
        assert torch.equal(tensor, copy)


@pytest.mark.parametrize("wanted", range(6), ids=["query", "key", "value", "query_global", "key_global", "value_global"])
def test_one_gradient_alone(wanted):
    case = Case(heads=2, globals_="some", global_rows=True, padding="right")
    inputs = case.inputs(requires_grad=False)
    inputs[wanted].requires_grad_()
    got, expected = (case.run(inputs, backend)[0].square().sum() for backend in ("triton", "reference"))
    (got,), (expected,) = (torch.autograd.grad(out, inputs[wanted]) for out in (got, expected))
    torch.testing.assert_close(got, expected, rtol=TOLERANCE, atol=TOLERANCE)


@BY
@pytest.mark.parametrize("padding", ["right", "left", "holes"])
def test_nan_in_masked_tokens_stays_there(padding, descriptors, use_tiles):
    use_tiles(16, 16, descriptors=descriptors)
    case = Case(seq_len=60, padding=padding, globals_="some", global_rows=True)
    clean, dirty = case.inputs(), case.inputs()
    masked = case.attention_mask()[:, None, :, None] == 0
    for slot in (0, 1, 2, 4, 5):
        dirty[slot] = dirty[slot].detach().masked_fill(masked, torch.nan).requires_grad_()
    assert_same(case.results(dirty, "triton"), case.results(clean, "triton"), 0)


@pytest.mark.parametrize("slot", [0, 1], ids=["query", "key"])
def test_nan_is_passed_on(slot):
    """What a maximum passes over must not end as a row that saw nothing, nor as a gradient of zero."""
    case = Case(seq_len=40, globals_="some", global_rows=True, padding="right")
    inputs = case.inputs()
    with torch.no_grad():
        inputs[slot][1, 0, 3] = torch.nan
    got, expected = (case.results(inputs, backend) for backend in ("triton", "reference"))
    for name in ("out", "lse"):
        assert expected[name].isnan().any()
        assert torch.equal(got[name].isnan(), expected[name].isnan()), name
    rows = got["out"].isnan().any(-1)
    assert got["grad of query"][rows].isnan().all()
    assert got["grad of key"][1, 0, :7].isnan().all()


def test_incoming_gradients_may_have_any_strides():
    """The gradient of a sum has strides of zero, that of a transposed result no unit stride."""
    case = Case(seq_len=40, globals_="some", global_rows=True)
    for reduce in (torch.sum, lambda out: (out.transpose(2, 3).contiguous() * torch.arange(40)).sum()):
        results = []
        for backend in ("triton", "reference"):
            inputs = case.inputs()
            results.append(torch.autograd.grad(reduce(case.run(inputs, backend)[0]), inputs))
        for got, expected in zip(*results, strict=True):
            torch.testing.assert_close(got, expected, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("through", ["out", "lse"])
def test_gradients_through_one_output_alone(through):
    """The other output's gradient is then None in the operator's backward, which means zeros."""
    case = Case(seq_len=40, globals_="some", global_rows=True)
    results = []
    for backend in ("triton", "reference"):
        inputs = case.inputs()
        out = case.run(inputs, backend)[0 if through == "out" else 1]
        grads = torch.autograd.grad(out.sin().sum(), inputs, allow_unused=True)
        results.append([torch.zeros_like(x) if grad is None else grad for x, grad in zip(inputs, grads, strict=True)])
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=TOLERANCE, atol=TOLERANCE)


def test_channels_that_are_no_neighbours_are_refused():
    states = torch.zeros(1, 1, 16, 20).transpose(2, 3)
    with pytest.raises(ValueError, match=r"query: got strides .*\.contiguous\(\)"):
        sliding_window_attention(states, states, states, window=2, backend="triton")


@BY
@pytest.mark.parametrize("slot", range(4), ids=["query", "key", "value", "grad_out"])
def test_nan_stays_in_its_head(slot, descriptors, use_tiles):
    """Numbers of rows come in tiles too, and the last tile of a head holds some of the next one's, or of the next text's."""
    use_tiles(32, 32, descriptors=descriptors)
    inputs = [torch.randn(2, 2, 100, 16, dtype=torch.float16) for _ in range(4)]  # float32 is always loaded by pointers
    inputs[slot][0, 1, :3] = inputs[slot][1, 0, :3] = torch.nan
    leaves = [states.requires_grad_() for states in inputs[:3]]
    out = sliding_window_attention(*leaves, window=20, backend="triton")
    for result in (out, *torch.autograd.grad(out, leaves, inputs[3])):
        assert not result[[0, 1], [0, 1]].isnan().any()


def test_rows_that_overlap():
    """Tokens one element apart: ``torch.empty_like`` would make of that a layout in which channels are no neighbours."""
    states = [torch.randn(1, 1, 95).as_strided((1, 1, 32, 64), (95, 95, 1, 1)) for _ in range(3)]
    results = []
    for backend in ("triton", "torch", "reference"):
        leaves = [tensor.detach().requires_grad_() for tensor in states]
        out = sliding_window_attention(*leaves, window=4, backend=backend)
        results.append([out, *torch.autograd.grad(out.square().sum(), leaves)])
    for got, expected in itertools.product(results[:2], results[2:]):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_offsets_beyond_31_bits():
    """Two samples that lie more than 2**31 elements apart; memory in between is never touched, so it costs nothing."""
    far = 2**31 + 64
    base = torch.empty(far + 4096, dtype=torch.float16)
    states = []
    for start in (0, 1024, 2048):
        view = base.as_strided((2, 1, 20, 16), (far, 16 * 20, 16, 1), start)
        view.copy_(torch.randn(2, 1, 20, 16))
        states.append(view)
    near = [view.clone() for view in states]
    far_out, near_out = (sliding_window_attention(*tensors, window=4, backend="triton") for tensors in (states, near))
    assert torch.equal(far_out, near_out)


def test_a_gradient_whose_channels_lie_far_apart_is_copied():
    """Kernels multiply a channel by its stride in 32 bits. A tensor without storage stands for one of 8 GB."""
    states = torch.zeros(1, 1, 20, 16)
    pattern = AttentionPattern.from_masks(shape=(1, 20), window=4)
    target = target_of(states.device)
    for stride, copied in ((2**26, False), (2**28, True)):
        grad_out = torch.empty_strided(states.shape, (20, 20, 1, stride), device="meta")
        problem = Problem((states, states, states), pattern, 0.25, None, target)
        _, arguments = prepare_step(problem, BackwardInputs(grad_out, None, states, states[..., 0].contiguous()))
        assert arguments["grad_out_stride_d"] == (1 if copied else stride)


@pytest.mark.parametrize("head_dim", [64, 250])
@pytest.mark.parametrize("begins", [0, 1, 8], ids=lambda begins: f"from_{begins}")
def test_backward_stays_on_the_copy_engine(head_dim, begins):
    """A gradient that is a piece of a larger one, as torch.cat hands them out, or whose rows are of an odd length."""
    states = torch.randn(1, 2, 20, 256, dtype=torch.float16)[..., :head_dim]
    pattern, target = AttentionPattern.from_masks(shape=(1, 20), window=4), Target("sm_90", descriptors=True)
    problem = Problem((states, states, states), pattern, 0.25, None, target)
    pieces = torch.randn(begins + states.numel(), dtype=torch.float16)
    grad_out = pieces[begins:].view(states.shape)
    given = BackwardInputs(grad_out, None, states.contiguous(), states[..., 0].contiguous())
    _, arguments = prepare_step(problem, given)
    got = arguments["grad_out_ptr"]
    assert uses_descriptors(target, 1, [got])
    assert torch.equal(got, grad_out)
    assert (got is grad_out) == (head_dim == 64 and begins % 8 == 0), "what fits is not copied"


def test_heads_without_dilation_stay_on_the_copy_engine():
    """Whatever the dilations of other heads; a gradient that does not fit is copied for their sake."""
    states = torch.randn(1, 4, 20, 64, dtype=torch.float16)
    pattern = AttentionPattern.from_masks(shape=(1, 20), window=4, dilation=(2, 1, 1, 3))
    qkv, target = (states, states, states), Target("sm_90", descriptors=True)
    given = BackwardInputs(states.new_ones(()).expand_as(states), None, states, states[..., 0].float())
    grads = [torch.empty_like(states) for _ in range(3)]
    steps = [
        *forward_steps(qkv, None, pattern, 0.25, None, grads[0], given.lse, target),
        *backward_steps(given, qkv, None, pattern, 0.25, None, [True] * 3, grads, target),
    ]
    got = [(step.arguments["first_head"], step.arguments["DESCRIPTORS"]) for step in steps if "DESCRIPTORS" in step.arguments]
    assert got == [(0, False), (1, True), (3, False)] * 3, "window_forward, window_grad_query, window_grad_key_value"


def test_steps_are_a_list_that_runs_when_it_is_complete():
    """Nothing happens on the host while it is made, not the sums of heads that share keys either."""
    case = Case(seq_len=37, heads=4, key_heads=2, globals_="some", padding="holes")
    pattern, generator = case.pattern(), case.generator(1)
    query, key, value = (torch.randn(case.batch, heads, 37, case.head_dim, generator=generator) for heads in (4, 2, 2))
    window, out, lse = (query, key, value), torch.empty_like(query), query.new_empty(query.shape[:3])
    target = target_of(query.device)
    for step in list(forward_steps(window, None, pattern, 0.5, None, out, lse, target)):
        step.run()
    grads = [torch.full_like(tensor, torch.nan) for tensor in window]
    steps = list(
        backward_steps(BackwardInputs(out, None, out, lse), window, None, pattern, 0.5, None, [True] * 3, grads, target)
    )
    assert all(grad.isnan().all() for grad in grads)
    for step in steps:
        step.run()
    leaves = [tensor.clone().requires_grad_() for tensor in window]
    expected = sliding_window_attention(*leaves, pattern=pattern, scale=0.5, backend="reference")
    expected.backward(out)
    for got, leaf in zip(grads, leaves, strict=True):
        torch.testing.assert_close(got, leaf.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scale", [1e-20, -1e-20, 1e8])
def test_extreme_scales_still_mask(scale):
    """The floor of masked scores is finite: times any scale that is let through, it stays finite and far below the others."""
    query, key, value = (torch.randn(1, 1, 40, 16) for _ in range(3))
    query = query / abs(scale)
    got, expected = (
        sliding_window_attention(query, key, value, window=3, scale=scale, backend=name) for name in ("triton", "reference")
    )
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("scale", [1e-30, -1e9])
def test_scales_that_would_lose_the_mask_are_refused(scale):
    states = torch.zeros(1, 1, 4, 16)
    with pytest.raises(ValueError, match=r"scale: got .*, expected 0 or a magnitude of 1e-20 to 1e\+08"):
        sliding_window_attention(states, states, states, window=2, scale=scale, backend="triton")


def test_batch_of_none():
    query = torch.zeros(0, 2, 5, 4, requires_grad=True)
    sliding_window_attention(query, query, query, window=2, backend="triton").sum().backward()
    assert query.grad.shape == query.shape


def test_bfloat16_is_refused_in_the_interpreter():
    states = torch.zeros(1, 1, 4, 16, dtype=torch.bfloat16)
    with pytest.raises(NotImplementedError, match="interpreter computes bfloat16 wrongly"):
        sliding_window_attention(states, states, states, window=2, backend="triton")


def test_the_interpreter_runs_only_when_asked_for():
    states = torch.zeros(1, 1, 4, 16, dtype=torch.bfloat16)
    assert sliding_window_attention(states, states, states, window=2).dtype == torch.bfloat16


def test_no_globals_although_there_is_room():
    """``max_globals`` without any global token: kernels run over an empty index."""
    states = [torch.randn(2, 2, 20, 8, dtype=torch.float64) for _ in range(5)]
    query, key, value, key_global, value_global = states
    pattern = AttentionPattern.from_masks(None, torch.zeros(2, 20), window=3, max_globals=4)
    rows = torch.full((2, 2, 4, 8), torch.nan, dtype=torch.float64)
    got, expected = (
        longformer_attention(query, key, value, rows, key_global, value_global, pattern, backend=backend)
        for backend in ("triton", "reference")
    )
    torch.testing.assert_close(got, expected, rtol=TOLERANCE, atol=TOLERANCE)


def test_a_dilation_whose_tokens_have_no_32_bit_numbers_is_refused():
    """Rows of a last tile would lie at negative offsets. A tensor that repeats one row stands for 30 million of them."""
    states = torch.zeros(1, 1, 1, 16).expand(1, 1, 30_000_000, 16)
    pattern = AttentionPattern.from_masks(shape=(1, 30_000_000), window=4, dilation=20_000_000)
    with pytest.raises(NotImplementedError, match="32-bit numbers of tokens do not reach for a dilation of 20000000"):
        Problem((states, states, states), pattern, 0.25, None, target_of(states.device))
