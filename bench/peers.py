"""Providers that run on GPUs only: PyTorch's attention with a kernel of one's choice, windows of FlashAttention, tuned flex."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from longformer_triton.bench.cases import Case, Inputs
from longformer_triton.bench.provider import Provider, Run

_HALF = (torch.float16, torch.bfloat16)


def _only_half_on_gpus(case: Case, device: torch.device) -> str | None:
    if device.type != "cuda":
        return "GPUs only"
    return None if case.torch_dtype in _HALF else "float16 and bfloat16 only"


class SdpaKernel(Provider):
    """Full attention by one of the kernels of scaled_dot_product_attention."""

    is_windowed = False

    def __init__(self, name: str, backend: SDPBackend) -> None:
        self.name, self.backend = f"sdpa-{name}", backend
        self.title = f"full attention (PyTorch SDPA, {name})"

    def why_not(self, case: Case, device: torch.device) -> str | None:
        """Fused kernels of GPUs take half precision; that they refuse a cell shows when it runs."""
        return _only_half_on_gpus(case, device)

    def prepare(self, inputs: Inputs) -> Run:
        """The choice of the kernel is part of the call, as it is in a model."""
        query, key, value = (inputs.heads_of(name) for name in ("query", "key", "value"))

        def run() -> Tensor:
            with sdpa_kernel(self.backend):
                return scaled_dot_product_attention(query, key, value)

        return run


class Varlen(Provider):
    """FlashAttention-2 with a window, as PyTorch ships it: torch.nn.attention.varlen."""

    name, title = "varlen", "varlen_attn with a window (FlashAttention-2)"

    def why_not(self, case: Case, device: torch.device) -> str | None:
        """It has no global tokens."""
        if case.num_globals:
            return "no global tokens"
        return _only_half_on_gpus(case, device)

    def prepare(self, inputs: Inputs) -> Run:
        """The batch as one packed text of equal parts; packing is a view."""
        from torch.nn.attention.varlen import varlen_attn

        case, side = inputs.case, inputs.case.side
        ends = torch.arange(0, (case.batch + 1) * case.seq_len, case.seq_len, dtype=torch.int32, device=inputs.grad_out.device)
        shape = (case.batch * case.seq_len, case.heads, case.head_dim)
        query, key, value = (inputs.packed[name].view(shape) for name in ("query", "key", "value"))

        def run() -> Tensor:
            out = varlen_attn(query, key, value, ends, ends, case.seq_len, case.seq_len, window_size=(side, side))
            assert isinstance(out, Tensor)
            return out.view(case.batch, case.seq_len, case.heads, case.head_dim).transpose(1, 2)

        return run


def gpu_peers() -> list[Provider]:
    """One of each, in the order of the tables."""
    kernels: dict[str, Any] = {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}
    return [*(SdpaKernel(name, backend) for name, backend in kernels.items()), Varlen()]
