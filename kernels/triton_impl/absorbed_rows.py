"""Full attention of a few global rows over any number of channels: what absorbed global projections call.

Their "keys" and "values" are the hidden states themselves, as wide as the model, which fit no tile of a fused kernel; but the
rows are few, so their scores are small and everything heavy is a matrix product over all heads at once. Those go to the
library of the device; only elementwise work stands between them, and one kernel of our own for what dropout keeps. Rows are
taken in chunks that bound the scores, and nothing is read back.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from longformer_triton.kernels.dropout import Dropout
from longformer_triton.kernels.layout import QKV, ceil_div
from longformer_triton.kernels.pattern import AttentionPattern
from longformer_triton.kernels.precision import accumulation_dtype, matmul, to_accumulation_dtype
from longformer_triton.kernels.triton_impl.dropout_mask import dropout_mask
from longformer_triton.kernels.triton_impl.steps import Launch
from longformer_triton.kernels.triton_impl.tuning import FIXED

# Scores held at once; a chunk has as many rows as fit, and at least one.
_SCORES = 1 << 26


class _Chunk(NamedTuple):
    """Some global rows of every sample, in the accumulation type; dead rows hold zeros."""

    columns: slice  # of global_index
    alive: Tensor  # (batch, 1, rows, 1) bool: whether a row is below its sample's count
    query: Tensor  # (batch, heads, rows, channels)
    lse: Tensor  # (batch, heads, rows)
    probability: Tensor  # (batch, heads, rows, seq_len)
    factor: Tensor | float  # dropout's, of the shape of ``probability``


def _product(rows: Tensor, columns: Tensor) -> Tensor:
    """(batch, heads, rows, n) from (batch, heads, rows, m) and (batch, key_heads, m, n): a group's rows share one product."""
    group = rows.shape[1] // columns.shape[1]
    together = matmul(rows.unflatten(1, (-1, group)).flatten(2, 3), columns)
    return together.unflatten(2, (group, -1)).flatten(1, 2)


def _summed_product(rows: Tensor, columns: Tensor, key_heads: int) -> Tensor:
    """(batch, key_heads, m, n), summed over the rows of a group, from (batch, heads, rows, m) and (batch, heads, rows, n)."""
    left, right = (states.unflatten(1, (key_heads, -1)).flatten(2, 3) for states in (rows, columns))
    return matmul(left.transpose(-1, -2), right)


def _keys_and_values(inputs: QKV, pattern: AttentionPattern) -> tuple[Tensor, Tensor]:
    """In the accumulation type, zero at masked tokens, which may hold NaN. Hidden states, which are both, are read once."""
    _, key, value = inputs
    is_one = key.data_ptr() == value.data_ptr() and key.shape == value.shape and key.stride() == value.stride()
    key = _readable(key, pattern)
    return key, key if is_one else _readable(value, pattern)


def _readable(states: Tensor, pattern: AttentionPattern) -> Tensor:
    if pattern.key_mask is not None:
        states = states.masked_fill(~pattern.key_mask[:, None, :, None], 0)
    return to_accumulation_dtype(states)


def _factors(scores: Tensor, first_slot: int, pattern: AttentionPattern, dropout: Dropout) -> Tensor:
    """Dropout's factors of the rows from ``first_slot`` on, like ``scores`` (batch, heads, rows, seq_len)."""
    batch, heads, rows, seq_len = scores.shape
    config = FIXED["dropout_mask"]
    keep = torch.empty_like(scores, memory_format=torch.contiguous_format)
    available = {
        "keep_ptr": keep,
        "global_index_ptr": pattern.global_index,
        "seed_ptr": dropout.seed,
        "heads": heads,
        "seq_len": seq_len,
        "num_globals": pattern.global_index.shape[1],
        "first_slot": first_slot,
        "rows": rows,
        "threshold": dropout.threshold,
    }
    programs = batch * heads * ceil_div(rows, config.block_m) * ceil_div(seq_len, config.block_n)
    with torch.cuda.device_of(scores):
        Launch.of(dropout_mask, programs, config, available).run()
    return keep.mul_(dropout.scale)


