"""The PyTorch backend's windows without dropout on a CPU: PyTorch's fused attention, part by part.

The fused kernel takes 32 to 256 queries at a time and keeps their scores in cache, which saves passes over the scores, and most
of the small operations between which threads wait for each other, against the blocks of :mod:`strands`. It skips no key that
a mask hides, so each call has the slice of keys that its queries' windows reach.

Forward, a strand's queries in chunks of 32 are a batch, each chunk with its own slice; neighbours share most of these keys, in
memory too. The ends of a strand, whose windows are cut off, are calls of their own, and so are queries that see all keys, which
need no mask. Global keys join the softmax afterwards. Backward, where the slices of neighbours have gradients to add up,
stretches of queries take turns, and global keys are one more part of them (bench/LOG.md, "overlapping views, again" and
"backward by stretches").
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from longformer_triton.kernels.dropout import Dropout
from longformer_triton.kernels.layout import ceil_div
from longformer_triton.kernels.pattern import in_band, key_range
from longformer_triton.kernels.torch_impl.fused import attend, forward_dtype, gradients, readable
from longformer_triton.kernels.torch_impl.samples import Accumulator
from longformer_triton.kernels.torch_impl.strands import Blocks
from longformer_triton.kernels.torch_impl.tiles import Needs, bias_from, floor_where, join_keys

# Queries a chunk: what the kernel takes at once where queries are few. More would meet more keys outside of their windows.
_CHUNK = 32
# Queries a call elsewhere, of which the kernel takes 64 at once; more would, for the same reason, be slower.
_ROWS = 192
# Numbers of a call's output, and of the mask of chunks with holes: what such calls add to memory.
_NUMBERS = 1 << 20


def forward_applies(query: Tensor, dropout: Dropout | None) -> bool:
    """Whether the window's forward can be left to the fused kernel."""
    return query.is_cpu and dropout is None


def backward_applies(blocks: Blocks, grad_lse: Tensor | None, needs: Needs) -> bool:
    """Whether a strand's backward can: with all its products wanted, and a head for every thread (see :func:`gradients`)."""
    heads = blocks.query.shape[0]
    return (
        forward_applies(blocks.query, blocks.dropout) and grad_lse is None and all(needs) and heads >= torch.get_num_threads()
    )


