"""The PyTorch backend: exact attention block by block, linear in memory, forward and backward, on any device.

A sample is cut into *strands*: sets of heads with one dilation d, and for each of them the d residue classes of the tokens.
Inside a strand the window is contiguous, so each block of queries meets one slice of keys; the global keys that lie outside
the window of a query join the same softmax as a second set of keys. Nothing is padded or copied: blocks are views.

Padding at the ends only shortens the strands; padding inside becomes a bias. Counts and spans are read on the host, which is
free on a CPU and one synchronisation a call elsewhere.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator

import torch
from torch import Tensor

from longformer_triton.kernels.dropout import Dropout
from longformer_triton.kernels.pattern import AttentionPattern, in_band, key_range
from longformer_triton.kernels.precision import accumulation_dtype
from longformer_triton.kernels.tiles import FLOOR, KeySet, Needs, backward_tile, bias_from, forward_tile

# Queries a block: the matrix products run at full speed from about 64 rows, and each further row widens the slice of keys
# that the whole block meets (bench/LOG.md, "block size").
_BLOCK_NARROW, _BLOCK_WIDE, _WIDE_WINDOW = 64, 96, 256
# Scores held at once for the rows of global queries.
_ROW_SCORES = 1 << 21
# A row with this log-sum-exp has no probability anywhere, and so no gradient.
_NO_PROBABILITY = 1e30


@dataclasses.dataclass(frozen=True)
class Sample:
    """One sequence of the batch: where its real tokens begin and end, which are missing between, which are global."""

    number: int
    first: int
    last: int
    hole: Tensor | None  # (seq_len,) bool, True at masked tokens; None when there is none between first and last
    global_position: Tensor  # (G,) int64


@dataclasses.dataclass(frozen=True)
class Strand:
    """Heads of one dilation and one residue class of a sample's tokens, within which windows are contiguous."""

    query_heads: slice
    key_heads: slice
    tokens: slice
    dilation: int

    def view(self, states: Tensor, heads: slice) -> Tensor:
        """[heads, tokens, channels] of (heads, seq_len, channels); a view."""
        return states[heads, self.tokens]


def read_samples(pattern: AttentionPattern) -> Iterator[Sample]:
    """The batch, sample by sample."""
    counts = pattern.global_count.tolist()
    for number in range(pattern.batch):
        first, last, hole = 0, pattern.seq_len, None
        if pattern.key_mask is not None:
            mask = pattern.key_mask[number]
            real = mask.nonzero()[:, 0]
            first, last = (int(real[0]), int(real[-1]) + 1) if len(real) else (0, 0)
            hole = ~mask if len(real) < last - first else None
        yield Sample(number, first, last, hole, pattern.global_index[number, : counts[number]])


def strands(pattern: AttentionPattern, sample: Sample, heads: int, key_heads: int) -> Iterator[Strand]:
    """Every strand of a sample. Query heads of one group are strided, so that they line up with their key heads."""
    group = heads // key_heads
    dilations = pattern.dilations if len(pattern.dilations) > 1 else pattern.dilations * heads
    for member in range(group):
        for dilation, run in itertools.groupby(range(key_heads), key=lambda head, m=member: dilations[group * head + m]):
            run_heads = list(run)
            start, stop = run_heads[0], run_heads[-1] + 1
            for residue in range(min(dilation, sample.last - sample.first)):
                yield Strand(
                    slice(member + group * start, group * stop, group),
                    slice(start, stop),
                    slice(sample.first + residue, sample.last, dilation),
                    dilation,
                )


def _blank(states: Tensor, where: Tensor | None) -> Tensor:
    """``states`` [heads, tokens, channels] with zero rows where told, so that no NaN from there meets a product."""
    if where is None or not bool(where.any()):
        return states
    return states.masked_fill(where[:, None], 0)


