"""The contestants. A provider is one small class: what it computes, when it cannot, and how to set it up outside the timing.

Add one by subclassing :class:`Provider`, listing it in ``PROVIDERS``, and running ``longformer-triton bench sweep``: its output
is checked against the float64 reference before any of its times count.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from longformer_triton.bench.cases import TRAINING, Case, Inputs
from longformer_triton.bench.peers import gpu_peers
from longformer_triton.bench.provider import Provider, Run
from longformer_triton.kernels import longformer_attention, sliding_window_attention
from longformer_triton.kernels.backends import why_not


class Ours(Provider):
    """This package, one provider a backend. The pattern is built in every call: its cost is part of the time."""

    def __init__(self, backend: str) -> None:
        self.backend = backend
        self.name = f"ours-{backend}"
        self.title = f"longformer-triton ({backend} backend)"

    def why_not(self, case: Case, device: torch.device) -> str | None:
        """Whatever the package itself would say."""
        return why_not(self.backend, device, case.torch_dtype, case.head_dim)

    def prepare(self, inputs: Inputs) -> Run:
        """The public functions, as a model calls them."""
        query, key, value = (inputs.heads_of(name) for name in ("query", "key", "value"))
        if not inputs.case.num_globals:
            return lambda: _tensor(sliding_window_attention(query, key, value, pattern=inputs.pattern(), backend=self.backend))
        query_global, key_global, value_global = (inputs.heads_of(f"{name}_global") for name in ("query", "key", "value"))

        def run() -> Tensor:
            pattern = inputs.pattern()
            rows = pattern.gather_global(query_global)
            out = longformer_attention(query, key, value, rows, key_global, value_global, pattern, backend=self.backend)
            return _tensor(out)

        return run


class Reference(Ours):
    """The dense oracle: every score of every pair, in memory at once."""

    def __init__(self) -> None:
        super().__init__("reference")
        self.name, self.title = "reference", "dense with mask (reference)"

    def peak_bytes(self, case: Case) -> int:
        """Scores, probabilities, masks and, for training, their gradients: all quadratic."""
        scores = case.batch * case.heads * case.seq_len**2 * 4
        return scores * (8 if case.direction == TRAINING else 5)


class FullSdpa(Provider):
    """PyTorch's scaled_dot_product_attention over all pairs: what people use today; no window."""

    name, title, is_windowed = "sdpa", "full attention (PyTorch SDPA)", False

    def why_not(self, case: Case, device: torch.device) -> str | None:
        """It has no global tokens, and needs none."""
        return None

    def prepare(self, inputs: Inputs) -> Run:
        """Default options."""
        query, key, value = (inputs.heads_of(name) for name in ("query", "key", "value"))
        return lambda: scaled_dot_product_attention(query, key, value)


class Flex(Provider):
    """flex_attention, compiled, with the same window as a block mask."""

    name, title = "flex", "flex_attention (compiled)"
    mode: str | None = None  # torch.compile's
    _compiled: Any = None

    def why_not(self, case: Case, device: torch.device) -> str | None:
        """On CPUs flex_attention has no backward and its bfloat16 forward is unusable; it has one set of projections."""
        if case.num_globals:
            return "one set of projections: global rows with projections of their own do not fit"
        if device.type == "cpu" and case.direction == TRAINING:
            return "no backward on CPUs"
        if device.type == "cpu" and case.torch_dtype != torch.float32:
            return "float32 only on CPUs"
        if device.type == "cpu" and case.head_dim < 16:
            return "head_dim below 16"
        return None

    def prepare(self, inputs: Inputs) -> Run:
        """Compilation happens in the first call of a process, the mask is built here; both are in the first-call column."""
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention

        side, length = inputs.case.side, inputs.case.seq_len
        device = inputs.grad_out.device

        def in_window(batch: Tensor, head: Tensor, query_index: Tensor, key_index: Tensor) -> Tensor:  # noqa: ARG001
            return (query_index - key_index).abs() <= side

        mask = create_block_mask(in_window, None, None, length, length, device=str(device))
        if self._compiled is None:
            # Dynamic shapes: one compilation serves every length of a sweep, as it would a model with texts of many lengths.
            self._compiled = torch.compile(flex_attention, dynamic=True, mode=self.mode)
        compiled: Any = self._compiled
        query, key, value = (inputs.heads_of(name) for name in ("query", "key", "value"))
        return lambda: compiled(query, key, value, block_mask=mask)

    def peak_bytes(self, case: Case) -> int:
        """Building the block mask goes through a dense one."""
        return super().peak_bytes(case) + 10 * case.seq_len**2


