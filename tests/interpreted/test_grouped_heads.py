"""Heads that share keys, some key heads at a time: their gradients take no more memory at once than they may."""

import pytest
import torch
from attention_cases import Case, assert_same, poisoned_allocations

from longformer_triton.kernels.triton_impl import launch
from longformer_triton.kernels.triton_impl.problem import BackwardInputs
from longformer_triton.kernels.triton_impl.tuning import target_of

# Runs of one dilation begin and end within groups, and reach across them.
CASE = Case(
    batch=2, heads=6, key_heads=3, seq_len=37, head_dim=8, window=(7, 4), dilation=(1, 2, 2, 2, 3, 3), padding="holes",
    globals_="some", global_rows=True, tokens_first=True,
)  # fmt: skip
OF_ONE_KEY_HEAD = 2 * 2 * 37 * 8 * 8  # bytes, in float64
AT_ONCE = pytest.mark.parametrize("at_once", [0, 1, 2, 3], ids=lambda number: f"room_for_{number}")


@AT_ONCE
def test_gradients_are_those_of_the_reference(at_once, monkeypatch):
    monkeypatch.setattr(launch, "_MOST_SUMS_BYTES", at_once * OF_ONE_KEY_HEAD)
    inputs = CASE.inputs()
    with poisoned_allocations():
        got = CASE.results(inputs, "triton")
    assert_same(got, CASE.results(inputs, "reference"), 1e-12)


@AT_ONCE
def test_sums_take_no_more_than_they_may(at_once, monkeypatch):
    monkeypatch.setattr(launch, "_MOST_SUMS_BYTES", at_once * OF_ONE_KEY_HEAD)
    query, key, value = (tensor.detach() for tensor in CASE.inputs()[:3])
    given = BackwardInputs(query, None, query, query[..., 0].contiguous())
    grads = [torch.empty_like(tensor) for tensor in (query, key, value)]
    needs, target = [True] * 3, target_of(query.device)
    steps = list(launch.backward_steps(given, (query, key, value), None, CASE.pattern(), 0.5, None, needs, grads, target))
    for name in ("grad_key_ptr", "grad_value_ptr"):
        sums = [step.arguments[name] for step in steps if getattr(step, "kernel", None) is launch.window_grad_key_value]
        assert {tensor.untyped_storage().nbytes() for tensor in sums} == {max(at_once, 1) * OF_ONE_KEY_HEAD}
        assert len({tensor.untyped_storage().data_ptr() for tensor in sums}) == 1
