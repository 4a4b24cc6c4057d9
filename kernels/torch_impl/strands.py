"""A sample as strands, in which windows are contiguous, and a strand's queries in blocks, each with the keys that it meets."""

from __future__ import annotations

import bisect
import dataclasses
import functools
import itertools
from collections.abc import Iterator

import torch
from torch import Tensor

from longformer_triton.kernels.dropout import Dropout
from longformer_triton.kernels.layout import QKV
from longformer_triton.kernels.pattern import AttentionPattern, in_band, key_range
from longformer_triton.kernels.precision import accumulation_dtype
from longformer_triton.kernels.torch_impl.samples import Sample, blank
from longformer_triton.kernels.torch_impl.tiles import NO_PROBABILITY, KeySet, bias_from
from longformer_triton.kernels.workspace import Workspace

# Queries a block: more rows make fuller matrix products, fewer make a narrower slice of keys that the whole block meets; 96 is
# best or close to it for windows from 32 to 2048 (bench/LOG.md, "block size").
_BLOCK_ROWS = 96
# Dropout's factors of global keys that are computed at once.
_FACTORS = 1 << 20


@dataclasses.dataclass(frozen=True)
class Strand:
    """Heads of one dilation and one residue class of a sample's tokens, within which windows are contiguous."""

    query_heads: slice
    key_heads: slice
    tokens: slice
    dilation: int

    def places(self, part: slice) -> slice:
        """The tokens of the sample that a part of the strand's tokens are."""
        first = self.tokens.start
        return slice(first + part.start * self.dilation, first + part.stop * self.dilation, self.dilation)


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


class Blocks:
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
        keys, values = (states[sample.number, strand.key_heads] for states in (key, value))
        # [heads, tokens, channels], as they came
        self.query = query[sample.number, strand.query_heads, strand.tokens]
        self.own_key, self.own_value = keys[:, strand.tokens], values[:, strand.tokens]
        self.dead = None if dead is None else dead[strand.tokens]
        self.hole = None if sample.hole is None else sample.hole[strand.tokens]
        self.position = torch.arange(pattern.seq_len, device=query.device)[strand.tokens]
        self.global_key = keys[:, sample.global_position].to(self.dtype)
        self.global_value = values[:, sample.global_position].to(self.dtype)
        self.global_host = sample.global_position.tolist()
        heads = torch.arange(query.shape[1], device=query.device)[strand.query_heads]
        self.stream = sample.number * query.shape[1] + heads
        self._bias: dict[tuple[int, int, int], Tensor | None] = {}
        self._factors: tuple[int, Tensor] | None = None

    @functools.cached_property
    def key(self) -> Tensor:
        """[heads, tokens, channels], in the accumulation type, zero at masked tokens."""
        return blank(self.own_key.to(self.dtype), self.hole)

    @functools.cached_property
    def value(self) -> Tensor:
        """Like ``key``."""
        return blank(self.own_value.to(self.dtype), self.hole)

    def __iter__(self) -> Iterator[tuple[slice, slice, list[KeySet]]]:
        """(queries, keys, key sets) of each block, as slices of the strand; the second key set holds the global keys."""
        left, right = self.pattern.band
        length = self.query.shape[1]
        for start in range(0, length, _BLOCK_ROWS):
            rows = slice(start, min(start + _BLOCK_ROWS, length))
            keys = slice(*key_range(rows.start, rows.stop, left, right, length))
            key_sets = [self._window_keys(rows, keys)]
            if self.has_global_keys(rows):
                key_sets.append(self.global_keys(rows))
            yield rows, keys, key_sets

    def rows_of(self, states: Tensor, rows: slice) -> Tensor:
        """Those rows in the accumulation type, zero where the window's output is discarded."""
        return blank(states[:, rows].to(self.dtype), None if self.dead is None else self.dead[rows])

    def lse_of(self, lse: Tensor, rows: slice) -> Tensor:
        """Those rows, huge where the window's output is discarded, so that they have no gradients."""
        return lse[:, rows] if self.dead is None else lse[:, rows].masked_fill(self.dead[rows], NO_PROBABILITY)

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

    def global_keys(self, rows: slice) -> KeySet:
        """The global keys that count as columns of their own, outside of these rows' windows."""
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

    def has_global_keys(self, rows: slice) -> bool:
        """Whether global keys count as columns of their own: not where the windows of all these rows hold every one."""
        if not self.global_host or self.strand.dilation > 1:
            return bool(self.global_host)
        left, right = self.pattern.band
        first, last = (self.strand.tokens.start + row for row in (rows.start, rows.stop - 1))
        return not (last - left <= self.global_host[0] and self.global_host[-1] <= first + right)

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
