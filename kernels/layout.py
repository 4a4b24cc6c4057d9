"""Queries, keys and values, (batch, heads, tokens, channels): their type, and results laid out like them."""

from __future__ import annotations

import torch
from torch import Tensor

# query, key, value
QKV = tuple[Tensor, Tensor, Tensor]


def ceil_div(number: int, divisor: int) -> int:
    """``number / divisor``, rounded up."""
    return -(-number // divisor)


def empty_rows(states: Tensor) -> Tensor:
    """``torch.empty_like``, whose channels are neighbours in memory in any case: kernels store rows as a whole.

    By itself it sorts axes by their strides, and of a view in which another axis has a stride of 1 too it makes that the last.
    """
    rows = torch.empty_like(states)
    return rows if rows.stride(-1) == 1 else torch.empty_like(states, memory_format=torch.contiguous_format)
