"""The PyTorch backend where every query sees every real key (window >= seq_len - 1): PyTorch's fused CPU attention.

There a band saves nothing, and the fused kernel, which keeps its scores in cache, is twice as fast as the blocks of
:mod:`blockwise` (bench/LOG.md, "dense path"). It takes the log-sum-exp back in its backward, so both directions are exact.
"""

from __future__ import annotations

import torch
from torch import Tensor

from longformer_triton.kernels.pattern import AttentionPattern
from longformer_triton.kernels.precision import accumulation_dtype, to_accumulation_dtype
from longformer_triton.kernels.torch_impl.samples import blank
from longformer_triton.kernels.torch_impl.tiles import Needs, floor_where


def applies(pattern: AttentionPattern, query: Tensor, scale: float) -> bool:
    """Whether windows leave out nothing, on a CPU.

    The fused kernel marks future keys with -inf before it multiplies by the scale, so a scale of 0 or less would make NaN.
    """
    if pattern.covering == "causal" and scale <= 0:
        return False
    return query.is_cpu and pattern.covering is not None


def _hole_and_bias(pattern: AttentionPattern, dtype: torch.dtype) -> tuple[Tensor | None, Tensor | None]:
    """Masked tokens as (batch, 1, seq_len) bool, and the additive mask (batch, 1, 1, seq_len) that hides their keys.

    It has the type of the scores: the least number of float16 is not below all that products of float16 make.
    """
    if pattern.key_mask is None:
        return None, None
    hole = ~pattern.key_mask[:, None]
    return hole, floor_where(hole, accumulation_dtype(dtype))[:, None]


def forward_dtype(dtype: torch.dtype) -> torch.dtype:
    """What the fused forward computes ``dtype`` in: half precision only where MKL multiplies it, whatever the processor.

    PyTorch's own loops over numbers of half precision take ten times as long as float32.
    """
    return dtype if torch.backends.mkl.is_available() else accumulation_dtype(dtype)


def readable(states: Tensor, hole: Tensor | None = None) -> Tensor:
    """Zero at masked tokens, with channels that are neighbours and rows that do not overlap.

    The fused kernel takes no notice of the stride of channels, and hands that of rows to a matrix product that wants room.
    """
    states = blank(states, hole)
    is_plain = states.stride(-1) == 1 and states.stride(-2) >= states.shape[-1]
    return states if is_plain else states.contiguous()


def forward(
    query: Tensor, key: Tensor, value: Tensor, pattern: AttentionPattern, scale: float, out: Tensor, lse: Tensor
) -> None:
    """Fill out and lse of the rows of real tokens; masked rows get finite nonsense."""
    if query.numel() == 0:
        return
    group = query.shape[1] // key.shape[1]
    hole, bias = _hole_and_bias(pattern, query.dtype)
    query, key, value = (readable(states.to(forward_dtype(states.dtype)), hole) for states in (query, key, value))
    for member in range(group):
        heads = slice(member, None, group)
        out[:, heads], lse[:, heads] = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query[:, heads], key, value, 0.0, pattern.covering == "causal", attn_mask=bias, scale=scale
        )


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
    """Fill ``grads`` of query, key, value where needed; rows with a huge ``lse`` give nothing.

    In float32 at least: in half precision MKL makes two of this kernel's five products (see :func:`forward_dtype`).
    """
    if query.numel() == 0:
        return
    group = query.shape[1] // key.shape[1]
    hole, bias = _hole_and_bias(pattern, query.dtype)
    query, key, value = (readable(to_accumulation_dtype(states), hole) for states in (query, key, value))
    grad_out, out = (readable(to_accumulation_dtype(states)) for states in (grad_out, out))
    key_parts, value_parts = [], []
    for member in range(group):
        heads = slice(member, None, group)
        grad_query, grad_key, grad_value = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            grad_out[:, heads], query[:, heads], key, value, out[:, heads], lse[:, heads],
            0.0, pattern.covering == "causal", attn_mask=bias, scale=scale,
        )  # fmt: skip
        if needs.query:
            grads[0][:, heads] = grad_query
        key_parts.append(grad_key)
        value_parts.append(grad_value)
    for needed, total, parts in ((needs.key, grads[1], key_parts), (needs.value, grads[2], value_parts)):
        if needed:
            total.copy_(parts[0] if group == 1 else torch.stack(parts).sum(0))
