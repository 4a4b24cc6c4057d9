"""flex_attention, compiled, with a cell's window, global tokens and padding as a block mask."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from longformer_triton.bench.cases import SCATTERED, TRAINING, Case, Inputs
from longformer_triton.bench.provider import DROPOUT, GRAPH, Provider, Run

_BLOCK = 128
# Graphs that a process may compile: one for each cell.
_MOST_GRAPHS = 10_000


class Flex(Provider):
    """flex_attention with its default options.

    Global tokens are rows and columns of the mask. That is the pattern of Longformer with one set of projections instead of
    two: the same pairs, other numbers, and three inputs fewer.
    """

    name, title = "flex", "flex_attention (compiled)"
    note = "global rows share the projections of all tokens, instead of having their own"
    lacks = frozenset({DROPOUT, GRAPH})
    shares_projections = True
    mode: str | None = None  # torch.compile's
    _compiled: Any = None

    def why_not_here(self, case: Case, device: torch.device) -> str | None:
        """On CPUs flex_attention has no backward, and its bfloat16 forward is unusable."""
        if device.type != "cpu":
            return None
        if case.direction == TRAINING:
            return "no backward on CPUs"
        if case.torch_dtype != torch.float32:
            return "float32 only on CPUs"
        return "head_dim below 16" if case.head_dim < 16 else None

    def prepare(self, inputs: Inputs) -> Run:
        """Compilation happens in the first call of a process, the mask is built here; both are in the first-call column."""
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention

        case, device = inputs.case, inputs.grad_out.device
        mask_of = mask_function(inputs)
        texts = _texts(case)
        # Compiled, it builds blocks without a matrix of all pairs; uncompiled that matrix is smaller than a compiler's start.
        mask = create_block_mask(
            mask_of, texts if texts > 1 else None, None, case.seq_len, case.seq_len,
            device=str(device), _compile=device.type == "cuda",
        )  # fmt: skip
        if self._compiled is None:
            # After eight cells it would go on uncompiled, without a word.
            torch._dynamo.config.recompile_limit = torch._dynamo.config.accumulated_recompile_limit = _MOST_GRAPHS
            torch._dynamo.config.fail_on_recompile_limit_hit = True
            type(self)._compiled = torch.compile(flex_attention, mode=self.mode)
        compiled = type(self)._compiled
        query, key, value = (inputs.heads_of(name) for name in ("query", "key", "value"))
        grouped = case.real_key_heads != case.heads
        return lambda: compiled(query, key, value, block_mask=mask, enable_gqa=grouped)

    def peak_bytes(self, case: Case, device: torch.device) -> int:
        """On a CPU building the block mask goes through a dense one, on a GPU through numbers of blocks."""
        cells = case.seq_len**2 if device.type == "cpu" else (case.seq_len // _BLOCK + 1) ** 2
        return super().peak_bytes(case, device) + 10 * _texts(case) * cells


def _texts(case: Case) -> int:
    """How many texts of the batch need a mask of their own."""
    return case.batch if case.num_globals and case.globals_at == SCATTERED else 1


def mask_function(inputs: Inputs) -> Any:
    """The mask_mod of a cell: window or global column or global row, and real; none of it costs where it does not apply."""
    case = inputs.case
    (left, right), step, length = case.band, case.step, case.real_len
    # Products are taken here: the compiler may trace captured numbers as symbols, and its CPU kernel takes no expressions.
    before, after = left * step, right * step
    is_global = inputs.global_attention_mask.bool() if case.num_globals else None

    def in_window(query: Tensor, key: Tensor) -> Tensor:
        inside = (query - key <= before) & (key - query <= after)
        return inside if step == 1 else inside & ((key - query) % step == 0)

    def visible(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:  # noqa: ARG001 - the signature is flex's
        seen = in_window(query, key)
        if is_global is not None:
            seen = seen | is_global[batch, key]
            seen = seen & (key <= query) if case.is_causal else seen | is_global[batch, query]
        return seen & (key < length) if case.padding else seen

    return visible


class FlexTuned(Flex):
    """flex_attention with what its kernels' own search finds."""

    name, title, mode = "flex-tuned", "flex_attention (max-autotune)", "max-autotune-no-cudagraphs"

    def why_not_here(self, case: Case, device: torch.device) -> str | None:
        """The search is for GPU kernels."""
        return "GPUs only" if device.type != "cuda" else super().why_not_here(case, device)
