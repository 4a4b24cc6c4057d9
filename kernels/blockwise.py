"""The PyTorch backend: exact attention block by block, linear in memory, forward and backward, on any device.

A sample is cut into *strands*: sets of heads with one dilation d, and for each of them the d residue classes of the tokens.
Inside a strand the window is contiguous, so each block of queries meets one slice of keys; the global keys that lie outside
the window of a query join the same softmax as a second set of keys. Nothing is padded, and blocks are views; what is copied
is what has to change its type, masked rows, and the global keys.

Padding at the ends only shortens the strands; padding inside becomes a bias. Counts, spans and masks are read on
the host, which is free on a CPU and synchronises many times a call elsewhere.
"""

from __future__ import annotations

import bisect
import dataclasses
import itertools
from collections.abc import Iterator

import torch
from torch import Tensor

from longformer_triton.kernels.dropout import Dropout
from longformer_triton.kernels.layout import QKV, empty_rows
from longformer_triton.kernels.pattern import AttentionPattern, in_band, key_range
from longformer_triton.kernels.precision import accumulation_dtype
from longformer_triton.kernels.torch_impl import fused_dense, global_rows
from longformer_triton.kernels.torch_impl.global_rows import rows_backward, rows_forward
from longformer_triton.kernels.torch_impl.samples import Accumulator, Sample, blank, read_samples
from longformer_triton.kernels.torch_impl.tiles import KeySet, Needs, backward_tile, bias_from, forward_tile
from longformer_triton.kernels.workspace import Workspace

__all__ = ["attention_backward", "attention_forward", "rows_backward", "rows_forward"]

# Queries a block: more rows make fuller matrix products, fewer make a narrower slice of keys that the whole block meets; 96 is
# best or close to it for windows from 32 to 2048 (bench/LOG.md, "block size").
_BLOCK_ROWS = 96
# Dropout's factors of global keys that are computed at once.
_FACTORS = 1 << 20
# A row with this log-sum-exp has no probability anywhere, and so no gradient.
_NO_PROBABILITY = 1e30


@dataclasses.dataclass(frozen=True)
class Strand:
    """Heads of one dilation and one residue class of a sample's tokens, within which windows are contiguous."""

    query_heads: slice
    key_heads: slice
    tokens: slice
    dilation: int


def strands(pattern: AttentionPattern, sample: Sample, heads: int, key_heads: int) -> Iterator[Strand]:
    """Every strand of a sample. Query heads of one group are strided, so that they line up with their key heads."""
    group = heads // key_heads
    dilations = pattern.dilations if len(pattern.dilations) > 1 else pattern.dilations * heads
    for member in range(group):
        start = 0
        for dilation, run in itertools.groupby(dilations[member::group]):
            stop = start + len(list(run))
            for residue in range(min(dilation, sample.last - sample.first)):
                yield Strand(
                    slice(member + group * start, group * stop, group),
                    slice(start, stop),
                    slice(sample.first + residue, sample.last, dilation),
                    dilation,
                )
            start = stop


