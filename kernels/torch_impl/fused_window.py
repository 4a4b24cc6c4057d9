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
from longformer_triton.kernels.torch_impl.fused_dense import forward_dtype, readable
from longformer_triton.kernels.torch_impl.strands import Blocks
from longformer_triton.kernels.torch_impl.tiles import bias_from, floor_where, join_keys

# Queries a chunk: what the kernel takes at once where queries are few. More would meet more keys outside of their windows.
_CHUNK = 32
# Queries a call at the ends, of which the kernel takes 64 at once; more would, for the same reason, be slower.
_END_ROWS = 192
# Numbers of a call's output, and of its mask: what a call adds to memory.
_NUMBERS = 1 << 20


def applies(query: Tensor, dropout: Dropout | None) -> bool:
    """Whether the window's forward can be left to the fused kernel."""
    return query.is_cpu and dropout is None


def forward(blocks: Blocks, scale: float, out: Tensor, lse: Tensor) -> None:
    """Fill a strand's out [heads, length, head_dim] and lse [heads, length]; rows that see no key get finite nonsense."""
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
        # [heads, length, head_dim]
        dtype = forward_dtype(blocks.query.dtype)
        query, key, value = (states.to(dtype) for states in (blocks.query, blocks.own_key, blocks.own_value))
        self.query, self.key, self.value = readable(query), readable(key, blocks.hole), readable(value, blocks.hole)
        self.length, self.scale = self.query.shape[1], scale
        self.left, self.right = (min(side, self.length) for side in blocks.pattern.band)
        self.end_rows = max(_CHUNK, min(_END_ROWS, _NUMBERS // min(self.length, self.left + self.right + 1)))
        self.mask = self._mask(min(self.end_rows, self.length), blocks.dtype)
        # [length], FLOOR at masked keys
        self.hidden = None if blocks.hole is None else bias_from(~blocks.hole, blocks.dtype)

    def _mask(self, rows: int, dtype: torch.dtype) -> Tensor:
        """[rows, keys]: 0 in the windows of neighbouring queries, FLOOR elsewhere, from the first one's leftmost key on."""
        # By the distance from query to key, least where the last query meets the first key
        distance = torch.arange(1 - rows - self.left, rows + self.right)
        visible = in_band(distance.new_zeros(()), distance, self.left, self.right, 1)
        return floor_where(~visible, dtype).unfold(0, self.left + self.right + rows, 1).flip(0)

    def calls(self) -> Iterator[tuple[slice, int]]:
        """(queries, queries a chunk) of each call."""
        # Whole chunks whose keys are all there
        inner = slice(ceil_div(self.left, _CHUNK) * _CHUNK, (self.length - self.right) // _CHUNK * _CHUNK)
        if inner.stop <= inner.start:
            inner = slice(self.length, self.length)
        width = self.query.shape[0] * self.query.shape[2]
        if self.hidden is not None:
            width = max(width, _CHUNK + self.left + self.right)
        stretch = max(1, _NUMBERS // width // _CHUNK) * _CHUNK
        for start in range(inner.start, inner.stop, stretch):
            yield slice(start, min(start + stretch, inner.stop)), _CHUNK
        for end in (slice(0, inner.start), slice(inner.stop, self.length)):
            for start in range(end.start, end.stop, self.end_rows):
                stop = min(start + self.end_rows, end.stop)
                yield slice(start, stop), stop - start

    def attend(self, rows: slice, chunk: int, out: Tensor, lse: Tensor) -> None:
        """Fill the rows of out and lse."""
        count = (rows.stop - rows.start) // chunk
        first, end = key_range(rows.start, rows.stop, self.left, self.right, self.length)
        keys = end - first - (count - 1) * chunk
        # [heads, chunks, tokens, head_dim]
        query = self.query[:, rows].unfold(1, chunk, chunk).transpose(2, 3)
        key, value = (states[:, first:end].unfold(1, keys, chunk).transpose(2, 3) for states in (self.key, self.value))
        # [1 or chunks, chunk, keys]
        mask = self.mask[None, :chunk].narrow(2, self.left + first - rows.start, keys)
        if self.hidden is not None:
            mask = torch.minimum(mask, self.hidden[first:end].unfold(0, keys, chunk)[:, None])
        tile_out, tile_lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, 0.0, False, attn_mask=mask[None], scale=self.scale
        )
        out[:, rows].unflatten(1, (count, chunk)).copy_(tile_out)
        lse[:, rows].unflatten(1, (count, chunk)).copy_(tile_lse)
