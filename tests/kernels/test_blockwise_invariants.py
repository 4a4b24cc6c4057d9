"""What holds for the PyTorch backend whatever the numbers: NaN stays where it is masked, nothing is overwritten, no state."""

import dataclasses

import pytest
import torch
from attention_cases import NAMES, OPTION_CASES, Case, assert_same, each, poisoned_allocations, through

from longformer_triton.kernels import AttentionPattern, longformer_attention, merge_attention, sliding_window_attention


@pytest.fixture(autouse=True, scope="module")
def _poisoned():
    with poisoned_allocations():
        yield


def with_values(tensor: torch.Tensor, where: torch.Tensor, value: float) -> torch.Tensor:
    """A leaf like ``tensor`` with ``value`` where told, in the same memory layout."""
    return torch.where(where, value, tensor.detach()).requires_grad_()


NAN_CASES = {
    "padded_right": Case(padding="right", globals_="some", global_rows=True),
    "padded_left_causal": Case(padding="left", globals_="some", is_causal=True),
    "holes_dilated": Case(3, 4, 2, 50, 4, 3, (1, 2, 3, 1), padding="holes", globals_="some", global_rows=True),
    "holes_grouped_dropout": Case(3, 4, 2, 50, 4, 3, padding="holes", globals_="some", global_rows=True, dropout_p=0.3),
    "whole_row": Case(3, padding="whole_row", globals_="differing", global_rows=True),
    "window_covers_all": Case(3, padding="holes", window=50, globals_="some", global_rows=True),
    "window_covers_all_causal": Case(3, padding="whole_row", window=50, is_causal=True),
    "window_covers_all_without_rows": Case(3, padding="right", window=50, globals_="some"),
}


@through
@pytest.mark.parametrize("backend", ["torch", "reference"])
@pytest.mark.parametrize("poison", [torch.nan, torch.inf], ids=["nan", "inf"])
@each(NAN_CASES)
def test_masked_tokens_never_reach_anything(case, poison, backend, through_lse):
    """Padding is often uninitialised memory. Its values change no bit of an output or gradient, and its gradients are zero."""
    pattern, clean = case.pattern(), case.inputs()
    masked = ~pattern.key_mask[:, None, :, None]
    dirty = []
    for name, tensor in zip(NAMES, clean, strict=False):
        if name == "query_global":
            dirty.append(with_values(tensor, (pattern.global_index < 0)[:, None, :, None], poison))
        else:
            dirty.append(with_values(tensor, masked, poison))
    expected, got = (case.results(inputs, backend, pattern, through_lse=through_lse) for inputs in (clean, dirty))
    assert_same(got, expected, 0)
    assert torch.equal(got["out"].masked_select(masked), torch.zeros(int(masked.sum()) * 4 * case.heads, dtype=torch.float64))
    assert (got["lse"].masked_select(masked[..., 0]) == -torch.inf).all()
    for name in ("query", "key", "value"):
        assert (got[f"grad of {name}"].masked_select(masked) == 0).all(), name
    if case.global_rows:
        assert (got["grad of query_global"].masked_select((pattern.global_index < 0)[:, None, :, None]) == 0).all()


@through
@pytest.mark.parametrize("backend", ["torch", "reference"])
@each({name: NAN_CASES[name] for name in ("padded_right", "holes_dilated", "holes_grouped_dropout", "window_covers_all")})
def test_local_query_at_global_rows_is_ignored(case, backend, through_lse):
    """What the window computes in a global row is discarded: not even NaN or infinity there gets through."""
    pattern, clean = case.pattern(), case.inputs()
    is_global = pattern.global_mask[:, None, :, None]
    expected = case.results(clean, backend, pattern, through_lse=through_lse)
    for poison in (torch.nan, torch.inf):
        dirty = [with_values(clean[0], is_global, poison), *clean[1:]]
        got = case.results(dirty, backend, pattern, through_lse=through_lse)
        assert_same(got, expected, 0)
        assert (got["grad of query"].masked_select(is_global) == 0).all()