class _Blocks:
    """The blocks of queries of one strand, each with the keys that it meets; the same walk serves both directions."""

    def __init__(
        self,
        local_qkv: QKV,
        pattern: AttentionPattern,
        sample: Sample,
        strand: Strand,
        dead: Tensor | None,
        dropout: Dropout | None,
        workspace: Workspace,
    ) -> None:
        query, key, value = local_qkv
        self.pattern, self.sample, self.strand, self.dropout, self.workspace = pattern, sample, strand, dropout, workspace
        self.dtype = accumulation_dtype(query.dtype)
        self.query = query[sample.number, strand.query_heads, strand.tokens]
        self.dead = None if dead is None else dead[strand.tokens]
        self.hole = None if sample.hole is None else sample.hole[strand.tokens]
        self.position = torch.arange(pattern.seq_len, device=query.device)[strand.tokens]
        keys, values = key[sample.number, strand.key_heads], value[sample.number, strand.key_heads]
        self.key = blank(keys[:, strand.tokens].to(self.dtype), self.hole)
        self.value = blank(values[:, strand.tokens].to(self.dtype), self.hole)
        self.global_key = keys[:, sample.global_position].to(self.dtype)
        self.global_value = values[:, sample.global_position].to(self.dtype)
        self.global_host = sample.global_position.tolist()
        heads = torch.arange(query.shape[1], device=query.device)[strand.query_heads]
        self.stream = sample.number * query.shape[1] + heads
        self._bias: dict[tuple[int, int, int], Tensor | None] = {}
        self._factors: tuple[int, Tensor] | None = None

    def __iter__(self) -> Iterator[tuple[slice, slice, list[KeySet]]]:
        """(queries, keys, key sets) of each block, as slices of the strand; the second key set holds the global keys."""
        left, right = self.pattern.band
        length = self.query.shape[1]
        for start in range(0, length, _BLOCK_ROWS):
            rows = slice(start, min(start + _BLOCK_ROWS, length))
            keys = slice(*key_range(rows.start, rows.stop, left, right, length))
            key_sets = [self._window_keys(rows, keys)]
            if self.global_host and not self._globals_are_inside(rows):
                key_sets.append(self._global_keys(rows))
            yield rows, keys, key_sets

    def rows_of(self, states: Tensor, rows: slice) -> Tensor:
        """Those rows in the accumulation type, zero where the window's output is discarded."""
        return blank(states[:, rows].to(self.dtype), None if self.dead is None else self.dead[rows])

    def _window_keys(self, rows: slice, keys: slice) -> KeySet:
        shape = (rows.start - keys.start, rows.stop - rows.start, keys.stop - keys.start)
        if shape not in self._bias:
            row = torch.arange(rows.start, rows.stop, device=self.query.device)[:, None]
            column = torch.arange(keys.start, keys.stop, device=self.query.device)
            self._bias[shape] = bias_from(in_band(row, column, *self.pattern.band, 1), self.dtype)
        bias = self._bias[shape]
        if self.hole is not None:
            missing = bias_from(~self.hole[None, keys], self.dtype)
            bias = bias if missing is None else missing if bias is None else torch.minimum(bias, missing)
        factor = None
        if self.dropout is not None:
            step, residue = divmod(self.strand.tokens.start, self.strand.dilation)
            factor = self.dropout.factor_range(
                self.stream, self.position[rows], step + keys.start, step + keys.stop, residue, self.dtype, self.workspace
            )
        return KeySet(self.key[:, keys], self.value[:, keys], bias, factor)

    def _global_keys(self, rows: slice) -> KeySet:
        row, column = self.position[rows, None], self.sample.global_position
        factor = None if self.dropout is None else self._global_factors(rows, self.dropout)
        if self._globals_are_beyond(rows):
            return KeySet(self.global_key, self.global_value, None, factor)
        visible = ~in_band(row, column, *self.pattern.band, self.strand.dilation)
        if self.pattern.is_causal:
            visible &= column <= row
        return KeySet(self.global_key, self.global_value, bias_from(visible, self.dtype), factor)

    def _global_factors(self, rows: slice, dropout: Dropout) -> Tensor:
        """[heads, rows, G]: dropout's factors of the global keys, computed for many blocks at once.

        They are few, and take a hundred small operations however few they are.
        """
        block_scores = len(self.stream) * _BLOCK_ROWS * len(self.sample.global_position)
        stretch = _BLOCK_ROWS * max(1, _FACTORS // block_scores)
        start = rows.start - rows.start % stretch
        if self._factors is None or self._factors[0] != start:
            position = self.position[start : start + stretch, None]
            factors = dropout.factor_at(self.stream[:, None, None], position, self.sample.global_position, self.dtype)
            self._factors = (start, factors)
        return self._factors[1][:, rows.start - start : rows.stop - start]

    def _globals_are_inside(self, rows: slice) -> bool:
        """Whether every global key is in the windows of all these rows, so that none counts as a column of its own."""
        if self.strand.dilation > 1:
            return False
        left, right = self.pattern.band
        first, last = (self.strand.tokens.start + row for row in (rows.start, rows.stop - 1))
        return last - left <= self.global_host[0] and self.global_host[-1] <= first + right

    def _globals_are_beyond(self, rows: slice) -> bool:
        """Whether no global key can be inside a window of these rows, so that all of them count as columns of their own.

        Most blocks pass, and this test on the host is cheaper than a mask.
        """
        if self.pattern.is_causal:
            return False
        (left, right), step = self.pattern.band, self.strand.dilation
        first, last = (self.strand.tokens.start + step * row for row in (rows.start, rows.stop - 1))
        positions = self.global_host
        return bisect.bisect_left(positions, first - left * step) == bisect.bisect_right(positions, last + right * step)


def _dead_rows(pattern: AttentionPattern, sample: Sample, with_rows: bool) -> Tensor | None:
    """(seq_len,) bool, True where the window's output is discarded: masked tokens, and global ones with rows of their own."""
    if with_rows and pattern.global_mask is not None:
        dead = pattern.global_mask[sample.number]
        return dead if sample.hole is None else dead | sample.hole
    return sample.hole


def attention_forward(
    local_qkv: QKV, global_qkv: QKV | None, pattern: AttentionPattern, scale: float, dropout: Dropout | None
) -> tuple[Tensor, Tensor]:
    """(out, lse) of operator ``attention``; ``global_qkv`` are the projections of global tokens, where they have some."""
    query, key, value = local_qkv
    out = empty_rows(query)
    lse = query.new_empty(query.shape[:3], dtype=accumulation_dtype(query.dtype))
    dense = dropout is None and fused_dense.applies(pattern, query, scale)
    if dense:
        fused_dense.forward(query, key, value, pattern, scale, out, lse)
    workspace = Workspace()
    for sample in read_samples(pattern):
        sample_out, sample_lse = out[sample.number], lse[sample.number]
        dead = _dead_rows(pattern, sample, global_qkv is not None)
        for strand in [] if dense else strands(pattern, sample, query.shape[1], key.shape[1]):
            blocks = _Blocks(local_qkv, pattern, sample, strand, dead, dropout, workspace)
            strand_out, strand_lse = (
                sample_out[strand.query_heads, strand.tokens],
                sample_lse[strand.query_heads, strand.tokens],
            )
            for queries, _, key_sets in blocks:
                tile_out, tile_lse, _ = forward_tile(blocks.rows_of(blocks.query, queries), key_sets, scale, workspace)
                strand_out[:, queries] = tile_out
                strand_lse[:, queries] = tile_lse
            del blocks
        for unseen in _unseen(sample, pattern.seq_len):
            sample_out[:, unseen] = 0
            sample_lse[:, unseen] = -torch.inf
        for block in [] if global_qkv is None else global_rows.blocks(global_qkv, sample, dropout):
            rows_out, rows_lse, _ = forward_tile(block.query, [block.keys], scale, workspace)
            sample_out[:, block.position] = block.unfolded(rows_out).to(out.dtype)
            sample_lse[:, block.position] = block.unfolded(rows_lse)
    return out, lse


def attention_backward(
    grad_out: Tensor | None,
    grad_lse: Tensor | None,
    out: Tensor,
    lse: Tensor,
    local_qkv: QKV,
    global_qkv: QKV | None,
    pattern: AttentionPattern,
    scale: float,
    dropout: Dropout | None,
    needs: list[bool],
    grads: list[Tensor],
) -> None:
    """Gradients of operator ``attention``, written into ``grads`` where needed: the window's three, then the rows' three."""
    grad_out = torch.zeros_like(out) if grad_out is None else grad_out
    window_needs, row_needs = Needs(*needs[:3]), Needs(*needs[3:])
    dense = dropout is None and grad_lse is None and fused_dense.applies(pattern, local_qkv[0], scale)
    if dense and any(window_needs):
        _dense_backward(grad_out, out, lse, local_qkv, global_qkv is not None, pattern, scale, window_needs, grads[:3])
    workspace = Workspace()
    for sample in read_samples(pattern):
        number = sample.number
        sample_grad_lse = None if grad_lse is None else grad_lse[number]
        if not dense and any(window_needs):
            sums = Accumulator(local_qkv, grads[:3], window_needs, number)
            dead = _dead_rows(pattern, sample, global_qkv is not None)
            for strand in strands(pattern, sample, local_qkv[0].shape[1], local_qkv[1].shape[1]):
                blocks = _Blocks(local_qkv, pattern, sample, strand, dead, dropout, workspace)
                _strand_backward(blocks, grad_out[number], sample_grad_lse, out[number], lse[number], scale, sums)
                # Before the next are made: in half precision, these are a sample's states in float32.
                del blocks
            sums.store()
            del sums
        if global_qkv is not None and any(row_needs):
            sums = Accumulator(global_qkv, grads[3:], row_needs, number)
            for block in global_rows.blocks(global_qkv, sample, dropout):
                index = (slice(None), block.position)
                given = (grad_out[number][index], None if sample_grad_lse is None else sample_grad_lse[index], None)
                saved = (out[number][index], lse[number][index], None)
                global_rows.backward_block(block, given, saved, scale, sums, workspace)
            sums.store()
            del sums


def _dense_backward(
    grad_out: Tensor,
    out: Tensor,
    lse: Tensor,
    local_qkv: QKV,
    with_rows: bool,
    pattern: AttentionPattern,
    scale: float,
    needs: Needs,
    grads: list[Tensor],
) -> None:
    """The window's gradients by the fused kernel, with the rows silenced whose window output was discarded."""
    query, key, value = local_qkv
    live = pattern.key_mask
    if with_rows and pattern.global_mask is not None:
        live = ~pattern.global_mask if live is None else live & ~pattern.global_mask
    if live is not None and not bool(live.all()):
        discarded = ~live[:, None, :]
        lse = lse.masked_fill(discarded, _NO_PROBABILITY)
        grad_out, out, query = (states.masked_fill(discarded[..., None], 0) for states in (grad_out, out, query))
    fused_dense.backward(grad_out, out, lse, query, key, value, pattern, scale, needs, grads)


def _unseen(sample: Sample, seq_len: int) -> list[slice | Tensor]:
    """Index expressions of the masked rows of a sample."""
    unseen: list[slice | Tensor] = [slice(0, sample.first), slice(sample.last, seq_len)]
    return unseen if sample.hole is None else [*unseen, sample.hole]


def _strand_backward(
    blocks: _Blocks,
    grad_out: Tensor,
    grad_lse: Tensor | None,
    out: Tensor,
    lse: Tensor,
    scale: float,
    sums: Accumulator,
) -> None:
    """Add the gradients of one strand; the states are those of one sample, (heads, seq_len, ...)."""
    strand, positions = blocks.strand, blocks.sample.global_position
    heads, key_heads, tokens = strand.query_heads, strand.key_heads, strand.tokens
    grad_out, out, lse = grad_out[heads, tokens], out[heads, tokens], lse[heads, tokens]
    for rows, keys, key_sets in blocks:
        row_lse, row_dead = lse[:, rows], None if blocks.dead is None else blocks.dead[rows]
        grad_rows = blocks.rows_of(grad_out, rows)
        delta = (grad_rows * blocks.rows_of(out, rows)).sum(-1)
        if grad_lse is not None:
            delta -= grad_lse[heads, tokens][:, rows]
        if row_dead is not None:
            row_lse, delta = row_lse.masked_fill(row_dead, _NO_PROBABILITY), delta.masked_fill(row_dead, 0)
        grad_query, grad_sets = backward_tile(
            blocks.rows_of(blocks.query, rows), grad_rows, row_lse, delta, key_sets, scale, sums.needs, blocks.workspace
        )
        first, step = tokens.start, strand.dilation
        sums.add(0, heads, slice(first + rows.start * step, first + rows.stop * step, step), grad_query)
        places: list[slice | Tensor] = [slice(first + keys.start * step, first + keys.stop * step, step), positions]
        for where, (grad_key, grad_value) in zip(places, grad_sets, strict=False):
            sums.add(1, key_heads, where, grad_key)
            sums.add(2, key_heads, where, grad_value)
