"""The contestants. A provider is one small class: what it computes, when it cannot, and how to set it up outside the timing.

Add one by subclassing :class:`Provider`, listing it in ``PROVIDERS``, and running ``longformer-triton bench sweep``: its output
is checked against the float64 reference before any of its times count.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from longformer_triton.bench.cases import TRAINING, Case, Inputs
from longformer_triton.bench.peers import pytorch_peers
from longformer_triton.bench.peers_chunks import Chunks
from longformer_triton.bench.peers_flex import Flex, FlexTuned
from longformer_triton.bench.peers_packages import package_peers
from longformer_triton.bench.peers_transformers import Transformers
from longformer_triton.bench.provider import GRAPH, Provider, Run
from longformer_triton.kernels import longformer_attention, sliding_window_attention
from longformer_triton.kernels.backends import why_not


class Ours(Provider):
    """This package, one provider a backend. The pattern is built in every call: its cost is part of the time."""

    dropout_is_ours = True

    def __init__(self, backend: str) -> None:
        self.backend = backend
        self.name = f"ours-{backend}"
        self.title = f"longformer-triton ({backend} backend)"
        # A graph replays kernels; the other backends ask the device for numbers on the way.
        self.lacks = frozenset() if backend == "triton" else frozenset({GRAPH})

    def why_not_here(self, case: Case, device: torch.device) -> str | None:
        """Whatever the package itself would say."""
        if case.graph and device.type != "cuda":
            return "CUDA graphs are for GPUs"
        return why_not(self.backend, device, case.torch_dtype, case.head_dim)

    def prepare(self, inputs: Inputs) -> Run:
        """The public functions, as a model calls them."""
        case = inputs.case
        query, key, value = (inputs.heads_of(name) for name in ("query", "key", "value"))
        options: dict[str, Any] = {"backend": self.backend}
        if case.dropout:
            options.update(dropout_p=case.dropout / 100, dropout_seed=inputs.dropout_seed)
        if not case.has_global_rows:
            return lambda: _tensor(sliding_window_attention(query, key, value, pattern=inputs.pattern(), **options))
        query_global, key_global, value_global = (inputs.heads_of(f"{name}_global") for name in ("query", "key", "value"))

        def run() -> Tensor:
            pattern = inputs.pattern()
            rows = pattern.gather_global(query_global)
            return _tensor(longformer_attention(query, key, value, rows, key_global, value_global, pattern, **options))

        return run

    def tile_flops(self, inputs: Inputs) -> int | None:
        """Those of the Triton kernels, as they are launched here."""
        if self.backend != "triton":
            return None
        # Without triton there is nothing to ask.
        from longformer_triton.bench.tile_flops import tile_flops
        from longformer_triton.kernels.triton_impl.tuning import target_of

        return tile_flops(inputs, target_of(inputs.grad_out.device))


class Reference(Ours):
    """The dense oracle: every score of every pair, in memory at once."""

    def __init__(self) -> None:
        super().__init__("reference")
        self.name, self.title = "reference", "dense with mask (reference)"

    def peak_bytes(self, case: Case, device: torch.device) -> int:
        """Scores, probabilities, masks and, for training, their gradients: all quadratic."""
        scores = case.batch * case.heads * case.seq_len**2 * 4
        return scores * (8 if case.direction == TRAINING else 5)


def _tensor(result: Tensor | tuple[Tensor, Tensor]) -> Tensor:
    return result if isinstance(result, Tensor) else result[0]


PROVIDERS: dict[str, Provider] = {
    provider.name: provider
    for provider in (
        Ours("triton"),
        Ours("torch"),
        *pytorch_peers(),
        Flex(),
        FlexTuned(),
        Chunks(),
        Transformers(),
        *package_peers(),
        Reference(),
    )
}
__all__ = ["PROVIDERS", "Ours", "Provider", "Reference", "Run"]
