"""The type that sums are made in: float64 for float64, float32 for everything else; and products that keep it."""

from __future__ import annotations

import torch
from torch import Tensor


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type of lse, of softmax and of every sum, for inputs of ``dtype``."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def to_accumulation_dtype(states: Tensor) -> Tensor:
    """``states`` in its accumulation type."""
    return states.to(accumulation_dtype(states.dtype))


def matmul(left: Tensor, right: Tensor) -> Tensor:
    """``left @ right`` in their own type, whatever autocast is on around it."""
    if not torch.amp.is_autocast_available(left.device.type):
        return left @ right
    with torch.autocast(left.device.type, enabled=False):
        return left @ right
