"""The PyTorch backend's use of PyTorch's fused attention: when it serves, and that it computes the same."""

import dataclasses

import pytest
import torch
from attention_cases import (
    OPTION_CASES,
    Case,
    assert_same,
    by_blocks,
    check_against_reference,
    each,
    poisoned_allocations,
    through,
)
from torch.utils._python_dispatch import TorchDispatchMode

from longformer_triton.kernels import AttentionPattern, sliding_window_attention
from longformer_triton.kernels.torch_impl import fused, fused_dense, fused_window, tiles

HALVES = [torch.float16, torch.bfloat16]


@pytest.fixture(autouse=True, scope="module")
def _poisoned():
    with poisoned_allocations():
        yield


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("window", [4, 60], ids=["window", "window_covers_all"])
def test_half_precision_without_mkl_is_computed_in_float32(window, dtype, monkeypatch):
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: False)
    case = dataclasses.replace(OPTION_CASES["padding_holes"], window=window)
    inputs = case.inputs(dtype)
    for got, expected in zip(case.run(inputs, "torch"), case.run([states.float() for states in inputs], "torch"), strict=True):
        assert torch.equal(got, expected.to(got.dtype))


class _Count:
    """Calls through to a function, and counts."""

    def __init__(self, function) -> None:
        self.function, self.calls = function, 0

    def __call__(self, *args, **options):
        self.calls += 1
        return self.function(*args, **options)


@pytest.fixture
def dense_calls(monkeypatch):
    """How often the dense path ran its forward."""
    count = _Count(fused_dense.forward)
    monkeypatch.setattr(fused_dense, "forward", count)
    return count


DENSE_CASES = {
    "plain": Case(seq_len=50, window=60),
    "causal": Case(seq_len=50, window=(60, 0), is_causal=True),
    "causal_by_its_window": Case(seq_len=50, window=(49, 0), padding="right"),
    "causal_padded_left": Case(seq_len=50, window=60, is_causal=True, padding="left"),
    "padded": Case(3, 4, 2, 50, 4, 49, padding="whole_row", globals_="some", global_rows=True),
    "holes": Case(3, 4, 2, 50, 4, 49, padding="holes", globals_="all", global_rows=True, scale=-0.4),
    "exactly_covering": Case(seq_len=50, window=49, globals_="some"),
}


