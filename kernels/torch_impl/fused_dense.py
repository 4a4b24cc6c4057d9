"""The PyTorch backend where every query sees every real key (window >= seq_len - 1): PyTorch's fused CPU attention.

There a band saves nothing, and the fused kernel, which keeps its scores in cache, is twice as fast as the blocks of
:mod:`blockwise` (bench/LOG.md, "dense path"). It takes the log-sum-exp back in its backward, so both directions are exact.
"""

from __future__ import annotations

import torch
from torch import Tensor

from longformer_triton.kernels.pattern import AttentionPattern
from longformer_triton.kernels.precision import accumulation_dtype, to_accumulation_dtype
from longformer_triton.kernels.torch_impl.fused import attend, forward_dtype, gradients, readable
from longformer_triton.kernels.torch_impl.tiles import Needs, floor_where


def applies(pattern: AttentionPattern, query: Tensor) -> bool:
    """Whether windows leave out nothing, on a CPU."""
    return query.is_cpu and pattern.covering is not None


def _hole_and_bias(pattern: AttentionPattern, dtype: torch.dtype) -> tuple[Tensor | None, Tensor | None]:
    """Masked tokens as (batch, 1, seq_len) bool, and the additive mask (batch, 1, 1, seq_len) that hides their keys.

    It has the type of the scores: the least number of float16 is not below all that products of float16 make.
    """
    if pattern.key_mask is None:
        return None, None
    hole = ~pattern.key_mask[:, None]
    return hole, floor_where(hole, accumulation_dtype(dtype))[:, None]


def forward(
    query: Tensor, key: Tensor, value: Tensor, pattern: AttentionPattern, scale: float, out: Tensor, lse: Tensor
) -> None:
    """Fill out and lse of the rows of real tokens; masked rows get finite nonsense."""
    if query.numel() == 0:
        return
    group, is_causal = query.shape[1] // key.shape[1], pattern.covering == "causal"
    hole, bias = _hole_and_bias(pattern, query.dtype)
    query, key, value = (readable(states.to(forward_dtype(states.dtype)), hole) for states in (query, key, value))
    for member in range(group):
        heads = slice(member, None, group)
        out[:, heads], lse[:, heads] = attend(query[:, heads], key, value, scale, mask=bias, is_causal=is_causal)


def backward(
    grad_out: Tensor,
    out: Tensor,
    lse: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    pattern: AttentionPattern,
    scale: float,
    needs: Needs,
    grads: list[Tensor],
) -> None:
    """Fill ``grads`` of query, key, value where needed; rows with a huge ``lse`` give nothing."""
    if query.numel() == 0:
        return
    group, is_causal = query.shape[1] // key.shape[1], pattern.covering == "causal"
    hole, bias = _hole_and_bias(pattern, query.dtype)
    query, key, value = (readable(to_accumulation_dtype(states), hole) for states in (query, key, value))
    grad_out, out = (readable(to_accumulation_dtype(states)) for states in (grad_out, out))
    key_parts, value_parts = [], []
    for member in range(group):
        heads = slice(member, None, group)
        states = (grad_out[:, heads], query[:, heads], key, value, out[:, heads], lse[:, heads])
        grad_query, grad_key, grad_value = gradients(*states, scale, mask=bias, is_causal=is_causal)
        if needs.query:
            grads[0][:, heads] = grad_query
        key_parts.append(grad_key)
        value_parts.append(grad_value)
    for needed, total, parts in ((needs.key, grads[1], key_parts), (needs.value, grads[2], value_parts)):
        if needed:
            total.copy_(parts[0] if group == 1 else torch.stack(parts).sum(0))
