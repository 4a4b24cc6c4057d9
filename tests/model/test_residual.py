"""Hidden dropout and the residual in one pass: shares and scales, gradients, seeds, and whom it leaves alone."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.checkpoint import checkpoint

from longformer_triton.model.residual import add_dropped, dropped


@given(p=st.floats(1e-4, 1 - 1e-4), shape=st.sampled_from([(1,), (3, 5), (2, 7, 11)]), seed=st.integers(0, 2**32))
def test_what_is_kept_is_scaled_and_added(p, shape, seed):
    torch.manual_seed(seed)
    states, residual = torch.rand(*shape, dtype=torch.float64) + 1, torch.randn(*shape, dtype=torch.float64)
    found = add_dropped(nn.Dropout(p), states, residual) - residual
    share = round(65536 * p) / 65536
    scaled = states / (1 - share)
    is_kept = found.abs() > 0.5
    torch.testing.assert_close(found, torch.where(is_kept, scaled, 0.0), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("with_residual", [True, False], ids=["added", "alone"])
def test_the_share_that_is_dropped(p, with_residual):
    """A million draws; five standard deviations."""
    states = torch.ones(1000, 1001)
    zeros = torch.zeros_like(states)
    found = add_dropped(nn.Dropout(p), states, zeros) if with_residual else dropped(nn.Dropout(p), states)
    deviation = (p * (1 - p) / states.numel()) ** 0.5
    assert (found == 0).double().mean().item() == pytest.approx(p, abs=5 * deviation + 2**-17)
    assert found.mean().item() == pytest.approx(1, abs=5 * deviation / (1 - p) + 2**-15)
    # Neighbours in a row share a 64-bit draw, and are independent all the same.
    pairs = (found[:, :-1] == 0) & (found[:, 1:] == 0)
    assert pairs.double().mean().item() == pytest.approx(p * p, abs=5 * deviation)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_gradients_pass_where_states_did(dtype):
    states = (torch.rand(9, 33) + 1).to(dtype).requires_grad_()
    residual = torch.randn(9, 33).to(dtype).requires_grad_()
    dropout = nn.Dropout(0.25)
    torch.manual_seed(3)
    out = add_dropped(dropout, states, torch.zeros_like(states))
    torch.manual_seed(3)
    total = add_dropped(dropout, states, residual)
    grad = torch.randn(9, 33).to(dtype)
    of_states, of_residual = torch.autograd.grad(total, [states, residual], grad)
    assert torch.equal(of_residual, grad)
    factor = torch.where(out == 0, 0.0, 1 / 0.75).to(dtype)
    torch.testing.assert_close(of_states, grad * factor)
    torch.manual_seed(3)
    (alone,) = torch.autograd.grad(dropped(dropout, states), states, grad)
    torch.testing.assert_close(alone, of_states)


def test_one_seed_one_mask_and_checkpointing_repeats_it():
    states, residual = torch.randn(5, 64, requires_grad=True), torch.randn(5, 64)
    dropout = nn.Dropout(0.5)
    found = []
    for run in (add_dropped, lambda *given: checkpoint(add_dropped, *given, use_reentrant=False)):
        torch.manual_seed(11)
        out = run(dropout, states, residual)
        found.append([out, *torch.autograd.grad(out.sum(), states)])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
    assert not torch.equal(found[0][0], add_dropped(dropout, states, residual))


@pytest.mark.parametrize("p", [0.0, 1e-9, 1.0])
def test_nothing_and_everything(p):
    states, residual = torch.randn(4, 8), torch.randn(4, 8)
    expected = residual if p == 1 else states + residual
    torch.testing.assert_close(add_dropped(nn.Dropout(p), states, residual), expected)


def test_whatever_device_is_the_default():
    states = torch.ones(40, 8)
    with torch.device("meta"):
        found = add_dropped(nn.Dropout(0.5), states, states)
    assert found.device.type == "cpu"


def test_states_of_another_dtype_than_the_residual():
    """As under autocast: the sum is in the wider type, and the share still a multiple of 2**-16."""
    states, residual = torch.ones(99, 64, dtype=torch.bfloat16), torch.ones(99, 64)
    found = add_dropped(nn.Dropout(0.5), states, residual)
    assert found.dtype == torch.float32
    assert set(found.unique().tolist()) == {1.0, 3.0}


def test_in_evaluation_nothing_is_dropped():
    states, residual = torch.randn(4, 8), torch.randn(4, 8)
    dropout = nn.Dropout(0.5).eval()
    assert torch.equal(add_dropped(dropout, states, residual), states + residual)
    assert dropped(dropout, states) is states


def test_a_dropout_that_is_more_than_one_is_called():
    class Halved(nn.Dropout):
        def forward(self, states):
            return states / 2

    heard = []
    hooked = nn.Dropout(0.5)
    hooked.register_forward_hook(lambda *_: heard.append(1))
    states, residual = torch.randn(4, 8), torch.randn(4, 8)
    assert torch.equal(add_dropped(Halved(0.5), states, residual), states / 2 + residual)
    add_dropped(hooked, states, residual)
    dropped(hooked, states)
    assert heard == [1, 1]
