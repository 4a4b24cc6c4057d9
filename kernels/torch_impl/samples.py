"""What the PyTorch backend reads from a pattern, sample by sample, and where it sums a sample's gradients."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch
from torch import Tensor

from longformer_triton.kernels.layout import QKV
from longformer_triton.kernels.pattern import AttentionPattern
from longformer_triton.kernels.precision import accumulation_dtype
from longformer_triton.kernels.torch_impl.tiles import Needs


@dataclasses.dataclass(frozen=True)
class Sample:
    """One sequence of the batch: where its real tokens begin and end, which are missing between, which are global."""

    number: int
    first: int
    last: int
    hole: Tensor | None  # (seq_len,) bool, True at masked tokens; None when there is none between first and last
    global_position: Tensor  # (G,) int64


def read_samples(pattern: AttentionPattern) -> Iterator[Sample]:
    """The batch, sample by sample."""
    spans = [(0, pattern.seq_len, 0)] * pattern.batch if pattern.key_span is None else pattern.key_span.tolist()
    for number, ((first, last, masked), count) in enumerate(zip(spans, pattern.global_count.tolist(), strict=True)):
        hole = ~pattern.key_mask[number] if pattern.key_mask is not None and masked else None
        yield Sample(number, first, last, hole, pattern.global_index[number, :count])


def blank(states: Tensor, where: Tensor | None) -> Tensor:
    """``states`` [..., tokens, channels] with zero rows where told, so that no NaN from there meets a product.

    ``where`` is bool, [tokens] or anything that broadcasts to [..., tokens].
    """
    if where is None or not bool(where.any()):
        return states
    return states.masked_fill(where[..., None], 0)


class Accumulator:
    """The gradients of one sample's query, key and value, summed in the accumulation type.

    Where that is the type of the result, the sums are made in the result itself.
    """

    def __init__(self, inputs: QKV, grads: list[Tensor], needs: Needs, number: int) -> None:
        self.needs = needs
        self.targets = [grad[number] if needed else None for grad, needed in zip(grads, needs, strict=True)]
        dtype = accumulation_dtype(inputs[0].dtype)
        self.sums = [
            None if target is None else target.zero_() if target.dtype == dtype else torch.zeros_like(target, dtype=dtype)
            for target in self.targets
        ]

    def add(self, slot: int, heads: slice, tokens: slice | Tensor, tile: Tensor | None) -> None:
        """Add [heads, tokens, channels]; None, for a gradient that is not needed, adds nothing."""
        if tile is None:
            return
        sums = self.sums[slot]
        assert sums is not None, "a gradient that was computed has a sum to go to"
        total = sums[heads]
        if isinstance(tokens, slice):
            total[:, tokens].add_(tile)
        else:
            total.index_add_(1, tokens, tile)

    def store(self) -> None:
        """Round the sums into the results, where they are not the results themselves."""
        for target, total in zip(self.targets, self.sums, strict=True):
            if target is not None and total is not None and target is not total:
                target.copy_(total)
