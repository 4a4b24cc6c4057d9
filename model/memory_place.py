"""What the place where a model runs, a kind of device and a dtype, decides about memory."""

from __future__ import annotations

import dataclasses

import torch

from longformer_triton.kernels.precision import accumulation_dtype
from longformer_triton.model.linear import has_sums_apart, is_worth_onednn


@dataclasses.dataclass(frozen=True)
class Place:
    """What a kind of device and a dtype decide."""

    device: str  # "cpu" or "cuda"
    dtype: torch.dtype

    @property
    def item(self) -> int:
        """Bytes of a number."""
        return self.dtype.itemsize

    @property
    def sum_item(self) -> int:
        """Bytes of a number of softmax, and of a sum."""
        return accumulation_dtype(self.dtype).itemsize

    def packed(self, tokens: int, weight: int) -> int:
        """Bytes of a weight of so many numbers in oneDNN's own order, which it is copied to for a product."""
        return weight * self.item * is_worth_onednn(self.device, self.dtype, tokens, weight)

    def product_sums(self, numbers: int) -> int:
        """Bytes of the sums of a product that has so many numbers, where they are made apart from the result."""
        return numbers * self.sum_item * has_sums_apart(self.device, self.dtype)

    @property
    def is_widened(self) -> bool:
        """Whether sums are made in a wider type than the model's."""
        return self.sum_item > self.item