class _Blocks:
    """The blocks of queries of one strand, each with the keys that it meets; the same walk serves both directions."""

    def __init__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        pattern: AttentionPattern,
        sample: Sample,
        strand: Strand,
        dead: Tensor | None,
        dropout: Dropout | None,
    ) -> None:
        self.pattern, self.sample, self.strand, self.dropout = pattern, sample, strand, dropout
        self.dtype = accumulation_dtype(query.dtype)
        self.query = strand.view(query[sample.number], strand.query_heads)
        self.dead = None if dead is None else dead[strand.tokens]
        self.hole = None if sample.hole is None else sample.hole[strand.tokens]
        self.position = torch.arange(pattern.seq_len, device=query.device)[strand.tokens]
        keys, values = key[sample.number, strand.key_heads], value[sample.number, strand.key_heads]
        self.key = _blank(keys[:, strand.tokens].to(self.dtype), self.hole)
        self.value = _blank(values[:, strand.tokens].to(self.dtype), self.hole)
        self.global_key = keys[:, sample.global_position].to(self.dtype)
        self.global_value = values[:, sample.global_position].to(self.dtype)
        heads = torch.arange(query.shape[1], device=query.device)[strand.query_heads]
        self.stream = sample.number * query.shape[1] + heads
        self._bias: dict[tuple[int, int, int], Tensor | None] = {}

    def __iter__(self) -> Iterator[tuple[slice, slice, list[KeySet]]]:
        """(queries, keys, key sets) of each block, as slices of the strand; the second key set holds the global keys."""
        left, right = self.pattern.band
        length = self.query.shape[1]
        block = _BLOCK_WIDE if left + right >= _WIDE_WINDOW else _BLOCK_NARROW
        for start in range(0, length, block):
            rows = slice(start, min(start + block, length))
            keys = slice(*key_range(rows.start, rows.stop, left, right, length))
            key_sets = [self._window_keys(rows, keys)]
            if len(self.sample.global_position):
                key_sets.append(self._global_keys(rows))
            yield rows, keys, key_sets

    def rows_of(self, states: Tensor, rows: slice) -> Tensor:
        """Those rows in the accumulation type, zero where the window's output is discarded."""
        return _blank(states[:, rows].to(self.dtype), None if self.dead is None else self.dead[rows])

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
                self.stream, self.position[rows], step + keys.start, step + keys.stop, residue, self.dtype
            )
        return KeySet(self.key[:, keys], self.value[:, keys], bias, factor)

    def _global_keys(self, rows: slice) -> KeySet:
        row, column = self.position[rows, None], self.sample.global_position
        visible = ~in_band(row, column, *self.pattern.band, self.strand.dilation)
        if self.pattern.is_causal:
            visible &= column <= row
        factor = None
        if self.dropout is not None:
            factor = self.dropout.factor_at(self.stream[:, None, None], row, column, self.dtype)
        return KeySet(self.global_key, self.global_value, bias_from(visible, self.dtype), factor)


def _dead_rows(pattern: AttentionPattern, sample: Sample, with_rows: bool) -> Tensor | None:
    """(seq_len,) bool, True where the window's output is discarded: masked tokens, and global ones that get rows of their own."""
    if with_rows and pattern.global_mask is not None:
        dead = pattern.global_mask[sample.number]
        return dead if sample.hole is None else dead | sample.hole
    return sample.hole


def attention_forward(
    inputs: tuple[Tensor | None, ...], pattern: AttentionPattern, scale: float, dropout: Dropout | None
) -> tuple[Tensor, Tensor]:
    """(out, lse) of operator ``attention``."""
    query, key, value, query_global, key_global, value_global = inputs
    out = torch.empty_like(query)
    lse = query.new_empty(query.shape[:3], dtype=accumulation_dtype(query.dtype))
    for sample in read_samples(pattern):
        sample_out, sample_lse = out[sample.number], lse[sample.number]
        dead = _dead_rows(pattern, sample, query_global is not None)
        for strand in strands(pattern, sample, query.shape[1], key.shape[1]):
            blocks = _Blocks(query, key, value, pattern, sample, strand, dead, dropout)
            strand_out, strand_lse = sample_out[strand.query_heads, strand.tokens], sample_lse[strand.query_heads, strand.tokens]
            for rows, _, key_sets in blocks:
                tile_out, tile_lse, _ = forward_tile(blocks.rows_of(blocks.query, rows), key_sets, scale)
                strand_out[:, rows] = tile_out
                strand_lse[:, rows] = tile_lse
        for unseen in _unseen(sample, pattern.seq_len):
            sample_out[:, unseen] = 0
            sample_lse[:, unseen] = -torch.inf
        if query_global is not None:
            for heads, key_heads, columns in _row_blocks(sample, query_global.shape[1], key_global.shape[1]):
                rows_out, rows_lse, _ = _rows_tile(query_global, key_global, value_global, sample, heads, key_heads, columns, scale, dropout)
                row = sample.global_position[columns]
                sample_out[heads, row] = rows_out.to(out.dtype)
                sample_lse[heads, row] = rows_lse
    return out, lse


