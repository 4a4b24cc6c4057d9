"""The PyTorch backend against the reference: every option, every length, every precision."""

import dataclasses

import hypothesis
import pytest
import torch
from attention_cases import (
    OPTION_CASES,
    Case,
    assert_close_to_float64,
    assert_same,
    by_blocks,
    check_against_reference,
    each,
    naive_results,
    poisoned_allocations,
    random_cases,
    through,
)

from longformer_triton.kernels import AttentionPattern, sliding_window_attention
from longformer_triton.kernels.torch_impl import global_rows, strands, tiles
from longformer_triton.kernels.workspace import Workspace

HALVES = [torch.float16, torch.bfloat16]
DTYPES = [torch.float32, *HALVES]


@pytest.fixture(autouse=True, scope="module")
def _poisoned():
    with poisoned_allocations():
        yield


@hypothesis.given(random_cases())
@hypothesis.settings(max_examples=200)
def test_any_options_match_the_reference(case):
    check_against_reference(case)


@pytest.mark.extended
@hypothesis.given(random_cases(max_len=400))
@hypothesis.settings(max_examples=1000, derandomize=False)
def test_any_options_match_the_reference_extended(case):
    check_against_reference(case)


@each(OPTION_CASES)
def test_each_option_matches_the_reference(case):
    """One option at a time, so that a failure has a name."""
    check_against_reference(case)


@pytest.mark.parametrize("heads_of", ["same", "grouped"])
@pytest.mark.parametrize("dilation", [1, 2], ids="dilation_{}".format)
@pytest.mark.parametrize("window", [1, 4, 31], ids="window_{}".format)
def test_lengths_around_the_window(window, dilation, heads_of):
    for seq_len in sorted({1, 2, window - 1, window, window + 1, 2 * window - 1, 2 * window, 2 * window + 1} - {0}):
        heads, key_heads = (2, 2) if heads_of == "same" else (4, 2)
        check_against_reference(
            Case(2, heads, key_heads, seq_len, 3, window, dilation, globals_="differing", padding="right", global_rows=True)
        )


@pytest.mark.parametrize("seq_len", [31, 32, 33, 63, 64, 65, 95, 96, 97, 128, 191, 192, 193, 289], ids="length_{}".format)
def test_lengths_around_the_blocks(seq_len):
    for window in (7, (96, 0), (0, 97)):
        check_against_reference(Case(1, 2, 2, seq_len, 3, window, globals_="some", padding="holes"))


@pytest.mark.parametrize("head_dim", [1, 7, 80], ids="head_dim_{}".format)
def test_any_head_dim(head_dim):
    check_against_reference(Case(head_dim=head_dim, globals_="some", global_rows=True))
    check_against_reference(Case(head_dim=head_dim, window=64, padding="right"))


@pytest.mark.parametrize("rows", [False, True], ids=["window_rows", "global_rows"])
def test_empty_batch(rows):
    case = Case(batch=0, padding="right", globals_="all", global_rows=rows)
    results = case.results(case.inputs(), "torch")
    assert results["out"].shape == (0, 2, 40, 4)
    assert results["lse"].shape == (0, 2, 40)
    for window in (3, 60):
        case = dataclasses.replace(case, window=window)
        assert_same(case.results(case.inputs(), "torch"), case.results(case.inputs(), "reference"))


PRECISION_CASES = {
    name: OPTION_CASES[name]
    for name in ("plain", "causal", "dilated_per_head", "grouped_heads", "padding_holes", "global_rows", "window_covers_all")
}


@through
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@each(PRECISION_CASES)
def test_errors_are_those_of_the_same_precision(case, dtype, through_lse):
    """Twice the error of plain PyTorch maths in that dtype, at most, for outputs and for every gradient."""
    case = dataclasses.replace(case, seq_len=130, head_dim=16, window=200 if case.window == 40 else case.window)
    inputs = case.inputs(dtype)
    wide = [tensor.detach().double().requires_grad_() for tensor in inputs]
    exact = case.results(wide, "reference", through_lse=through_lse)
    same = naive_results(case, inputs, through_lse=through_lse)
    got = case.results(inputs, "torch", through_lse=through_lse)
    with by_blocks():
        blocks = case.results(inputs, "torch", through_lse=through_lse)
    for name, value in [*got.items(), *blocks.items()]:
        assert value.dtype == (torch.float32 if name == "lse" else dtype)
        assert_close_to_float64(value, same[name], exact[name], name)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@each({name: OPTION_CASES[name] for name in ("plain", "everything", "window_covers_all", "whole_row_padded")})
def test_large_logits_stay_finite(case, dtype):
    """Scores of hundreds: float16 overflowed here in earlier systems, and the loss stuck at NaN (transformers issue 21449)."""
    inputs = case.inputs(dtype, times=30.0)
    for name, value in case.results(inputs, "torch").items():
        assert not value.isnan().any(), name
        assert value[value != -torch.inf].isfinite().all() or name == "lse", name


