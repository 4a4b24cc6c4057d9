"""PyTorch's fused attention for CPUs, whose forward gives the log-sum-exp and whose backward takes it.

So backward is exact for any part of a row's keys, as long as ``out`` and ``lse`` are those of all of them.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from longformer_triton.kernels.precision import accumulation_dtype
from longformer_triton.kernels.torch_impl.samples import blank


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


def attend(
    query: Tensor, key: Tensor, value: Tensor, scale: float, *, mask: Tensor | None = None, is_causal: bool = False
) -> tuple[Tensor, Tensor]:
    """Attention of a batch.

    Args:
        query: [batch, heads, queries, head_dim], :func:`readable` like the others, in :func:`forward_dtype`.
        key, value: [batch, heads, keys, head_dim].
        scale: factor on the scores.
        mask: broadcasts to [batch, heads, queries, keys], what is added to the scores, in the accumulation type.
        is_causal: whether query i sees no key after i.

    Returns:
        out, shaped as ``query``; lse [batch, heads, queries], natural log.
    """
    query, scale = _scaled(query, scale)
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, 0.0, is_causal, attn_mask=mask, scale=scale
    )


def gradients(
    grad_out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    scale: float,
    *,
    mask: Tensor | None = None,
    is_causal: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value of :func:`attend`; a row with a huge ``lse`` gives nothing.

    In float32 at least: in half precision MKL makes two of this kernel's five products (see :func:`forward_dtype`).
    Threads share out the batch and the heads, not the queries.
    """
    scaled, factor = _scaled(query, scale)
    grad_query, grad_key, grad_value = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
        grad_out, scaled, key, value, out, lse, 0.0, is_causal, attn_mask=mask, scale=factor
    )
    return (grad_query if scaled is query else grad_query.mul_(scale)), grad_key, grad_value


def _scaled(query: Tensor, scale: float) -> tuple[Tensor, float]:
    """Queries and a scale with the product of those given, and a scale whose products are exact.

    The kernel multiplies by the scale after a score is summed, and in its backward before: unless that is a power of two, the
    scores round apart, and probabilities do not belong to their lse (bench/LOG.md, "a scale that rounds"). It also marks
    future keys with -inf before it multiplies, so that a scale of 0 or less would make NaN.
    """
    is_exact = math.frexp(scale)[0] == 0.5 or query.dtype != accumulation_dtype(query.dtype)
    return (query, scale) if scale > 0 and is_exact else (query * scale, 1.0)