def _unseen(sample: Sample, seq_len: int) -> list[slice | Tensor]:
    """Index expressions of the masked rows of a sample."""
    unseen: list[slice | Tensor] = [slice(0, sample.first), slice(sample.last, seq_len)]
    return unseen if sample.hole is None else [*unseen, sample.hole]


def attention_backward(
    grad_out: Tensor | None,
    grad_lse: Tensor | None,
    out: Tensor,
    lse: Tensor,
    inputs: tuple[Tensor | None, ...],
    pattern: AttentionPattern,
    scale: float,
    dropout: Dropout | None,
    needs: list[bool],
    grads: list[Tensor],
) -> None:
    """Gradients of operator ``attention``, written into ``grads`` where needed."""
    query, key, value, query_global, key_global, value_global = inputs
    grad_out = torch.zeros_like(out) if grad_out is None else grad_out
    window_needs, row_needs = Needs(*needs[:3]), Needs(*needs[3:])
    for sample in read_samples(pattern):
        number = sample.number
        window = _Accumulator((query, key, value), grads[:3], window_needs, number)
        if any(window_needs):
            dead = _dead_rows(pattern, sample, query_global is not None)
            for strand in strands(pattern, sample, query.shape[1], key.shape[1]):
                blocks = _Blocks(query, key, value, pattern, sample, strand, dead, dropout)
                _strand_backward(blocks, grad_out[number], None if grad_lse is None else grad_lse[number], out[number], lse[number], scale, window)
        window.store()
        if query_global is None:
            continue
        rows = _Accumulator((query_global, key_global, value_global), grads[3:], row_needs, number)
        if any(row_needs):
            for heads, key_heads, columns in _row_blocks(sample, query_global.shape[1], key_global.shape[1]):
                row = sample.global_position[columns]
                given = (grad_out[number, heads, row], None if grad_lse is None else grad_lse[number, heads, row], None)
                saved = (out[number, heads, row], lse[number, heads, row], None)
                _rows_tile_backward(given, saved, inputs[3:], sample, heads, key_heads, columns, scale, dropout, rows)
        rows.store()


class _Accumulator:
    """The gradients of one sample's query, key and value, summed in the accumulation type.

    Where that is the type of the result, the sums are made in the result itself.
    """

    def __init__(self, inputs: tuple[Tensor, ...], grads: list[Tensor], needs: Needs, number: int) -> None:
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
        total = self.sums[slot][heads]
        if isinstance(tokens, slice):
            total[:, tokens].add_(tile)
        else:
            total.index_add_(1, tokens, tile)

    def store(self) -> None:
        for target, total in zip(self.targets, self.sums, strict=True):
            if target is not None and target is not total:
                target.copy_(total)


def _strand_backward(
    blocks: _Blocks, grad_out: Tensor, grad_lse: Tensor | None, out: Tensor, lse: Tensor, scale: float, window: _Accumulator
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
            blocks.rows_of(blocks.query, rows), grad_rows, row_lse, delta, key_sets, scale, window.needs
        )
        first, step = tokens.start, strand.dilation
        window.add(0, heads, slice(first + rows.start * step, first + rows.stop * step, step), grad_query)
        key_tokens = slice(first + keys.start * step, first + keys.stop * step, step)
        for where, (grad_key, grad_value) in zip((key_tokens, positions), grad_sets, strict=False):
            window.add(1, key_heads, where, grad_key)
            window.add(2, key_heads, where, grad_value)


