"""Dense and obvious: the oracle that every backend is tested against, differentiable by autograd, in any dtype up to float64.

    p = softmax(scale q k^T + mask)        out = dropout(p) v        lse = log sum exp(scale q k^T + mask)

(Beltagy, Peters, Cohan 2020, arXiv 2004.05150, section 3.) Quadratic in memory: for tests and pictures.
"""

from __future__ import annotations

import torch
from torch import Tensor

from longformer_triton.kernels.dropout import Dropout
from longformer_triton.kernels.pattern import AttentionPattern, in_band
from longformer_triton.kernels.precision import matmul, to_accumulation_dtype


def _repeat_heads(states: Tensor, heads: int) -> Tensor:
    """Grouped-query attention spelt out: each key head serves ``heads / key_heads`` neighbouring query heads."""
    return states.repeat_interleave(heads // states.shape[1], dim=1)


def _softmax_attention(
    query: Tensor, key: Tensor, value: Tensor, visible: Tensor, scale: float, factor: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """(out, lse, kept) in the accumulation type; rows without a visible key give 0, -inf and 0, with zero gradients."""
    scores = matmul(scale * query, _repeat_heads(key, query.shape[1]).transpose(-1, -2))
    seen = visible.any(-1, keepdim=True)
    # A row that sees nothing gets a harmless softmax over zeros, so that no gradient is 0 * inf.
    scores = torch.where(visible, scores, -torch.inf).masked_fill(~seen, 0.0)
    probability = torch.softmax(scores, -1).masked_fill(~seen, 0.0)
    if factor is not None:
        probability = probability * factor
    out = matmul(probability, _repeat_heads(value, query.shape[1])).masked_fill(~seen, 0.0)
    lse = torch.logsumexp(scores, -1).masked_fill(~seen[..., 0], -torch.inf)
    return out, lse, probability.sum(-1)


def _zero_masked(states: Tensor, key_mask: Tensor | None) -> Tensor:
    return states if key_mask is None else states.masked_fill(~key_mask[:, None, :, None], 0.0)


def _window_factor(dropout: Dropout | None, pattern: AttentionPattern, heads: int, dtype: torch.dtype) -> Tensor | None:
    """(batch, heads, seq_len, seq_len): dilated counters inside the window, plain ones outside."""
    if dropout is None:
        return None
    position = torch.arange(pattern.seq_len, device=pattern.device)
    query, key = position[:, None], position[None, :]
    steps = torch.tensor(pattern.dilations, device=pattern.device).expand(heads)[:, None, None]
    inside = in_band(query, key, *pattern.window, steps)
    stream = torch.arange(pattern.batch * heads, device=pattern.device).view(pattern.batch, heads, 1, 1)
    # Outside the window the dilation is 1 in effect: j // 1 = j and j mod 1 = 0.
    steps = torch.where(inside, steps, 1)
    return dropout.factor_at(stream, query, key // steps, dtype, key % steps)


def attention(
    query: Tensor, key: Tensor, value: Tensor, pattern: AttentionPattern, scale: float, dropout: Dropout | None
) -> tuple[Tensor, Tensor]:
    """(out, lse) of windowed attention with global keys; see ``functional.sliding_window_attention``."""
    dtype = query.dtype
    query, key, value = (_zero_masked(to_accumulation_dtype(states), pattern.key_mask) for states in (query, key, value))
    factor = _window_factor(dropout, pattern, query.shape[1], query.dtype)
    out, lse, _ = _softmax_attention(query, key, value, pattern.to_dense(), scale, factor)
    return out.to(dtype), lse


def global_rows(
    query: Tensor, key: Tensor, value: Tensor, pattern: AttentionPattern, scale: float, dropout: Dropout | None
) -> tuple[Tensor, Tensor, Tensor]:
    """(context, lse, kept) of the rows at ``global_index``, (batch, heads, G, ...), accumulation type; 0 and -inf at -1."""
    key, value = (_zero_masked(to_accumulation_dtype(tensor), pattern.key_mask) for tensor in (key, value))
    real = (pattern.global_index >= 0)[:, None, :, None]
    visible = real.expand(-1, -1, -1, pattern.seq_len)
    if pattern.key_mask is not None:
        visible = visible & pattern.key_mask[:, None, None, :]
    factor = None
    if dropout is not None:
        batch, heads = query.shape[:2]
        stream = torch.arange(batch * heads, device=query.device).view(batch, heads, 1, 1)
        position = torch.arange(pattern.seq_len, device=query.device)
        factor = dropout.factor_at(stream, pattern.global_index[:, None, :, None].clamp_min(0), position, key.dtype)
    query = torch.where(real, to_accumulation_dtype(query), 0.0)
    return _softmax_attention(query, key, value, visible, scale, factor)


def longformer_attention(
    inputs: tuple[Tensor, ...], pattern: AttentionPattern, scale: float, dropout: Dropout | None
) -> tuple[Tensor, Tensor]:
    """(out, lse) with the rows of global tokens replaced; see ``functional.longformer_attention``."""
    query, key, value, query_global, key_global, value_global = inputs
    if pattern.global_mask is not None:
        query = query.masked_fill(pattern.global_mask[:, None, :, None], 0.0)
    out, lse = (tensor.clone() for tensor in attention(query, key, value, pattern, scale, dropout))
    rows, rows_lse, _ = global_rows(query_global, key_global, value_global, pattern, scale, dropout)
    for sample, count in enumerate(pattern.global_count.tolist()):
        position = pattern.global_index[sample, :count]
        out[sample][:, position] = rows[sample, :, :count].to(out.dtype)
        lse[sample][:, position] = rows_lse[sample, :, :count]
    return out, lse
