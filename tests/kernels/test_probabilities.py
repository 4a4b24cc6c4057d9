"""The attention maps on request: dense softmax, seen through Hugging Face's compact layout."""

import dataclasses

import hypothesis
import pytest
import torch
from attention_cases import OPTION_CASES, Case, each, random_cases
from torch.utils._python_dispatch import TorchDispatchMode

from longformer_triton.kernels import AttentionPattern, attention_probabilities, longformer_attention, sliding_window_attention

CASES = {name: dataclasses.replace(case, dropout_p=0.0) for name, case in OPTION_CASES.items() if name != "dropout"}


def sides_of(case: Case) -> tuple[int, int]:
    return case.window if isinstance(case.window, tuple) else (case.window, case.window)


def scale_of(case: Case) -> float:
    return case.head_dim**-0.5 if case.scale is None else case.scale


def maps(case: Case, inputs, **options):
    extra = {"query_global": inputs[3], "key_global": inputs[4]} if case.global_rows else {}
    return attention_probabilities(inputs[0], inputs[1], case.pattern(), scale=case.scale, **extra, **options)


def dense_probabilities(case: Case, inputs) -> torch.Tensor:
    """(batch, heads, seq_len, seq_len) of the window and the global keys, rows that see nothing zero."""
    query, key = inputs[0], inputs[1].repeat_interleave(case.heads // case.key_heads, 1)
    scores = scale_of(case) * query @ key.transpose(-1, -2)
    return torch.softmax(scores.masked_fill(~case.pattern().to_dense(), -torch.inf), -1).nan_to_num(0.0)


def spread_out(case: Case, local: torch.Tensor) -> torch.Tensor:
    """The compact local map as (batch, heads, seq_len, seq_len), by nested loops over its documented columns."""
    pattern, (left, right) = case.pattern(), sides_of(case)
    dilations = case.dilation if isinstance(case.dilation, tuple) else (case.dilation,) * case.heads
    width = pattern.global_index.shape[1]
    dense = local.new_zeros(case.batch, case.heads, case.seq_len, case.seq_len)
    for sample in range(case.batch):
        for column, position in enumerate(pattern.global_index[sample].tolist()):
            if position >= 0:
                dense[sample, :, :, position] += local[sample, :, :, column]
            else:
                assert not local[sample, :, :, column].any()
    for head, step in enumerate(dilations):
        for row in range(case.seq_len):
            for offset in range(-left, right + 1):
                position, column = row + offset * step, local[:, head, row, width + left + offset]
                if 0 <= position < case.seq_len:
                    dense[:, head, row, position] += column
                else:
                    assert not column.any()
    return dense


def check_local_map(case: Case) -> None:
    inputs, pattern = case.inputs(requires_grad=False), case.pattern()
    local, _ = maps(case, inputs)
    assert local.shape == (case.batch, case.heads, case.seq_len, pattern.global_index.shape[1] + sum(sides_of(case)) + 1)
    expected = dense_probabilities(case, inputs)
    if case.global_rows and pattern.global_mask is not None:
        expected = expected.masked_fill(pattern.global_mask[:, None, :, None], 0.0)
    torch.testing.assert_close(spread_out(case, local), expected, rtol=1e-10, atol=1e-12)


@each(CASES)
def test_local_map_is_the_dense_softmax(case):
    check_local_map(case)


@hypothesis.given(random_cases(max_len=24, dropout_p=0.0, window=(3, 5)))
@hypothesis.settings(max_examples=30)
def test_local_map_of_any_options(case):
    check_local_map(case)


@each(CASES)
def test_rows_sum_to_one(case):
    """Or to zero: padding, and global rows, whose probabilities stand in the global map."""
    pattern = case.pattern()
    local, global_map = maps(case, case.inputs())
    seen = pattern.to_dense().any(-1).expand(case.batch, case.heads, case.seq_len)
    if case.global_rows and pattern.global_mask is not None:
        seen = seen & ~pattern.global_mask[:, None, :]
    torch.testing.assert_close(local.sum(-1), seen.double())
    if global_map is not None:
        real = (pattern.global_index >= 0)[:, None, :].expand(case.batch, case.heads, -1)
        torch.testing.assert_close(global_map.sum(2), real.double())


def test_columns_by_hand():
    """Six tokens, equal scores, token 2 global, window (1, 2): x global columns first, then the window, self at G + left."""
    zero = torch.zeros(1, 1, 6, 1)
    pattern = AttentionPattern.from_masks(torch.tensor([[1, 1, 1, 1, 1, 0]]), torch.tensor([[0, 0, 1, 0, 0, 0]]), window=(1, 2))
    local, nothing = attention_probabilities(zero, zero, pattern)
    assert nothing is None
    third, quarter = 1 / 3, 1 / 4
    expected = [
        # global 2, then the keys at -1, 0 (self), +1, +2
        [third, 0, third, third, 0],  # token 0: the key at +2 is global
        [quarter, quarter, quarter, 0, quarter],  # token 1: the key at +1 is global
        [quarter, quarter, 0, quarter, quarter],  # token 2 itself is global, and an ordinary row here
        [third, 0, third, third, 0],  # token 3: the key at -1 is global, and +2 is padding
        [third, third, third, 0, 0],
        [0, 0, 0, 0, 0],  # padding
    ]
    torch.testing.assert_close(local[0, 0], torch.tensor(expected))
    local, global_map = attention_probabilities(zero, zero, pattern, query_global=zero[:, :, :1], key_global=zero)
    expected[2] = [0, 0, 0, 0, 0]
    torch.testing.assert_close(local[0, 0], torch.tensor(expected))
    torch.testing.assert_close(global_map[0, 0], torch.tensor([[0.2]] * 5 + [[0.0]]))


@each({name: CASES[name] for name in ("global_rows", "all_global_rows", "everything", "window_covers_all")})
def test_global_map_is_the_dense_softmax(case):
    """(batch, heads, seq_len, G): how much each global token attends to each token."""
    inputs, pattern = case.inputs(requires_grad=False), case.pattern()
    _, global_map = maps(case, inputs)
    query, key = inputs[3], inputs[4].repeat_interleave(case.heads // case.key_heads, 1)
    scores = scale_of(case) * query @ key.transpose(-1, -2)
    if pattern.key_mask is not None:
        scores = scores.masked_fill(~pattern.key_mask[:, None, None, :], -torch.inf)
    expected = torch.softmax(scores, -1).nan_to_num(0.0).masked_fill((pattern.global_index < 0)[:, None, :, None], 0.0)
    torch.testing.assert_close(global_map, expected.transpose(-1, -2), rtol=1e-10, atol=1e-12)


@each(CASES)
def test_maps_times_values_are_the_attention(case):
    inputs, pattern = case.inputs(requires_grad=False), case.pattern()
    local, global_map = maps(case, inputs)
    group = case.heads // case.key_heads
    out = spread_out(case, local) @ inputs[2].repeat_interleave(group, 1)
    if not case.global_rows:
        expected = sliding_window_attention(*inputs, pattern=pattern, scale=case.scale)
    else:
        expected = longformer_attention(*inputs, pattern, scale=case.scale)
        if global_map is not None:
            rows = global_map.transpose(-1, -2) @ inputs[5].repeat_interleave(group, 1)
            torch.testing.assert_close(rows, pattern.gather_global(expected), rtol=1e-10, atol=1e-12)
            expected = expected.masked_fill(pattern.global_mask[:, None, :, None], 0.0)
    torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("heads", "rows"),
    [([1], None), (None, [0, 17]), ([3, 0], [49, 2, 2]), ([-1], range(10, 20)), ([], [3]), ([0], []), ((2,), (-1,))],
    ids=str,
)
def test_chosen_heads_and_rows(heads, rows):
    case = CASES["everything"]
    inputs = case.inputs()
    local, global_map = maps(case, inputs)
    some_local, some_global = maps(case, inputs, heads=heads, rows=rows)
    heads = list(range(case.heads)) if heads is None else list(heads)
    rows = list(range(case.seq_len)) if rows is None else list(rows)
    torch.testing.assert_close(some_local, local[:, heads][:, :, rows])
    torch.testing.assert_close(some_global, global_map[:, heads])


def test_no_globals_leave_the_window_columns():
    case = CASES["no_global_rows"]
    local, global_map = maps(case, case.inputs())
    assert local.shape[-1] == 7
    assert global_map is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_maps_are_in_the_accumulation_type(dtype):
    case = CASES["everything"]
    inputs = case.inputs(dtype, requires_grad=False)
    exact = maps(case, [tensor.double() for tensor in inputs])
    for got, expected in zip(maps(case, inputs), exact, strict=True):
        assert got.dtype == torch.float32
        torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-6)