def test_half_precision_keeps_lse_in_float32():
    case = OPTION_CASES["global_rows"]
    for dtype in HALVES:
        assert case.run(case.inputs(dtype), "torch")[1].dtype == torch.float32


@pytest.mark.parametrize("rows", [1, 5, 64, 1000], ids="block_of_{}".format)
def test_block_size_changes_nothing(rows, monkeypatch):
    case = OPTION_CASES["everything"]
    expected = case.results(case.inputs(), "torch")
    monkeypatch.setattr(strands, "_BLOCK_ROWS", rows)
    with by_blocks():
        assert_same(case.results(case.inputs(), "torch"), expected)


@pytest.mark.parametrize("error", [-0.3, 0.01], ids="error_of_{}".format)
def test_an_error_of_lse_is_none_of_the_gradients(error):
    """Each block meets all keys of its rows, so that it can tell what their probabilities sum to."""
    query, grad_out, *sets = (torch.randn(2, tokens, 4, dtype=torch.float64) for tokens in (6, 6, 9, 9, 2, 2))
    keys = [tiles.KeySet(sets[0], sets[1], None, torch.rand(2, 6, 9).double()), tiles.KeySet(sets[2], sets[3], None, None)]
    lse = torch.cat([query @ part.key.mT for part in keys], -1).logsumexp(-1)
    delta, grad_kept = torch.randn(2, 2, 6, dtype=torch.float64)
    expected, got = (
        tiles.backward_tile(query, grad_out, given, delta, keys, 1.0, tiles.Needs(True, True, True), Workspace(), grad_kept)
        for given in (lse, lse + error)
    )
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("scores", [1, 100, 777])
def test_blocks_of_global_rows_change_nothing(scores, monkeypatch):
    case = OPTION_CASES["everything"]
    expected = case.results(case.inputs(), "torch")
    monkeypatch.setattr(global_rows, "_SCORES", scores)
    assert_same(case.results(case.inputs(), "torch"), expected)


@pytest.mark.parametrize("is_causal", [False, True], ids=["both_sides", "causal"])
@pytest.mark.parametrize("shift", [-1, 0, 1])
@pytest.mark.parametrize("edge", ["first", "last"])
def test_global_keys_where_a_block_begins_or_ends_to_hold_them(edge, shift, is_causal):
    """One key more or less decides whether all windows of a block hold the global token, which then needs no column."""
    rows, left, right = strands._BLOCK_ROWS, 120, 0 if is_causal else 110
    seq_len = 3 * rows
    position = (2 * rows - 1 - left if edge == "first" else rows + right) + shift
    marks = torch.zeros(1, seq_len)
    marks[0, position] = 1
    states = [torch.randn(1, 2, seq_len, 8, dtype=torch.float64) for _ in range(3)]
    options = {"window": (left, right), "is_causal": is_causal, "global_mask": marks}
    got, expected = (sliding_window_attention(*states, **options, backend=name) for name in ("torch", "reference"))
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


def test_window_arguments_equal_a_pattern():
    case = OPTION_CASES["everything"]
    query, key, value = case.inputs()[:3]
    masks = case.attention_mask(), case.global_mask()
    by_pattern = sliding_window_attention(query, key, value, pattern=case.pattern())
    by_masks = sliding_window_attention(
        query, key, value, window=case.window, dilation=case.dilation, attention_mask=masks[0], global_mask=masks[1]
    )
    assert torch.equal(by_pattern, by_masks)


def test_int_window_is_the_same_on_both_sides():
    query, key, value = Case().inputs()
    assert torch.equal(
        sliding_window_attention(query, key, value, window=3), sliding_window_attention(query, key, value, window=(3, 3))
    )


def test_default_scale():
    query, key, value = Case(head_dim=4).inputs()
    assert torch.equal(
        sliding_window_attention(query, key, value, window=3), sliding_window_attention(query, key, value, window=3, scale=0.5)
    )


def test_more_room_for_globals_changes_nothing():
    """A pattern with a fixed ``max_globals`` has empty columns; so does the batch's shorter samples' index."""
    case = OPTION_CASES["global_rows"]
    wide = AttentionPattern.from_masks(
        case.attention_mask(), case.global_mask(), window=case.window, max_globals=case.pattern().global_index.shape[1] + 3
    )
    inputs = case.inputs()
    expected = case.results(inputs, "torch")
    padded = torch.nn.functional.pad(inputs[3].detach(), (0, 0, 0, 3), value=torch.nan).requires_grad_()
    got = case.results([*inputs[:3], padded, *inputs[4:]], "torch", wide)
    assert torch.equal(got["grad of query_global"][:, :, -3:], torch.zeros(3, 2, 3, 4, dtype=torch.float64))
    got["grad of query_global"] = got["grad of query_global"][:, :, :-3]
    assert_same(got, expected)
