"""Scratch memory for computations that go block by block."""

from __future__ import annotations

import math

import torch
from torch import Tensor


class Workspace:
    """Scratch tensors that live from block to block.

    A block's scores are megabytes: freed after each block, they go back to the operating system, and fetching fresh pages then
    costs as much as the exponentials (bench/LOG.md, "workspace").
    """

    def __init__(self) -> None:
        self._buffers: dict[tuple[str, torch.dtype], Tensor] = {}

    def take(self, name: str, like: Tensor, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """An uninitialised contiguous tensor on the device of ``like``, valid until ``name`` is taken again."""
        size, dtype = math.prod(shape), dtype or like.dtype
        buffer = self._buffers.get((name, dtype))
        if buffer is None or buffer.numel() < size:
            buffer = self._buffers[name, dtype] = like.new_empty(size, dtype=dtype)
        return buffer[:size].view(shape)