@through
@each(DENSE_CASES)
def test_dense_path_equals_blocks(case, through_lse, dense_calls, monkeypatch):
    """A window that covers everything takes PyTorch's fused kernel, with the same numbers."""
    inputs = case.inputs()
    dense = case.results(inputs, "torch", through_lse=through_lse)
    assert dense_calls.calls == 1
    monkeypatch.setattr(fused_dense, "applies", lambda *_: False)
    with by_blocks():
        assert_same(dense, case.results(inputs, "torch", through_lse=through_lse))
    assert dense_calls.calls == 1


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_dense_backward_is_computed_in_float32(dtype):
    """PyTorch's fused backward is ten times slower in half precision on processors without instructions for it."""

    class Record(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if "flash_attention_for_cpu_backward" in str(function):
                seen.append({states.dtype for states in args[:6]})
            return function(*args, **(kwargs or {}))

    seen: list[set[torch.dtype]] = []
    states = [torch.randn(1, 2, 9, 4, dtype=dtype) for _ in range(5)]
    grads, pattern = [torch.empty_like(states[0]) for _ in range(3)], AttentionPattern.from_masks(shape=(1, 9), window=9)
    with Record():
        fused_dense.backward(*states[:2], torch.zeros(1, 2, 9), *states[2:], pattern, 0.5, tiles.Needs(True, True, True), grads)
    assert seen == [{torch.float32}]
    assert not any(grad.isnan().any() for grad in grads)


@pytest.mark.parametrize("window", [48, (49, 48), (48, 49)], ids=str)
def test_dense_path_does_not_apply_one_key_short(window, dense_calls):
    """The ends of the text would otherwise see each other where the window forbids it."""
    check_against_reference(Case(seq_len=50, window=window))
    assert dense_calls.calls == 0


def test_dense_path_does_not_apply_where_a_global_key_stands_after_its_queries(dense_calls):
    check_against_reference(Case(seq_len=50, window=(49, 0), globals_="some"))
    assert dense_calls.calls == 0


@pytest.mark.parametrize("scale", [0.0, -0.5, 1e-3], ids="scale_{}".format)
@pytest.mark.parametrize(
    "options",
    [{"window": 60}, {"window": 60, "is_causal": True}, {"window": (60, 0)}],
    ids=["bidirectional", "causal", "causal_by_its_window"],
)
def test_covering_window_with_any_scale(options, scale):
    """PyTorch's fused kernel marks future keys with -inf before it multiplies by the scale: 0 * -inf and -1 * -inf were NaN."""
    case = Case(seq_len=50, scale=scale, **options)
    check_against_reference(case)
    assert not case.run(case.inputs(torch.bfloat16), "torch")[0].isnan().any()


@pytest.mark.parametrize("window", [4, 9], ids="window_{}".format)
def test_scores_below_all_numbers_of_float16(window):
    """Scores are float32, and so must be what marks padding: the least float16 was above them."""
    query = torch.full((1, 1, 9, 64), 100.0, dtype=torch.float16)
    mask = torch.tensor([[1] * 7 + [0] * 2])
    out = sliding_window_attention(query, -query, torch.ones_like(query), window=window, attention_mask=mask, backend="torch")
    assert torch.equal(out[0, 0, :, 0], mask[0].half())


@pytest.mark.parametrize("numbers", [1, 500, 1 << 30], ids="calls_of_{}".format)
@pytest.mark.parametrize("chunk", [1, 5, 32], ids="chunks_of_{}".format)
@each(
    {
        "narrow": Case(seq_len=150),
        "causal": Case(seq_len=150, window=(20, 0), is_causal=True, padding="left"),
        "wide": Case(2, 4, 2, 150, window=(120, 100), padding="holes", globals_="some", global_rows=True),
        "nearly_all": Case(seq_len=150, window=140, globals_="some"),
        "dilated": Case(2, 4, 4, 150, window=12, dilation=(1, 1, 3, 3), padding="holes", globals_="differing"),
    }
)
def test_chunks_and_calls_of_the_fused_kernel_change_nothing(case, chunk, numbers, monkeypatch):
    with by_blocks():
        expected = case.results(case.inputs(), "torch", through_lse=False)
    monkeypatch.setattr(fused_window, "_CHUNK", chunk)
    monkeypatch.setattr(fused_window, "_NUMBERS", numbers)
    monkeypatch.setattr(fused_window, "_ROWS", 3 * chunk)
    assert_same(case.results(case.inputs(), "torch", through_lse=False), expected)


@pytest.mark.parametrize("dropout_p", [0.0, 0.1], ids="dropout_{}".format)
def test_the_fused_kernel_serves_windows_without_dropout(dropout_p, monkeypatch):
    count = _Count(fused_window.forward)
    monkeypatch.setattr(fused_window, "forward", count)
    states = Case(batch=1).inputs()[:3]
    sliding_window_attention(*states, window=3, dropout_p=dropout_p, backend="torch")
    assert count.calls == (0 if dropout_p else 1)


@pytest.mark.parametrize(
    ("options", "is_served"),
    [
        ({}, True),
        ({"dropout_p": 0.1}, False),
        ({"through_lse": True}, False),
        ({"frozen": True}, False),
        ({"threads": 3}, False),
    ],
    ids=["plain", "dropout", "through_lse", "frozen_values", "more_threads_than_heads"],
)
def test_the_fused_kernel_serves_backward(options, is_served, monkeypatch):
    """Its threads share out heads, it makes all three gradients, and it has no gradient of lse."""
    count = _Count(fused_window.backward)
    monkeypatch.setattr(fused_window, "backward", count)
    monkeypatch.setattr(torch, "get_num_threads", lambda: options.get("threads", 2))
    query, key, value = Case(batch=1).inputs()
    value.requires_grad_(not options.get("frozen"))
    states = (query, key, value)
    out, lse = sliding_window_attention(
        *states, window=3, dropout_p=options.get("dropout_p", 0.0), return_lse=True, backend="torch"
    )
    (out.sum() + lse.sum() if options.get("through_lse") else out.sum()).backward()
    assert count.calls == is_served


def test_both_directions_round_scores_alike():
    """They multiply by the scale at different steps: scores of fifty, whose last bits count, rounded apart."""
    query, key, value, grad_out = (torch.zeros(1, 50, tokens, 8) for tokens in (40, 64, 64, 40))
    query[..., 0], key[..., 0] = 50 * (1 + torch.rand(1, 50, 40)), 1 + 0.01 * torch.rand(1, 50, 64)
    # So that the first query's probabilities are the gradients of values, and the first of them is the output
    value[:, :, 0, 0] = grad_out[:, :, 0, 0] = 1
    out, lse = fused.attend(query, key, value, 0.7)
    probability = fused.gradients(grad_out, query, key, value, out, lse, 0.7)[2][..., 0]
    torch.testing.assert_close(probability[..., 0] / probability.sum(-1), out[:, :, 0, 0], rtol=1e-6, atol=0)