@each({name: CASES[name] for name in ("everything", "padded_right", "whole_row_padded", "window_covers_all")})
def test_nan_in_padding_stays_there(case):
    inputs, pattern = case.inputs(requires_grad=False), case.pattern()
    dirty = [tensor.clone() for tensor in inputs]
    for slot in (0, 1, 4):
        if slot < len(dirty):
            dirty[slot].masked_fill_(~pattern.key_mask[:, None, :, None], torch.nan)
    if case.global_rows:
        dirty[3].masked_fill_((pattern.global_index < 0)[:, None, :, None], torch.nan)
        dirty[0].masked_fill_(pattern.global_mask[:, None, :, None], torch.nan)
    for got, expected in zip(maps(case, dirty), maps(case, inputs), strict=True):
        assert (got is None) == (expected is None)
        if got is not None:
            assert torch.equal(got, expected)


@each({name: CASES[name] for name in ("causal", "dilated_per_head", "everything")})
@pytest.mark.parametrize("window", [(2, 300), (300, 2)], ids=["right", "left"])
def test_windows_beyond_the_text_keep_their_columns(case, window):
    check_local_map(dataclasses.replace(case, window=window))


def test_columns_outside_the_text_are_not_computed():
    """A hundred thousand of them took seconds."""

    def operations(window):
        case = Case(batch=1, seq_len=10, window=window, globals_="some")
        inputs, counted = case.inputs(requires_grad=False), []

        class Count(TorchDispatchMode):
            def __torch_dispatch__(self, func, types, args=(), kwargs=None):
                counted.append(func)
                return func(*args, **(kwargs or {}))

        with Count():
            maps(case, inputs)
        return len(counted)

    assert operations(5000) == operations(50)


def test_a_map_of_gigabytes_of_zeros_is_refused():
    pattern = AttentionPattern.from_masks(shape=(2, 10), window=10**9)
    states = torch.zeros(2, 4, 10, 8)
    with pytest.raises(ValueError, match=r"pattern: got a window of 1000000000 .* takes 596 GiB, .*pattern.with_window\(9\)"):
        attention_probabilities(states, states, pattern)
    assert attention_probabilities(states, states, pattern.with_window(9))[0].shape == (2, 4, 10, 19)


def test_batch_of_nothing():
    pattern = AttentionPattern.from_masks(torch.ones(0, 5), torch.ones(0, 5), window=1)
    local, _ = attention_probabilities(torch.zeros(0, 2, 5, 3), torch.zeros(0, 2, 5, 3), pattern)
    assert local.shape == (0, 2, 5, 3)
