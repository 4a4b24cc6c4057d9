"""Dropout of what a layer adds to its residual, and the sum: on CPUs in one pass, with a mask of one byte a number.

PyTorch's dropout draws its mask one number at a time on CPUs, on one thread, and keeps it as numbers of the states' own type.
Here 64 bits are drawn at a time and read as four integers: probabilities are multiples of 2**-16, and the mask is kept as bool.
Draws come from PyTorch's generator, so that seeds and activation checkpointing mean what they always do.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from longformer_triton.kernels.layout import ceil_div
from longformer_triton.model.linear import apply_linear
from longformer_triton.model.plain import is_plain

# Of a draw's 16 bits, how many values there are
_VALUES = 1 << 16


def dropped(dropout: nn.Module, states: Tensor) -> Tensor:
    """``dropout(states)``, where ``dropout`` is a layer's :class:`torch.nn.Dropout`."""
    threshold = _threshold(dropout, states)
    return dropout(states) if threshold is None else _Dropped.apply(states, None, threshold)


def add_dropped(dropout: nn.Module, states: Tensor, residual: Tensor) -> Tensor:
    """``dropout(states) + residual``, in one pass where both have one shape and dtype."""
    threshold = _threshold(dropout, states)
    if threshold is None or states.shape != residual.shape or states.dtype != residual.dtype:
        return dropped(dropout, states) + residual
    return _Dropped.apply(states, residual, threshold)


def add_projected(output: Any, states: Tensor, residual: Tensor) -> Tensor:
    """What an output module of a layer computes, by its ``dense``, ``dropout`` and ``LayerNorm``: ours and transformers'."""
    normed: Tensor = output.LayerNorm(add_dropped(output.dropout, apply_linear(output.dense, states), residual))
    return normed


def _threshold(dropout: nn.Module, states: Tensor) -> int | None:
    """How many of a draw's values drop; None where ``dropout`` is to be called itself."""
    if torch.compiler.is_compiling() or states.device.type != "cpu":
        return None
    if not isinstance(dropout, nn.Dropout) or not dropout.training or not is_plain(dropout, nn.Dropout):
        return None
    threshold = round(_VALUES * dropout.p)
    return threshold if 0 < threshold < _VALUES else None


class _Dropped(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, residual: Tensor | None, threshold: int) -> Tensor:
        draws = states.new_empty(ceil_div(states.numel(), 4), dtype=torch.int64).random_(-(2**63), None)
        draws = draws.view(torch.int16)[: states.numel()].view(states.shape)
        kept = draws >= threshold - _VALUES // 2
        ctx.save_for_backward(kept)
        ctx.scale = _VALUES / (_VALUES - threshold)
        factor = kept.to(states.dtype)
        if residual is None:
            return factor.mul_(states).mul_(ctx.scale)
        return torch.addcmul(residual, states, factor, value=ctx.scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        needs_states, needs_residual, _ = ctx.needs_input_grad
        (kept,) = ctx.saved_tensors
        of_states = kept.to(grad.dtype).mul_(grad).mul_(ctx.scale) if needs_states else None
        return of_states, grad if needs_residual else None, None