def test_batch_of_three_equals_one_plus_two():
    case = dataclasses.replace(OPTION_CASES["everything"], dropout_p=0.0)
    inputs, whole = case.inputs(), case.pattern()
    out, lse = case.run(inputs, "torch", whole)
    width = whole.global_index.shape[1]
    for part in (slice(0, 1), slice(1, 3)):
        pattern = AttentionPattern.from_masks(
            case.attention_mask()[part], case.global_mask()[part], window=case.window, dilation=case.dilation, max_globals=width
        )
        part_out, part_lse = case.run([tensor[part] for tensor in inputs], "torch", pattern)
        torch.testing.assert_close(part_out, out[part], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(part_lse, lse[part], rtol=1e-12, atol=1e-12)


def test_disjoint_windows_merge_to_the_whole():
    """Keys up to the query, and keys after it, which are the window (0, 4) of the query moved on by one token."""
    query, key, value = Case(seq_len=130).inputs()
    before = sliding_window_attention(query, key, value, window=(6, 0), return_lse=True)
    later_out, later_lse = sliding_window_attention(query.roll(1, 2), key, value, window=(0, 4), return_lse=True)
    after = (
        torch.cat([later_out[:, :, 1:], torch.zeros_like(later_out[:, :, :1])], 2),
        torch.cat([later_lse[:, :, 1:], torch.full_like(later_lse[:, :, :1], -torch.inf)], 2),
    )
    whole = sliding_window_attention(query, key, value, window=(6, 5), return_lse=True)
    for got, expected in zip(merge_attention([before, after]), whole, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


@each({name: OPTION_CASES[name] for name in ("plain", "global_rows", "dilated_per_head")})
def test_permuted_heads_permute_the_result(case):
    case = dataclasses.replace(case, heads=3, key_heads=3, dilation=case.dilation if case.dilation == 1 else (1, 2, 3))
    order = [2, 0, 1]
    dilation = case.dilation if case.dilation == 1 else tuple(case.dilation[head] for head in order)
    inputs = case.inputs()
    out, lse = case.run(inputs, "torch")
    moved = dataclasses.replace(case, dilation=dilation)
    moved_out, moved_lse = moved.run([tensor[:, order] for tensor in inputs], "torch")
    torch.testing.assert_close(moved_out, out[:, order], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(moved_lse, lse[:, order], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shift", [1, 7, 96])
def test_shifted_text_shifts_the_result(shift):
    """Positions count only as differences: padding on the left moves everything and changes nothing."""
    query, key, value = Case(seq_len=110).inputs(requires_grad=False)
    plain = sliding_window_attention(query, key, value, window=(5, 2), dilation=2)
    mask = torch.cat([torch.zeros(2, shift), torch.ones(2, 110)], 1)
    moved = [torch.nn.functional.pad(tensor, (0, 0, shift, 0), value=torch.nan) for tensor in (query, key, value)]
    out = sliding_window_attention(*moved, window=(5, 2), dilation=2, attention_mask=mask)
    torch.testing.assert_close(out[:, :, shift:], plain, rtol=1e-12, atol=1e-12)
    assert not out[:, :, :shift].any()


def test_order_of_calls_does_not_matter():
    """In transformers 5 one short batch turned a model's later batches dense for good (issue 20031)."""
    short, long = Case(seq_len=9, window=20, globals_="some"), Case(seq_len=200, window=20, globals_="some", dropout_p=0.3)
    first = short.results(short.inputs(torch.float32), "torch")
    first_long = long.results(long.inputs(torch.float32), "torch")
    assert_same(short.results(short.inputs(torch.float32), "torch"), first, 0)
    assert_same(long.results(long.inputs(torch.float32), "torch"), first_long, 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@each({name: OPTION_CASES[name] for name in ("everything", "window_covers_all", "grouped_heads")})
def test_two_runs_are_bit_equal(case, dtype):
    case = dataclasses.replace(case, seq_len=333)
    inputs = case.inputs(dtype)
    assert_same(case.results(inputs, "torch"), case.results(inputs, "torch"), 0)


@each({name: OPTION_CASES[name] for name in ("everything", "window_covers_all", "all_global_rows", "dropout", "padding_holes")})
def test_nothing_given_is_overwritten(case):
    """A backward that writes into saved or incoming tensors breaks double use, and retain_graph."""
    inputs, pattern = case.inputs(torch.float32), case.pattern()
    held = [*inputs, pattern.global_index, pattern.global_count]
    held += [mask for mask in (pattern.key_mask, pattern.global_mask) if mask is not None]
    before = [tensor.detach().clone() for tensor in held]
    out, lse = case.run(inputs, "torch", pattern)
    cotangents = case.cotangents(out.dtype, lse.dtype)
    held += [out, lse, *cotangents]
    before += [tensor.detach().clone() for tensor in (out, lse, *cotangents)]
    first = torch.autograd.grad((out, lse), inputs, cotangents, allow_unused=True, retain_graph=True)
    second = torch.autograd.grad((out, lse), inputs, cotangents, allow_unused=True)
    for tensor, copy in zip(held, before, strict=True):
        assert torch.equal(tensor, copy)
    for one, two in zip(first, second, strict=True):
        assert torch.equal(one, two)


def _padded_storage(tensor: torch.Tensor) -> torch.Tensor:
    """The same values as a view with gaps: every second token of every second head of a larger block, channels cut."""
    batch, heads, tokens, channels = tensor.shape
    big = torch.full((batch, 2 * heads, 2 * tokens, channels + 3), torch.nan, dtype=tensor.dtype)
    view = big[:, ::2, ::2, 1 : channels + 1]
    return view.copy_(tensor.detach()).requires_grad_()


def _transposed(tensor: torch.Tensor) -> torch.Tensor:
    """The same values with tokens as the last stored dimension, so that channels are strided."""
    return tensor.detach().transpose(2, 3).contiguous().transpose(2, 3).requires_grad_()


def _every_second_channel(tensor: torch.Tensor) -> torch.Tensor:
    """The same values, each stored twice, as a view that leaves out the copies."""
    return tensor.detach().repeat_interleave(2, -1)[..., ::2].requires_grad_()


_COVERING = {
    "window_covers_all": OPTION_CASES["window_covers_all"],
    "covered_without_mask": Case(3, 4, 2, window=40),
    "covered_causal": Case(3, window=40, is_causal=True),
    "covered_with_global_rows": Case(3, window=40, globals_="some", global_rows=True),
}


@pytest.mark.parametrize(
    "layout", [_padded_storage, _transposed, _every_second_channel], ids=["gaps", "channels_first", "channels_strided"]
)
@through
@each({name: OPTION_CASES[name] for name in ("everything", "plain", "global_rows")} | _COVERING)
def test_any_strides(case, layout, through_lse):
    inputs = case.inputs()
    expected = case.results(inputs, "torch", through_lse=through_lse)
    assert_same(case.results([layout(tensor) for tensor in inputs], "torch", through_lse=through_lse), expected)


@through
@each({name: OPTION_CASES[name] for name in ("everything", "plain", "global_rows")} | _COVERING)
def test_numbers_that_many_elements_share(case, through_lse):
    """Expanded tensors repeat one number along the channels, or one row along the tokens."""
    for dimension in (2, 3):
        expanded = [tensor.detach().narrow(dimension, 0, 1).expand_as(tensor).requires_grad_() for tensor in case.inputs()]
        dense = [tensor.detach().clone(memory_format=torch.contiguous_format).requires_grad_() for tensor in expanded]
        got, expected = (case.results(inputs, "torch", through_lse=through_lse) for inputs in (expanded, dense))
        assert_same(got, expected)


@pytest.mark.parametrize("backend", ["torch", "reference"])
@each({name: OPTION_CASES[name] for name in ("everything", "window_covers_all", "plain", "global_rows")})
def test_gradient_of_a_sum(case, backend):
    """``out.sum().backward()`` delivers a gradient whose strides are all zero; ``expand`` others with some zeros."""
    inputs = case.inputs()
    out, _ = case.run(inputs, backend)
    dense = torch.ones(out.shape, dtype=out.dtype)
    expected = torch.autograd.grad(out, inputs, dense, retain_graph=True)
    for zero_strides in (dense.sum() * 0 + 1).expand(out.shape), torch.ones(4, dtype=out.dtype).expand(out.shape):
        for got, want in zip(torch.autograd.grad(out, inputs, zero_strides, retain_graph=True), expected, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    out.sum().backward()
    for tensor, want in zip(inputs, expected, strict=True):
        torch.testing.assert_close(tensor.grad, want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("wanted", range(6), ids=NAMES)
@each({name: OPTION_CASES[name] for name in ("global_rows", "everything", "window_covers_all")})
def test_only_wanted_gradients_are_computed(case, wanted):
    full = case.results(case.inputs(), "torch")
    inputs = case.inputs(requires_grad=False)
    inputs[wanted].requires_grad_()
    out, lse = case.run(inputs, "torch")
    torch.autograd.backward((out, lse), case.cotangents(out.dtype, lse.dtype))
    assert [tensor.grad is not None for tensor in inputs] == [slot == wanted for slot in range(6)]
    torch.testing.assert_close(inputs[wanted].grad, full[f"grad of {NAMES[wanted]}"], rtol=1e-12, atol=1e-12)


def test_without_gradients_nothing_is_saved():
    case = OPTION_CASES["everything"]
    with torch.no_grad():
        out, lse = case.run(case.inputs(), "torch")
    assert out.grad_fn is None
    assert lse.grad_fn is None


def test_unused_lse_and_unused_out():
    """Either output alone may carry the gradient; the other one's is then absent, not zeros to be added."""
    case = OPTION_CASES["everything"]
    inputs = case.inputs()
    cotangents = case.cotangents(torch.float64, torch.float64)
    for used in (0, 1):
        got, expected = (
            torch.autograd.grad(case.run(inputs, backend)[used], inputs, cotangents[used], allow_unused=True)
            for backend in ("torch", "reference")
        )
        for tensor, one, two in zip(inputs, got, expected, strict=True):
            one, two = (torch.zeros_like(tensor) if grad is None else grad for grad in (one, two))
            torch.testing.assert_close(one, two, rtol=1e-10, atol=1e-10)


def test_rows_of_ones_average_to_one():
    """Probabilities sum to one, whatever the window: attention over values of one is one."""
    for case in OPTION_CASES.values():
        if case.dropout_p:
            continue
        inputs, pattern = case.inputs(requires_grad=False), case.pattern()
        for slot in (2, 5):
            if slot < len(inputs):
                inputs[slot].fill_(1)
        out, lse = case.run(inputs, "torch", pattern)
        torch.testing.assert_close(out, (lse != -torch.inf).double()[..., None].expand_as(out), rtol=1e-12, atol=1e-12)


def test_global_rows_without_any_global_token():
    """The window's result, and gradients of zero for the global projections, so that data-parallel training needs no flag."""
    case = OPTION_CASES["no_global_rows"]
    inputs = case.inputs()
    out = longformer_attention(*inputs, case.pattern())
    assert torch.equal(out, sliding_window_attention(*inputs[:3], window=case.window))
    grads = torch.autograd.grad(out.sum(), inputs)
    for grad in grads[4:]:
        assert torch.equal(grad, torch.zeros_like(grad))


@through
@each({name: NAN_CASES[name] for name in ("padded_right", "holes_dilated", "whole_row", "window_covers_all")})
def test_incoming_gradients_of_masked_rows_count_for_nothing(case, through_lse):
    """A loss that divides by the length of a padded row hands NaN back."""
    inputs, pattern = case.inputs(), case.pattern()
    masked, count = ~pattern.key_mask[:, None], 2 if through_lse else 1
    outputs = case.run(inputs, "torch", pattern)
    clean = case.cotangents(torch.float64, torch.float64)
    dirty = [clean[0].masked_fill(masked[..., None], torch.nan), clean[1].masked_fill(masked, torch.nan)]
    expected, got = (
        torch.autograd.grad(outputs[:count], inputs, given[:count], retain_graph=True, allow_unused=True)
        for given in (clean, dirty)
    )
    for one, two in zip(got, expected, strict=True):
        assert one is two or torch.equal(one, two)
