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


def has_autocast(device_type: str) -> bool:
    """Whether a kind of device has autocast; of one that has none, such as meta, PyTorch refuses to say whether it is on."""
    # PyTorch 2.11 cannot trace the question; what compilers are for has autocast.
    return device_type != "meta" and (torch.compiler.is_compiling() or torch.amp.is_autocast_available(device_type))


def without_autocast(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Products inside are made in the type of their factors, whatever autocast is on around them."""
    return torch.autocast(device.type, enabled=False) if has_autocast(device.type) else contextlib.nullcontext()


def matmul(left: Tensor, right: Tensor) -> Tensor:
    """``left @ right`` in their own type."""
    with without_autocast(left.device):
        return left @ right
