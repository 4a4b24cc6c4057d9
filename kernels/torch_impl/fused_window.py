"""The PyTorch backend's windows without dropout, forward on a CPU: PyTorch's fused attention over views of keys that overlap.

The fused kernel takes 32 queries at a time and keeps their scores in cache. So a strand's queries, in chunks of 32, are a batch
for it, each chunk with the slice of keys that its windows reach; neighbours share most of these keys, in memory too. The ends
of a strand, whose windows are cut off, are calls of their own. Against the blocks of :mod:`strands` this saves passes over the
scores, and most of the small operations between which threads wait for each other (bench/LOG.md, "overlapping views, again").
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from longformer_triton.kernels.dropout import Dropout
from longformer_triton.kernels.layout import ceil_div
from longformer_triton.kernels.pattern import in_band, key_range
from longformer_triton.kernels.torch_impl.fused_dense import readable
from longformer_triton.kernels.torch_impl.strands import Blocks
from longformer_triton.kernels.torch_impl.tiles import bias_from, join_keys

# Queries a chunk: what the kernel takes at once where queries are few. More would meet more keys outside of their windows.
_CHUNK = 32
# Numbers of a call's output, and of its mask: what a call adds to memory.
_NUMBERS = 1 << 20


def applies(query: Tensor, dropout: Dropout | None) -> bool:
    """Whether the window's forward can be left to the fused kernel."""
    return query.is_cpu and dropout is None


def forward(blocks: Blocks, scale: float, out: Tensor, lse: Tensor) -> None:
    """Fill a strand's out [heads, length, head_dim] and lse [heads, length]; rows that see no key get finite nonsense."""
    if out.numel() == 0:
        return
    window = _Window(blocks, scale)
    for rows, chunk in window.calls():
        window.attend(rows, chunk, out, lse)
    if not blocks.global_host:
        return
    step = max(1, _NUMBERS // (out.shape[0] * max(out.shape[2], len(blocks.global_host))))
    for start in range(0, out.shape[1], step):
        rows = slice(start, min(start + step, out.shape[1]))
        if not blocks.globals_are_inside(rows):
            query = blocks.query[:, rows].to(blocks.dtype)
            join_keys(out[:, rows], lse[:, rows], query, blocks.global_keys(rows), scale, blocks.workspace)


class _Window:
    """A strand as the fused kernel reads it."""

    def __init__(self, blocks: Blocks, scale: float) -> None:
        self.query = readable(blocks.query)
        self.key, self.value = (readable(states, blocks.hole) for states in (blocks.own_key, blocks.own_value))
        self.band, self.scale, self.dtype = blocks.pattern.band, scale, blocks.dtype
        self.hidden = None if blocks.hole is None else bias_from(~blocks.hole, blocks.dtype)

    def calls(self) -> Iterator[tuple[slice, int]]:
        """(queries, queries a chunk) of each call."""
        left, right = self.band
        heads, length, head_dim = self.query.shape
        # Whole chunks whose keys are all there
        inner = slice(ceil_div(left, _CHUNK) * _CHUNK, (length - right) // _CHUNK * _CHUNK)
        if inner.stop <= inner.start:
            inner = slice(length, length)
        width = heads * head_dim if self.hidden is None else max(heads * head_dim, _CHUNK + left + right)
        stretch = max(1, _NUMBERS // width // _CHUNK) * _CHUNK
        for start in range(inner.start, inner.stop, stretch):
            yield slice(start, min(start + stretch, inner.stop)), _CHUNK
        for edge in (slice(0, inner.start), slice(inner.stop, length)):
            most_keys = min(length, left + right + edge.stop - edge.start)
            step = max(_CHUNK, _NUMBERS // max(1, most_keys))
            for start in range(edge.start, edge.stop, step):
                stop = min(start + step, edge.stop)
                yield slice(start, stop), stop - start

    def attend(self, rows: slice, chunk: int, out: Tensor, lse: Tensor) -> None:
        """Fill the rows of out and lse."""
        count = (rows.stop - rows.start) // chunk
        first, end = key_range(rows.start, rows.stop, *self.band, self.key.shape[1])
        keys = end - first - (count - 1) * chunk
        # [heads, chunks, tokens, head_dim]
        query = self.query[:, rows].unfold(1, chunk, chunk).transpose(2, 3)
        key, value = (states[:, first:end].unfold(1, keys, chunk).transpose(2, 3) for states in (self.key, self.value))
        # By the distance from query to key, least where the last query meets the first key
        distance = torch.arange(first - rows.start - chunk + 1, first - rows.start + keys)
        bias = bias_from(in_band(distance.new_zeros(()), distance, *self.band, 1), self.dtype)
        if bias is not None:
            bias = bias.unfold(0, keys, 1).flip(0)
        if self.hidden is not None:
            hidden = self.hidden[first:end].unfold(0, keys, chunk)[:, None]
            bias = torch.minimum(hidden, torch.zeros(chunk, keys, dtype=self.dtype) if bias is None else bias)
        mask = None if bias is None else bias.view(1, -1, chunk, keys)
        tile_out, tile_lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, 0.0, False, attn_mask=mask, scale=self.scale
        )
        out[:, rows].unflatten(1, (count, chunk)).copy_(tile_out)
        lse[:, rows].unflatten(1, (count, chunk)).copy_(tile_lse)
