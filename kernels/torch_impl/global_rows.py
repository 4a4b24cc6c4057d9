"""The PyTorch backend's rows of global queries: full attention of a few rows over all real keys, block by block.

The same blocks serve the rows inside ``longformer_attention`` and, alone, absorbed global projections, whose "keys" and
"values" are the hidden states themselves (arXiv 2004.05150, section 3.1).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from longformer_triton.kernels.dropout import Dropout
from longformer_triton.kernels.layout import QKV
from longformer_triton.kernels.pattern import AttentionPattern
from longformer_triton.kernels.precision import accumulation_dtype, to_accumulation_dtype
from longformer_triton.kernels.torch_impl.samples import Accumulator, Sample, blank, read_samples
from longformer_triton.kernels.torch_impl.tiles import KeySet, Needs, backward_tile, bias_from, forward_tile
from longformer_triton.kernels.workspace import Workspace

# Scores held at once: a block has as many rows as fit, and at least one.
_SCORES = 1 << 21


class RowBlock(NamedTuple):
    """Some global queries of one sample and all its real keys, in the accumulation type.

    The query heads of a group read the same keys, so their rows stand below each other, as rows of one key head: one product
    serves them all, and gradients of keys are summed inside it.
    """

    columns: slice  # of global_index
    position: Tensor  # [rows] int64, where these queries stand
    span: slice  # from the first to the last real token
    group: int  # query heads of a key head
    query: Tensor  # [key_heads, group * rows, channels]
    keys: KeySet

    def folded(self, states: Tensor) -> Tensor:
        """[heads, rows, ...] -> [key_heads, group * rows, ...]."""
        return states.unflatten(0, (-1, self.group)).flatten(1, 2)

    def unfolded(self, states: Tensor) -> Tensor:
        """[key_heads, group * rows, ...] -> [heads, rows, ...]."""
        return states.unflatten(1, (self.group, -1)).flatten(0, 1)


def blocks(inputs: QKV, sample: Sample, dropout: Dropout | None) -> Iterator[RowBlock]:
    """Every block of a sample, from query (batch, heads, G, channels) and key, value (batch, key_heads, seq_len, channels)."""
    count = len(sample.global_position)
    if count == 0:
        return
    query, key, value = (to_accumulation_dtype(states[sample.number]) for states in inputs)
    group = query.shape[0] // key.shape[0]
    span = slice(sample.first, sample.last)
    hole = None if sample.hole is None else sample.hole[span]
    key, value = blank(key[:, span], hole), blank(value[:, span], hole)
    bias = None if hole is None else bias_from(~hole[None], key.dtype)
    stream = sample.number * query.shape[0] + torch.arange(query.shape[0], device=query.device)
    rows = max(1, _SCORES // (query.shape[0] * key.shape[1]))
    for start in range(0, count, rows):
        columns = slice(start, min(start + rows, count))
        position = sample.global_position[columns]
        block = RowBlock(columns, position, span, group, query, KeySet(key, value, bias, None))
        factor = None
        if dropout is not None:
            factor = block.folded(dropout.factor_range(stream, position, sample.first, sample.last, 0, key.dtype))
        yield block._replace(query=block.folded(query[:, columns]), keys=KeySet(key, value, bias, factor))


def backward_block(
    block: RowBlock,
    given: tuple[Tensor, Tensor | None, Tensor | None],
    saved: tuple[Tensor, Tensor, Tensor | None],
    scale: float,
    sums: Accumulator,
    workspace: Workspace,
) -> None:
    """Add a block's gradients to ``sums``; ``saved`` are its (out, lse, kept), ``given`` the gradients of these.

    Both are [heads, rows, ...].
    """
    grad_out, grad_lse, grad_kept = (None if states is None else block.folded(states) for states in given)
    out, lse, kept = (None if states is None else block.folded(states) for states in saved)
    assert grad_out is not None
    assert out is not None
    assert lse is not None
    grad_out = to_accumulation_dtype(grad_out)
    delta = (grad_out * to_accumulation_dtype(out)).sum(-1)
    if grad_lse is not None:
        delta -= grad_lse
    if grad_kept is not None and kept is not None:
        delta += grad_kept * kept
    grad_query, [(grad_key, grad_value)] = backward_tile(
        block.query, grad_out, lse, delta, [block.keys], scale, sums.needs, workspace, grad_kept
    )
    sums.add(0, slice(None), block.columns, None if grad_query is None else block.unfolded(grad_query))
    sums.add(1, slice(None), block.span, grad_key)
    sums.add(2, slice(None), block.span, grad_value)


def rows_forward(
    inputs: QKV, pattern: AttentionPattern, scale: float, dropout: Dropout | None
) -> tuple[Tensor, Tensor, Tensor]:
    """(context, lse, kept) of operator ``global_rows``; rows past a sample's count are 0, -inf and 0."""
    query = inputs[0]
    context = torch.zeros_like(query)
    lse = query.new_full(query.shape[:3], -torch.inf, dtype=accumulation_dtype(query.dtype))
    kept = torch.zeros_like(lse)
    workspace = Workspace()
    for sample in read_samples(pattern):
        for block in blocks(inputs, sample, dropout):
            index = (sample.number, slice(None), block.columns)
            block_context, block_lse, block_kept = forward_tile(block.query, [block.keys], scale, workspace, want_kept=True)
            context[index], lse[index] = block.unfolded(block_context), block.unfolded(block_lse)
            kept[index] = 1 if block_kept is None else block.unfolded(block_kept)
    return context, lse, kept


def rows_backward(
    given: tuple[Tensor | None, Tensor | None, Tensor | None],
    saved: tuple[Tensor, Tensor, Tensor],
    inputs: QKV,
    pattern: AttentionPattern,
    scale: float,
    dropout: Dropout | None,
    needs: list[bool],
    grads: list[Tensor],
) -> None:
    """Gradients of operator ``global_rows``, written into ``grads`` where needed."""
    grad_context, grad_lse, grad_kept = given
    grad_context = torch.zeros_like(saved[0]) if grad_context is None else grad_context
    workspace = Workspace()
    for sample in read_samples(pattern):
        sums = Accumulator(inputs, grads, Needs(*needs), sample.number)
        for block in blocks(inputs, sample, dropout):
            index = (sample.number, slice(None), block.columns)
            block_given = (
                grad_context[index],
                None if grad_lse is None else grad_lse[index],
                None if grad_kept is None else grad_kept[index],
            )
            block_saved = (saved[0][index], saved[1][index], saved[2][index])
            backward_block(block, block_given, block_saved, scale, sums, workspace)
        sums.store()
