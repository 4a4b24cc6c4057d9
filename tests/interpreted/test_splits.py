"""Rows of global tokens over several splits of the keys: joined right whichever of them holds the largest scores."""

import pytest
import torch

from longformer_triton.kernels import AttentionPattern, longformer_attention
from longformer_triton.kernels.triton_impl.launch import forward_steps
from longformer_triton.kernels.triton_impl.tuning import target_of

LENGTH = 200
SLOPES = {"rising": torch.linspace(0, 9, LENGTH), "falling": torch.linspace(9, 0, LENGTH), "level": torch.ones(LENGTH)}


def problem(slope: str, masked: slice) -> tuple[list[torch.Tensor], AttentionPattern]:
    """Six inputs whose keys grow or shrink along the text, 20 global tokens, and a stretch of padding."""
    generator = torch.Generator().manual_seed(4)
    mask = torch.ones(1, LENGTH)
    mask[:, masked] = 0
    marks = torch.zeros(1, LENGTH)
    marks[:, 60:80] = 1
    pattern = AttentionPattern.from_masks(mask, marks, window=4)
    lengths = [LENGTH, LENGTH, LENGTH, pattern.global_index.shape[1], LENGTH, LENGTH]
    inputs = [torch.randn(1, 1, tokens, 8, generator=generator, dtype=torch.float64) for tokens in lengths]
    inputs[3] = inputs[3].abs()
    inputs[4] = inputs[4].abs() * SLOPES[slope][:, None]
    return inputs, pattern


@pytest.mark.parametrize("masked", [slice(0, 0), slice(0, 70), slice(128, 192)], ids=["none", "first", "third"])
@pytest.mark.parametrize("slope", SLOPES)
def test_splits_are_joined(slope, masked):
    """One or all of whose keys may be padding."""
    inputs, pattern = problem(slope, masked)
    results = []
    for backend in ("triton", "reference"):
        leaves = [tensor.clone().requires_grad_() for tensor in inputs]
        out, lse = longformer_attention(*leaves, pattern, return_lse=True, backend=backend)
        weight = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view(out.shape)
        loss = (out * weight).sum() + lse[lse > -torch.inf].sum()
        results.append([out, lse, *torch.autograd.grad(loss, leaves)])
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


def test_there_are_several_splits():
    inputs, pattern = problem("level", slice(0, 0))
    out, lse = torch.empty_like(inputs[0]), inputs[0].new_empty(inputs[0].shape[:3])
    steps = forward_steps(tuple(inputs[:3]), tuple(inputs[3:]), pattern, 0.5, None, out, lse, target_of(out.device))
    (combine,) = (step for step in steps if getattr(step, "kernel", None) and step.kernel.__name__ == "global_rows_combine")
    assert combine.arguments["splits"] == 4