def _plus(total: Tensor | None, part: Tensor) -> Tensor:
    """The sum over chunks."""
    return part if total is None else total.add_(part)


def _chunks(query: Tensor, key: Tensor, pattern: AttentionPattern, scale: float, dropout: Dropout | None) -> Iterator[_Chunk]:
    batch, heads, count, _ = query.shape
    seq_len = key.shape[2]
    slot = torch.arange(count, device=query.device)
    counts = slot < pattern.global_count[:, None]
    rows = max(1, _SCORES // max(1, batch * heads * seq_len))
    for start in range(0, count, rows):
        columns = slice(start, min(start + rows, count))
        alive = counts[:, None, columns, None]
        part = to_accumulation_dtype(query[:, :, columns]).masked_fill(~alive, 0)
        scores = _product(part * scale, key.transpose(-1, -2))
        if pattern.key_mask is not None:
            scores = scores.masked_fill(~pattern.key_mask[:, None, None, :], -torch.inf)
        lse = scores.logsumexp(-1).masked_fill(~alive[..., 0], -torch.inf)
        probability = (scores - lse[..., None]).exp().masked_fill(lse[..., None] == -torch.inf, 0)
        factor: Tensor | float = 1.0
        if dropout is not None:
            factor = _factors(scores, start, pattern, dropout)
        yield _Chunk(columns, alive, part, lse, probability, factor)


def rows_forward(
    inputs: QKV, pattern: AttentionPattern, scale: float, dropout: Dropout | None
) -> tuple[Tensor, Tensor, Tensor]:
    """(context, lse, kept) of operator ``global_rows``; rows past a sample's count are 0, -inf and 0."""
    query = inputs[0]
    context = torch.empty_like(query)
    lse = query.new_empty(query.shape[:3], dtype=accumulation_dtype(query.dtype))
    kept = torch.empty_like(lse)
    if query.numel() == 0:
        return context, lse, kept
    key, value = _keys_and_values(inputs, pattern)
    for chunk in _chunks(query, key, pattern, scale, dropout):
        weight = chunk.probability * chunk.factor
        context[:, :, chunk.columns] = _product(weight, value).to(query.dtype)
        lse[:, :, chunk.columns] = chunk.lse
        kept[:, :, chunk.columns] = weight.sum(-1)
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
    query, key_heads = inputs[0], inputs[1].shape[1]
    need_query, need_key, need_value = needs
    key, value = _keys_and_values(inputs, pattern)
    grad_key: Tensor | None = None
    grad_value: Tensor | None = None
    if need_query:
        grads[0].zero_()
    for chunk in _chunks(query, key, pattern, scale, dropout) if query.numel() else ():
        grad_context, grad_lse, grad_kept = (
            None if grad is None else to_accumulation_dtype(grad[:, :, chunk.columns]).masked_fill(~alive, 0)
            for grad, alive in zip(given, (chunk.alive, chunk.alive[..., 0], chunk.alive[..., 0]), strict=True)
        )
        context, kept = (to_accumulation_dtype(states[:, :, chunk.columns]) for states in (saved[0], saved[2]))
        # [batch, heads, rows, seq_len]
        grad_probability = torch.zeros_like(chunk.probability)
        delta = torch.zeros_like(chunk.lse)
        if grad_context is not None:
            grad_probability = _product(grad_context, value.transpose(-1, -2))
            delta = (grad_context * context).sum(-1)
            if need_value:
                part = _summed_product(chunk.probability * chunk.factor, grad_context, key_heads)
                grad_value = _plus(grad_value, part)
        if grad_kept is not None:
            grad_probability = grad_probability + grad_kept[..., None]
            delta = delta + grad_kept * kept
        if grad_lse is not None:
            delta = delta - grad_lse
        grad_score = scale * chunk.probability * (grad_probability * chunk.factor - delta[..., None])
        if need_query:
            grads[0][:, :, chunk.columns] = _product(grad_score, key).to(query.dtype)
        if need_key:
            grad_key = _plus(grad_key, _summed_product(grad_score, chunk.query, key_heads))
    for needed, grad, total in ((need_key, grads[1], grad_key), (need_value, grads[2], grad_value)):
        if needed:
            grad.zero_() if total is None else grad.copy_(total)
