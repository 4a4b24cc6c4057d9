"""transformers' Longformer: the core of its self-attention, with ready-made query, key and value."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from longformer_triton.bench.cases import TRAINING, Case, Inputs
from longformer_triton.bench.provider import CAUSAL, DILATION, GRAPH, GROUPED, Provider, Run, installed_version


class _Preset(torch.nn.Module):
    """Stands in for a projection: returns states that exist already, as (seq_len, batch, hidden).

    ``positions`` are the tokens of each text that the layer projects, (batch, count); None for all.
    """

    def __init__(self, states: Tensor, padding: int, positions: Tensor | None = None) -> None:
        super().__init__()
        self.states, self.padding, self.positions = states, padding, positions

    def forward(self, hidden_states: Tensor) -> Tensor:
        if self.positions is not None:
            return self.states.gather(1, self.positions[..., None].expand(-1, -1, self.states.shape[-1])).transpose(0, 1)
        states = pad(self.states, (0, 0, 0, self.padding)) if self.padding else self.states
        # transformers scales its queries in place, which a leaf or a view of one does not allow.
        return states.transpose(0, 1).clone()


class Transformers(Provider):
    """The core of transformers' LongformerSelfAttention: its projections are replaced by ready-made query, key and value."""

    name = "transformers"
    lacks = frozenset({CAUSAL, DILATION, GROUPED, GRAPH})

    def __init__(self) -> None:
        # Versions differ in more than speed: after 5.8 its memory grew with the square of the length.
        self.version = installed_version("transformers")
        self.title = f"transformers {self.version} Longformer" if self.version else "transformers Longformer"

    def why_not_here(self, case: Case, device: torch.device) -> str | None:
        """It needs the package, and an even window."""
        if self.version is None:
            return "transformers is not installed"
        if case.window is None or case.window < 2 or case.window % 2:
            return "attention_window must be even and at least 2"
        return None

    def prepare(self, inputs: Inputs) -> Run:
        """Lengths are padded to a multiple of the window, as its model does; with dropout the layer is in training mode."""
        from transformers import LongformerConfig
        from transformers.models.longformer.modeling_longformer import LongformerSelfAttention

        case, window = inputs.case, 2 * inputs.case.side
        config = LongformerConfig(
            attention_window=[window],
            hidden_size=case.heads * case.head_dim,
            num_attention_heads=case.heads,
            num_hidden_layers=1,
            attention_probs_dropout_prob=case.dropout / 100,
        )
        layer = LongformerSelfAttention(config, layer_id=0).train(case.dropout > 0)
        padding = -case.seq_len % window
        positions = torch.tensor([case.global_positions(text) for text in range(case.batch)], device=inputs.grad_out.device)
        for name in ("query", "key", "value"):
            setattr(layer, name, _Preset(inputs.packed[name], padding))
            if case.num_globals:
                rows = positions if name == "query" else None
                setattr(layer, f"{name}_global", _Preset(inputs.packed[f"{name}_global"], padding, rows))
        mask = torch.full((case.batch, case.seq_len + padding), -10000.0, device=inputs.grad_out.device, dtype=case.torch_dtype)
        mask[:, : case.real_len] = 0
        if case.num_globals:
            mask[:, : case.seq_len][inputs.global_attention_mask.bool()] = 10000
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

    def peak_bytes(self, case: Case, device: torch.device) -> int:
        """Chunked scores of twice the window, several copies."""
        band = case.batch * case.heads * case.seq_len * (2 * (case.window or 0) + 64) * case.torch_dtype.itemsize
        return super().peak_bytes(case, device) + band * (10 if case.direction == TRAINING else 5)
