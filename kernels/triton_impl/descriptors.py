"""The copy engine (TMA) and the tensors that it can address: descriptors name whole tensors, of which kernels load tiles."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from longformer_triton.kernels.layout import ceil_div
from longformer_triton.kernels.triton_impl.tuning import Target


def fits_descriptor(states: Tensor) -> bool:
    """Whether the copy engine can address a tensor: aligned to 16 bytes, rows contiguous, no axis repeated by a stride of 0."""
    size, shape, strides = states.element_size(), states.shape, states.stride()
    if strides[-1] != 1 or shape[-1] * size < 16 or states.data_ptr() % 16:
        return False
    for length, stride in zip(shape[:-1], strides[:-1], strict=True):
        if length > 1 and (stride <= 0 or stride * size % 16):
            return False
    return True


def fitting_copy(states: Tensor) -> Tensor:
    """A copy that the copy engine can address: rows begin at multiples of 16 bytes, whatever their length."""
    aligned = 16 // states.element_size()
    width = ceil_div(states.shape[-1], aligned) * aligned
    return states.new_empty((*states.shape[:-1], width))[..., : states.shape[-1]].copy_(states)


def tiles_of(states: Tensor, block: list[int]) -> TensorDescriptor:
    """Tiles of ``block`` of a tensor; the stride of an axis of length one says nothing, and gets a legal value."""
    aligned = 16 // states.element_size()
    strides = [
        stride if length > 1 or axis == states.dim() - 1 else max(aligned, stride - stride % aligned)
        for axis, (stride, length) in enumerate(zip(states.stride(), states.shape, strict=True))
    ]
    return TensorDescriptor(states, list(states.shape), strides, block)


def uses_descriptors(target: Target, dilation: int, sources: Iterable[Tensor]) -> bool:
    """Whether the copy engine moves tiles of ``sources`` for heads of one dilation: where the device and every tensor allow it.

    Exact float32 products are no matrix instructions and take their operands from registers, so pointers serve them better.
    """
    return (
        target.descriptors
        and dilation == 1
        and all(
            fits_descriptor(states)
            and (states.dtype, target.precision_of(states.dtype)) != (torch.float32, "ieee")
            and math.prod(states.shape[:2]) * (states.shape[2] + 4) < 2**31
            for states in sources
        )
    )
