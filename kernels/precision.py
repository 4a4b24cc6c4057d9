"""The type that sums are made in: float64 for float64, float32 for everything else; and products that keep it."""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type of lse, of softmax and of every sum, for inputs of ``dtype``."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def to_accumulation_dtype(states: Tensor) -> Tensor:
    """``states`` in its accumulation type."""
    return states.to(accumulation_dtype(states.dtype))


def without_autocast(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Products inside are made in the type of their factors, whatever autocast is on around them."""
    # PyTorch 2.11 cannot trace the question; what compilers are for has autocast.
    has_autocast = torch.compiler.is_compiling() or torch.amp.is_autocast_available(device.type)
    if device.type == "meta" or not has_autocast:
        return contextlib.nullcontext()
    return torch.autocast(device.type, enabled=False)


def matmul(left: Tensor, right: Tensor) -> Tensor:
    """``left @ right`` in their own type."""
    with without_autocast(left.device):
        return left @ right