def _row_blocks(sample: Sample, heads: int, key_heads: int) -> Iterator[tuple[slice, slice, slice]]:
    """(query heads, key heads, columns of global_index) such that the scores of one block stay small."""
    group = heads // key_heads
    block = max(1, _ROW_SCORES // (key_heads * max(1, sample.last - sample.first)))
    count = len(sample.global_position)
    for member in range(group):
        for start in range(0, count, block):
            yield slice(member, None, group), slice(None), slice(start, min(start + block, count))


def _rows_key_set(
    query: Tensor, key: Tensor, value: Tensor, sample: Sample, heads: slice, key_heads: slice, columns: slice, dropout: Dropout | None
) -> tuple[Tensor, KeySet]:
    """The block of global queries and all real keys of the sample, in the accumulation type."""
    dtype = accumulation_dtype(query.dtype)
    span = slice(sample.first, sample.last)
    hole = None if sample.hole is None else sample.hole[span]
    keys = _blank(key[sample.number, key_heads, span].to(dtype), hole)
    values = _blank(value[sample.number, key_heads, span].to(dtype), hole)
    factor = None
    if dropout is not None:
        stream = sample.number * query.shape[1] + torch.arange(query.shape[1], device=query.device)[heads]
        factor = dropout.factor_range(stream, sample.global_position[columns], sample.first, sample.last, 0, dtype)
    bias = None if hole is None else bias_from(~hole[None], dtype)
    return query[sample.number, heads, columns].to(dtype), KeySet(keys, values, bias, factor)


def _rows_tile(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    sample: Sample,
    heads: slice,
    key_heads: slice,
    columns: slice,
    scale: float,
    dropout: Dropout | None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    rows, keys = _rows_key_set(query, key, value, sample, heads, key_heads, columns, dropout)
    return forward_tile(rows, [keys], scale)


def _rows_tile_backward(
    given: tuple[Tensor | None, Tensor | None, Tensor | None],
    saved: tuple[Tensor, Tensor, Tensor | None],
    inputs: tuple[Tensor, ...],
    sample: Sample,
    heads: slice,
    key_heads: slice,
    columns: slice,
    scale: float,
    dropout: Dropout | None,
    sums: _Accumulator,
) -> None:
    """Add the gradients of one block of global rows; ``given`` and ``saved`` are (out, lse, kept) and their gradients."""
    rows, keys = _rows_key_set(*inputs, sample, heads, key_heads, columns, dropout)
    grad_out, grad_lse, grad_kept = given
    out, lse, kept = saved
    grad_out, out = grad_out.to(rows.dtype), out.to(rows.dtype)
    delta = (grad_out * out).sum(-1)
    if grad_lse is not None:
        delta -= grad_lse
    if grad_kept is not None:
        delta += grad_kept * kept
    grad_query, [(grad_key, grad_value)] = backward_tile(rows, grad_out, lse, delta, [keys], scale, sums.needs, grad_kept)
    span = slice(sample.first, sample.last)
    sums.add(0, heads, columns, grad_query)
    sums.add(1, key_heads, span, grad_key)
    sums.add(2, key_heads, span, grad_value)


def rows_forward(
    inputs: tuple[Tensor, ...], pattern: AttentionPattern, scale: float, dropout: Dropout | None
) -> tuple[Tensor, Tensor, Tensor]:
    """(context, lse, kept) of operator ``global_rows``; rows past a sample's count are 0, -inf and 0."""
    query, key, value = inputs
    context = torch.zeros_like(query)
    lse = query.new_full(query.shape[:3], -torch.inf, dtype=accumulation_dtype(query.dtype))
    kept = torch.zeros_like(lse)
    for sample in read_samples(pattern):
        for heads, key_heads, columns in _row_blocks(sample, query.shape[1], key.shape[1]):
            index = (sample.number, heads, columns)
            context[index], lse[index], row_kept = _rows_tile(query, key, value, sample, heads, key_heads, columns, scale, dropout)
            kept[index] = 1 if row_kept is None else row_kept
    return context, lse, kept


def rows_backward(
    given: tuple[Tensor | None, Tensor | None, Tensor | None],
    saved: tuple[Tensor, Tensor, Tensor],
    inputs: tuple[Tensor, ...],
    pattern: AttentionPattern,
    scale: float,
    dropout: Dropout | None,
    needs: list[bool],
    grads: list[Tensor],
) -> None:
    """Gradients of operator ``global_rows``, written into ``grads`` where needed."""
    query, key, _ = inputs
    context, lse, kept = saved
    grad_context, grad_lse, grad_kept = given
    grad_context = torch.zeros_like(context) if grad_context is None else grad_context
    for sample in read_samples(pattern):
        sums = _Accumulator(inputs, grads, Needs(*needs), sample.number)
        for heads, key_heads, columns in _row_blocks(sample, query.shape[1], key.shape[1]):
            index = (sample.number, heads, columns)
            block_given = tuple(None if grad is None else grad[index] for grad in (grad_context, grad_lse, grad_kept))
            block_saved = (context[index], lse[index], kept[index])
            _rows_tile_backward(block_given, block_saved, inputs, sample, heads, key_heads, columns, scale, dropout, sums)
        sums.store()
