"""The forward of windows that leave out nothing (window >= seq_len - 1): the fused kernel of PyTorch's own attention.

A band saves nothing then, and full or causal attention is what vendors tune their kernels for (bench/LOG.md, "covering
windows"). So PyTorch is asked what it would run for these tensors, on this device and with its switches as they are
(``torch.nn.attention.sdpa_kernel``, ``torch.backends.cuda.enable_cudnn_sdp``). FlashAttention and cuDNN also return the
log-sum-exp, and take the place of :mod:`forward`; where it would run anything else, the window kernel does. Rows of global
queries are overwritten afterwards, as behind the window kernel.

Backward stays with our kernels, which start from out and lse, whoever computed them. They repeat to the bit. PyTorch's sum
gradients in an order that varies, unless ``torch.use_deterministic_algorithms`` is set for the whole process.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend

from longformer_triton.kernels.dropout import Dropout
from longformer_triton.kernels.layout import QKV
from longformer_triton.kernels.pattern import AttentionPattern
from longformer_triton.kernels.triton_impl.descriptors import fits_descriptor


def forward(local_qkv: QKV, pattern: AttentionPattern, scale: float, dropout: Dropout | None) -> tuple[Tensor, Tensor] | None:
    """(out, lse) of the window part, or None where the window kernel has to compute them."""
    query, key, value = local_qkv
    operators = _operators(query)
    if operators is None or not _is_plain(local_qkv, pattern, scale, dropout):
        return None
    is_causal = pattern.covering == "causal"
    with torch.cuda.device_of(query):  # PyTorch chooses by the current device
        choice = _choice(operators, local_qkv, is_causal, scale)
        if choice == SDPBackend.FLASH_ATTENTION:
            results = operators._scaled_dot_product_flash_attention(query, key, value, is_causal=is_causal, scale=scale)
        elif choice == SDPBackend.CUDNN_ATTENTION:
            results = operators._scaled_dot_product_cudnn_attention(
                query, key, value, attn_bias=None, compute_log_sumexp=True, is_causal=is_causal, scale=scale
            )
        else:
            return None
        out, lse = results[:2]
        # cuDNN's log-sum-exp has a fourth axis, and with TORCH_CUDNN_SDPA_AVOID_RECOMPILE=1 another order in memory.
        return _no_view(_strided_like(query, out)), _no_view(lse.reshape(query.shape[:3]).contiguous())


def _operators(query: Tensor) -> Any:
    """PyTorch's operators where they have FlashAttention and cuDNN; None on a CPU and on AMD's GPUs."""
    return torch.ops.aten if query.is_cuda and torch.version.hip is None else None


def _is_plain(local_qkv: QKV, pattern: AttentionPattern, scale: float, dropout: Dropout | None) -> bool:
    """Whether these kernels compute the same attention, whichever of them PyTorch chooses.

    They know no padding and not our dropout, and compare scores before they multiply by the scale, which must be positive
    then. They load 16 bytes at a time, and PyTorch's choice does not look at addresses (compare its issue 183484).
    """
    query = local_qkv[0]
    return (
        pattern.covering is not None
        and pattern.key_mask is None
        and dropout is None
        and scale > 0
        and query.dtype in (torch.float16, torch.bfloat16)
        and query.shape[3] % 8 == 0
        and query.numel() > 0
        and all(fits_descriptor(states) for states in local_qkv)
    )


def _choice(operators: Any, local_qkv: QKV, is_causal: bool, scale: float) -> SDPBackend:
    """What ``torch.nn.functional.scaled_dot_product_attention`` would run, decided on the host by shapes and switches."""
    query, key, value = local_qkv
    grouped = query.shape[1] != key.shape[1]
    try:
        choice = operators._fused_sdp_choice(query, key, value, None, 0.0, is_causal, scale=scale, enable_gqa=grouped)
    except RuntimeError:  # its switches leave PyTorch no kernel that would do, which is no reason for ours to fail
        return SDPBackend.ERROR
    return SDPBackend(choice)


def _strided_like(query: Tensor, out: Tensor) -> Tensor:
    """``out`` with the strides of ``torch.empty_like(query)``, which the operator promises: copied if it has others.

    FlashAttention's is (batch, seq_len, heads, head_dim) in memory, like a model's query; cuDNN's is like its query.
    """
    promised = torch.empty_like(query, device="meta").stride()
    fits = all(got == want or length == 1 for got, want, length in zip(out.stride(), promised, out.shape, strict=True))
    return out if fits else torch.empty_like(query).copy_(out)


def _no_view(tensor: Tensor) -> Tensor:
    """The same memory under a tensor of its own: autograd refuses to change what it knows as a view of an operator's result."""
    return tensor.new_empty(0).set_(tensor.untyped_storage(), tensor.storage_offset(), tensor.shape, tensor.stride())
