"""Attention maps on request, in the compact layout that Hugging Face documents for ``attentions`` and ``global_attentions``.

They are computed again from query and key, before dropout, for the heads and rows asked for: nothing is stored during a
forward pass, and memory is linear in length.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from longformer_triton.kernels import checks
from longformer_triton.kernels.pattern import AttentionPattern
from longformer_triton.kernels.precision import matmul, to_accumulation_dtype

# More of them, in columns that lie outside the text, is refused: a smaller window has the same probabilities.
_MOST_GIB_OF_ZEROS = 16


def _softmax_or_zero(scores: Tensor, visible: Tensor) -> Tensor:
    """Softmax over the last dimension among visible entries; all zero in rows that see nothing."""
    seen = visible.any(-1, keepdim=True)
    scores = torch.where(visible, scores, -torch.inf).masked_fill(~seen, 0.0)
    return torch.softmax(scores, -1) * (visible & seen)


def local_map(
    query: Tensor,
    key: Tensor,
    pattern: AttentionPattern,
    scale: float,
    heads: list[int],
    rows: list[int] | None,
    zero_global_rows: bool,
) -> Tensor:
    """(batch, len(heads), len(rows), G + left + 1 + right) in the accumulation type; None for all rows.

    Raises:
        ValueError: a map of so many columns outside the text that they alone would fill the memory.
    """
    left, right = near_left, near_right = pattern.window
    if not checks.is_tracing():  # a graph serves longer texts too
        farthest = (pattern.seq_len - 1) // min(pattern.dilations)
        near_left, near_right = min(left, farthest), min(right, farthest)
    device = query.device
    # No list for all rows: a traced graph would be for that many alone.
    row = torch.arange(query.shape[2], device=device) if rows is None else torch.tensor(rows, dtype=torch.int64, device=device)
    offset = torch.arange(-near_left, near_right + 1, device=device)
    maps = [
        _local_map_of_head(query[:, head], key[:, head * key.shape[1] // query.shape[1]], pattern, scale, row, offset, head)
        for head in heads
    ]
    width = pattern.global_index.shape[1]
    shape = (query.shape[0], len(heads), row.shape[0], width + offset.shape[0])
    local = torch.stack(maps, 1) if maps else to_accumulation_dtype(query).new_zeros(shape)
    if zero_global_rows and pattern.global_mask is not None:
        local = local.masked_fill(pattern.global_mask[:, None, row, None], 0.0)
    return local if (near_left, near_right) == (left, right) else _widened(local, offset, pattern)


def _widened(local: Tensor, offset: Tensor, pattern: AttentionPattern) -> Tensor:
    """The map with all columns of the window: zero beyond those of ``offset``, which no key of these texts can fill."""
    (left, right), width = pattern.window, pattern.global_index.shape[1]
    shape = (*local.shape[:-1], width + left + 1 + right)
    gib, gib_inside = (math.prod(sizes) * local.element_size() / 2**30 for sizes in (shape, local.shape))
    if gib - gib_inside > _MOST_GIB_OF_ZEROS:
        raise ValueError(
            f"pattern: got a window of {left} and {right} keys for {pattern.seq_len} tokens, whose map takes {gib:.0f} GiB, of "
            f"which {gib_inside:.1f} lie inside the text: pattern.with_window({pattern.seq_len - 1}) sees as much."
        )
    columns = torch.cat((torch.arange(width, device=local.device), offset + (width + left)))
    return local.new_zeros(shape).index_copy_(-1, columns, local)


def _local_map_of_head(
    query: Tensor, key: Tensor, pattern: AttentionPattern, scale: float, row: Tensor, offset: Tensor, head: int
) -> Tensor:
    """(batch, rows, G + window); query and key are (batch, seq_len, head_dim)."""
    batch, seq_len, _ = query.shape
    dilation = pattern.dilations[head if len(pattern.dilations) > 1 else 0]
    real = torch.ones((batch, seq_len), dtype=torch.bool, device=query.device) if pattern.key_mask is None else pattern.key_mask
    query = to_accumulation_dtype(query)[:, row].masked_fill(~real[:, row, None], 0.0)
    key = to_accumulation_dtype(key).masked_fill(~real[..., None], 0.0)

    # [rows, window]
    position = row[:, None] + offset * dilation
    inside = (position >= 0) & (position < seq_len)
    if pattern.is_causal:
        inside = inside & (offset <= 0)
    position = position.clamp(0, seq_len - 1)
    # [batch, rows, window]: one diagonal of the band at a time keeps the gathered keys at (batch, rows, head_dim)
    window_scores = torch.stack([(query * key[:, column]).sum(-1) for column in position.unbind(1)], -1)
    window_visible = inside & real[:, position]
    if pattern.global_mask is not None:
        window_visible = window_visible & ~pattern.global_mask[:, position]

    # [batch, rows, G]
    index = pattern.global_index
    global_key = key.gather(1, index.clamp_min(0)[..., None].expand(-1, -1, key.shape[-1]))
    global_scores = matmul(query, global_key.transpose(1, 2))
    global_visible = (index >= 0)[:, None, :]
    if pattern.is_causal:
        global_visible = global_visible & (index[:, None, :] <= row[:, None])

    scores = torch.cat((global_scores, window_scores), -1) * scale
    visible = torch.cat((global_visible.expand_as(global_scores), window_visible), -1) & real[:, row, None]
    return _softmax_or_zero(scores, visible)


def global_map(query_global: Tensor, key_global: Tensor, pattern: AttentionPattern, scale: float, heads: list[int]) -> Tensor:
    """(batch, len(heads), seq_len, G): how much each global token (last dimension) attends to each token."""
    group = query_global.shape[1] // key_global.shape[1]
    real = (pattern.global_index >= 0)[:, None, :, None]
    query = torch.where(real, to_accumulation_dtype(query_global)[:, heads], 0.0)
    key = to_accumulation_dtype(key_global)[:, [head // group for head in heads]]
    visible = real.expand(-1, -1, -1, pattern.seq_len)
    if pattern.key_mask is not None:
        key = key.masked_fill(~pattern.key_mask[:, None, :, None], 0.0)
        visible = visible & pattern.key_mask[:, None, None, :]
    scores = matmul(query, key.transpose(-1, -2)) * scale
    return _softmax_or_zero(scores, visible.expand_as(scores)).transpose(-1, -2)