class FlexTuned(Flex):
    """flex_attention with what its kernels' own search finds."""

    name, title, mode = "flex-tuned", "flex_attention (max-autotune)", "max-autotune-no-cudagraphs"

    def why_not(self, case: Case, device: torch.device) -> str | None:
        """The search is for GPU kernels."""
        return "GPUs only" if device.type != "cuda" else super().why_not(case, device)


class _Preset(torch.nn.Module):
    """Stands in for a projection: returns states that exist already, as (seq_len, batch, hidden)."""

    def __init__(self, states: Tensor, padding: int) -> None:
        super().__init__()
        self.states, self.padding = states, padding

    def forward(self, hidden_states: Tensor) -> Tensor:
        states = pad(self.states, (0, 0, 0, self.padding)) if self.padding else self.states
        # transformers scales its queries in place, which a leaf or a view of one does not allow.
        return states.transpose(0, 1)[: hidden_states.shape[0]].clone()


class Transformers(Provider):
    """The core of transformers' LongformerSelfAttention: its projections are replaced by ready-made query, key and value."""

    name = "transformers"

    def __init__(self) -> None:
        found = importlib.util.find_spec("transformers") is not None
        self.version = importlib.import_module("importlib.metadata").version("transformers") if found else None
        self.title = f"transformers {self.version} Longformer" if found else "transformers Longformer"

    def why_not(self, case: Case, device: torch.device) -> str | None:
        """It needs the package, and an even window."""
        if self.version is None:
            return "transformers is not installed"
        if case.window is None or case.window < 2 or case.window % 2:
            return "attention_window must be even and at least 2"
        return None

    def prepare(self, inputs: Inputs) -> Run:
        """Lengths are padded to a multiple of the window, as its model does."""
        from transformers import LongformerConfig
        from transformers.models.longformer.modeling_longformer import LongformerSelfAttention

        case, window = inputs.case, 2 * inputs.case.side
        config = LongformerConfig(
            attention_window=[window],
            hidden_size=case.heads * case.head_dim,
            num_attention_heads=case.heads,
            num_hidden_layers=1,
            attention_probs_dropout_prob=0.0,
        )
        layer = LongformerSelfAttention(config, layer_id=0).eval()
        padding = -case.seq_len % window
        for name in ("query", "key", "value"):
            setattr(layer, name, _Preset(inputs.packed[name], padding))
            if case.num_globals:
                setattr(layer, f"{name}_global", _Preset(inputs.packed[f"{name}_global"], padding))
        mask = torch.full((case.batch, case.seq_len + padding), -10000.0, device=inputs.grad_out.device, dtype=case.torch_dtype)
        mask[:, : case.seq_len] = 0
        mask[:, : case.num_globals] = 10000
        hidden = mask.new_empty((case.batch, case.seq_len + padding, config.hidden_size))

        def run() -> Tensor:
            (out,) = layer(
                hidden,
                attention_mask=mask,
                is_index_masked=mask < 0,
                is_index_global_attn=mask > 0,
                is_global_attn=case.num_globals > 0,
            )[:1]
            return out[:, : case.seq_len].view(case.batch, case.seq_len, case.heads, case.head_dim).transpose(1, 2)

        return run

    def peak_bytes(self, case: Case) -> int:
        """Chunked scores of twice the window, several copies."""
        band = case.batch * case.heads * case.seq_len * (2 * (case.window or 0) + 64) * case.torch_dtype.itemsize
        return super().peak_bytes(case) + band * (10 if case.direction == TRAINING else 5)


def _tensor(result: Tensor | tuple[Tensor, Tensor]) -> Tensor:
    return result if isinstance(result, Tensor) else result[0]


PROVIDERS: dict[str, Provider] = {
    provider.name: provider
    for provider in (
        Ours("triton"),
        Ours("torch"),
        FullSdpa(),
        Flex(),
        Transformers(),
        Reference(),
        FlexTuned(),
        *gpu_peers(),
    )
}
