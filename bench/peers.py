"""PyTorch's own attention: every kernel of scaled_dot_product_attention, and FlashAttention's windows in varlen_attn."""

from __future__ import annotations

import inspect
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel, varlen
from torch.nn.functional import pad, scaled_dot_product_attention

from longformer_triton.bench.cases import Case, Inputs
from longformer_triton.bench.provider import DILATION, DROPOUT, GLOBALS, GRAPH, PADDING, FullAttention, Provider, Run

_HALF = (torch.float16, torch.bfloat16)


def half_on_gpus(case: Case, device: torch.device) -> str | None:
    """Why a kernel that takes half precision on GPUs cannot run."""
    if device.type != "cuda":
        return "GPUs only"
    return None if case.torch_dtype in _HALF else "float16 and bfloat16 only"


class Sdpa(FullAttention):
    """PyTorch's scaled_dot_product_attention over all pairs: what people use today."""

    backend: SDPBackend | None = None

    def __init__(self) -> None:
        self.name, self.title = "sdpa", "full attention (PyTorch SDPA)"

    def why_not_here(self, case: Case, device: torch.device) -> str | None:
        """It runs everywhere; its two ways of saying who sees whom exclude each other."""
        return "a padding mask and is_causal exclude each other" if case.padding and case.is_causal else None

    def prepare(self, inputs: Inputs) -> Run:
        """Padding is a mask of keys; rows of padding are computed and not looked at. A chosen kernel is chosen in each call."""
        case = inputs.case
        query, key, value = (inputs.heads_of(name) for name in ("query", "key", "value"))
        mask = inputs.attention_mask.bool()[:, None, None] if case.padding else None
        grouped = case.real_key_heads != case.heads

        def run() -> Tensor:
            with nullcontext() if self.backend is None else sdpa_kernel(self.backend):
                return scaled_dot_product_attention(
                    query, key, value, mask, case.dropout / 100, is_causal=bool(case.is_causal), enable_gqa=grouped
                )

        return run

    def peak_bytes(self, case: Case, device: torch.device) -> int:
        """On CPUs dropout falls back to a kernel that holds all scores."""
        linear = super().peak_bytes(case, device)
        return linear + (self.dense_bytes(case) if case.dropout and device.type == "cpu" else 0)


class SdpaKernel(Sdpa):
    """Full attention by one of the fused kernels for GPUs; that a kernel refuses a cell shows when it runs."""

    def __init__(self, name: str, backend: SDPBackend, *, half_only: bool = True, takes_mask: bool = False) -> None:
        self.name, self.backend, self._half_only = f"sdpa-{name}", backend, half_only
        self.title = f"full attention (PyTorch SDPA, {name})"
        self.lacks = frozenset({GRAPH} if takes_mask else {GRAPH, PADDING})

    def why_not_here(self, case: Case, device: torch.device) -> str | None:
        """Fused kernels of GPUs, most of them for half precision."""
        if device.type == "cuda" and not self._half_only:
            return super().why_not_here(case, device)
        return half_on_gpus(case, device) or super().why_not_here(case, device)


class SdpaMath(Sdpa):
    """Full attention with all scores in memory, as it was computed when the paper was written."""

    backend = SDPBackend.MATH

    def __init__(self) -> None:
        self.name, self.title = "sdpa-math", "full attention, all scores in memory (SDPA, math)"

    def peak_bytes(self, case: Case, device: torch.device) -> int:
        """Quadratic."""
        return super().peak_bytes(case, device) + self.dense_bytes(case)


class Varlen(Provider):
    """FlashAttention-2 with a window, as PyTorch ships it: torch.nn.attention.varlen."""

    name, title = "varlen", "varlen_attn with a window (FlashAttention-2)"
    note = "texts are packed first where there is padding, which is part of the time"
    lacks = frozenset({GLOBALS, DROPOUT, DILATION, GRAPH})

    def why_not_here(self, case: Case, device: torch.device) -> str | None:
        """FlashAttention is for GPUs; PyTorch 2.11 has no grouped heads here."""
        if case.real_key_heads != case.heads and "enable_gqa" not in inspect.signature(varlen.varlen_attn).parameters:
            return f"varlen_attn of PyTorch {torch.__version__} takes no grouped heads"
        return half_on_gpus(case, device)

    def prepare(self, inputs: Inputs) -> Run:
        """The batch as one packed text of equal parts; without padding packing is a view."""
        case, length = inputs.case, inputs.case.real_len
        ends = torch.arange(0, case.batch * length + 1, length, dtype=torch.int32, device=inputs.grad_out.device)
        grouped: dict[str, Any] = {"enable_gqa": True} if case.real_key_heads != case.heads else {}

        def packed(name: str) -> Tensor:
            return inputs.packed[name][:, :length].reshape(case.batch * length, -1, case.head_dim)

        def run() -> Tensor:
            out = varlen.varlen_attn(
                packed("query"), packed("key"), packed("value"), ends, ends, length, length, window_size=case.band, **grouped
            )
            assert isinstance(out, Tensor)
            out = out.view(case.batch, length, case.heads, case.head_dim)
            return pad(out, (0, 0, 0, 0, 0, case.seq_len - length)).transpose(1, 2)

        return run


def pytorch_peers() -> list[Provider]:
    """One of each, in the order of the tables."""
    return [
        Sdpa(),
        SdpaKernel("flash", SDPBackend.FLASH_ATTENTION),
        SdpaKernel("efficient", SDPBackend.EFFICIENT_ATTENTION, half_only=False, takes_mask=True),
        SdpaKernel("cudnn", SDPBackend.CUDNN_ATTENTION),
        SdpaMath(),
        Varlen(),
    ]