def forward(blocks: Blocks, scale: float, out: Tensor, lse: Tensor) -> None:
    """Fill a strand's out [heads, length, head_dim] and lse [heads, length]; rows that see no key get finite nonsense."""
    window = _Window(blocks, forward_dtype(blocks.query.dtype))
    query = readable(blocks.query.to(window.key.dtype))
    for rows, chunk in window.forward_calls():
        # In a function, so that a call's results are gone before the next one's are there
        window.attend(query, rows, chunk, scale, out, lse)
    for rows in _stretches(0, out.shape[1], _NUMBERS // (out.shape[0] * max(out.shape[2], len(blocks.global_host)))):
        if blocks.has_global_keys(rows):
            states = blocks.query[:, rows].to(blocks.dtype)
            join_keys(out[:, rows], lse[:, rows], states, blocks.global_keys(rows), scale, blocks.workspace)


def backward(blocks: Blocks, grad_out: Tensor, out: Tensor, lse: Tensor, scale: float, sums: Accumulator) -> None:
    """Add a strand's gradients; grad_out and out are [heads, length, head_dim], lse is [heads, length]."""
    window, strand = _Window(blocks, blocks.dtype), blocks.strand
    for rows in window.backward_calls():
        keys = window.keys_of(rows)
        band = window.mask(rows, keys, rows.stop - rows.start)
        parts: list[tuple[Tensor, Tensor, Tensor | None, slice | Tensor]]
        parts = [(window.key[:, keys], window.value[:, keys], band, strand.places(keys))]
        if blocks.has_global_keys(rows):
            key, value, bias, _ = blocks.global_keys(rows)
            parts.append((key, value, None if bias is None else bias[None, None], blocks.sample.global_position))
        grad_rows, query, out_rows = (readable(blocks.rows_of(states, rows))[None] for states in (grad_out, blocks.query, out))
        row_lse = blocks.lse_of(lse, rows)[None]
        for key, value, mask, places in parts:
            grad_query, grad_key, grad_value = gradients(
                grad_rows, query, key[None], value[None], out_rows, row_lse, scale, mask=mask
            )
            sums.add(0, strand.query_heads, strand.places(rows), grad_query[0])
            sums.add(1, strand.key_heads, places, grad_key[0])
            sums.add(2, strand.key_heads, places, grad_value[0])
            # Before the next are made
            del grad_query, grad_key, grad_value


def _stretches(start: int, stop: int, rows: int) -> Iterator[slice]:
    """Slices of at least one row that cover a range."""
    for first in range(start, stop, max(1, rows)):
        yield slice(first, min(first + max(1, rows), stop))


class _Window:
    """A strand as the fused kernel reads it, and the calls that serve it."""

    def __init__(self, blocks: Blocks, dtype: torch.dtype) -> None:
        # [heads, length, head_dim]
        self.key, self.value = (readable(states.to(dtype), blocks.hole) for states in (blocks.own_key, blocks.own_value))
        self.heads, self.length, self.head_dim = self.key.shape
        self.left, self.right = (min(side, self.length) for side in blocks.pattern.band)
        # Queries that see all keys
        self.middle = slice(max(0, self.length - 1 - self.right), min(self.length, self.left + 1))
        if self.middle.stop - self.middle.start < _ROWS:
            self.middle = slice(self.length, self.length)
        # [length], FLOOR at masked keys
        self.hidden = None if blocks.hole is None else bias_from(~blocks.hole, blocks.dtype)
        self.mask_dtype = blocks.dtype
        self._band: Tensor | None = None

    def keys_of(self, rows: slice) -> slice:
        """The keys that any of these queries sees."""
        return slice(*key_range(rows.start, rows.stop, self.left, self.right, self.length))

    def forward_calls(self) -> Iterator[tuple[slice, int]]:
        """(queries, queries a chunk) of each call."""
        width = self.heads * self.head_dim
        # Whole chunks whose keys are all there
        inner = slice(ceil_div(self.left, _CHUNK) * _CHUNK, (self.length - self.right) // _CHUNK * _CHUNK)
        is_chunked = inner.stop > inner.start
        if not is_chunked:
            inner = self.middle
        elif self.hidden is not None:
            width = max(width, _CHUNK + self.left + self.right)
        # The ends come first, since they need most rows of the mask.
        for end in ((0, inner.start), (inner.stop, self.length)):
            for rows in _stretches(*end, _ROWS):
                yield rows, rows.stop - rows.start
        for rows in _stretches(inner.start, inner.stop, max(1, _NUMBERS // width // _CHUNK) * _CHUNK):
            yield rows, _CHUNK if is_chunked else rows.stop - rows.start

    def backward_calls(self) -> Iterator[slice]:
        """The queries of each call."""
        yield from _stretches(0, self.middle.start, _ROWS)
        yield from _stretches(self.middle.start, self.middle.stop, _NUMBERS // (self.heads * self.head_dim))
        yield from _stretches(self.middle.stop, self.length, _ROWS)

    def attend(self, query: Tensor, rows: slice, chunk: int, scale: float, out: Tensor, lse: Tensor) -> None:
        """Fill the rows of out and lse, in chunks of queries, each with a slice of keys."""
        keys = self.keys_of(rows)
        width = self._keys_of_a_chunk(rows, keys, chunk)
        cuts = ((query, rows, chunk), (self.key, keys, width), (self.value, keys, width))
        # [heads, chunks, tokens of a chunk, head_dim]
        query, key, value = (states[:, tokens].unfold(1, size, chunk).transpose(2, 3) for states, tokens, size in cuts)
        of_chunks, lse_of_chunks = attend(query, key, value, scale, mask=self.mask(rows, keys, chunk))
        out[:, rows].unflatten(1, (-1, chunk)).copy_(of_chunks)
        lse[:, rows].unflatten(1, (-1, chunk)).copy_(lse_of_chunks)

    def mask(self, rows: slice, keys: slice, chunk: int) -> Tensor | None:
        """[1, 1 or chunks, chunk or 1, keys of a chunk]: 0 where visible, FLOOR elsewhere; None where all keys are."""
        width = self._keys_of_a_chunk(rows, keys, chunk)
        band = None
        if rows.stop - 1 - self.left > keys.start or rows.start + self.right < keys.stop - 1:
            band = self._band_of(chunk).narrow(1, self.left + keys.start - rows.start, width)[None]
        if self.hidden is None:
            return None if band is None else band[None]
        hidden = self.hidden[keys].unfold(0, width, chunk)[:, None]
        return (hidden if band is None else torch.minimum(band, hidden))[None]

    @staticmethod
    def _keys_of_a_chunk(rows: slice, keys: slice, chunk: int) -> int:
        return keys.stop - keys.start - (rows.stop - rows.start - chunk)

    def _band_of(self, rows: int) -> Tensor:
        """[rows, keys]: 0 in the windows of neighbouring queries, FLOOR elsewhere, from the first one's leftmost key on."""
        if self._band is None or self._band.shape[0] < rows:
            # By the distance from query to key, least where the last query meets the first key
            distance = torch.arange(1 - rows - self.left, rows + self.right)
            visible = in_band(distance.new_zeros(()), distance, self.left, self.right, 1)
            self._band = floor_where(~visible, self.mask_dtype).unfold(0, self.left + self.right + rows, 1).flip(0)
        return self._band[:rows]
