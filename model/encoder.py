"""A stack of layers: attention, feed-forward, residuals; what runs between the embeddings and the heads."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from longformer_triton.kernels import AttentionPattern
from longformer_triton.model.attention import LongformerAttention
from longformer_triton.model.config import LongformerConfig
from longformer_triton.model.feed_forward import ACTIVATIONS, feed_forward, name_of
from longformer_triton.model.linear import apply_linear
from longformer_triton.model.outputs import LongformerBaseModelOutput
from longformer_triton.model.plain import is_plain, is_plain_linear
from longformer_triton.model.residual import add_dropped, add_projected


class LongformerIntermediate(nn.Module):
    """The widening half of a feed-forward layer."""

    def __init__(self, config: LongformerConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation = ACTIVATIONS[config.hidden_act] if isinstance(config.hidden_act, str) else config.hidden_act

    def forward(self, hidden_states: Tensor) -> Tensor:
        """(batch, seq_len, hidden_size) -> (batch, seq_len, intermediate_size)."""
        return self.activation(apply_linear(self.dense, hidden_states))


class LongformerOutput(nn.Module):
    """The narrowing half of a feed-forward layer, with residual and layer norm."""

    def __init__(self, config: LongformerConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.intermediate_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, widened: Tensor, residual: Tensor) -> Tensor:
        """(batch, seq_len, intermediate_size) -> (batch, seq_len, hidden_size)."""
        return add_projected(self, widened, residual)


class LongformerLayer(nn.Module):
    """Attention and feed-forward."""

    def __init__(self, config: LongformerConfig, layer_id: int = 0) -> None:
        super().__init__()
        self.config = config
        self.attention = LongformerAttention(config, layer_id)
        self.intermediate = LongformerIntermediate(config)
        self.output = LongformerOutput(config)

    def forward(
        self,
        hidden_states: Tensor,
        pattern: AttentionPattern,
        head_mask: Tensor | None = None,
        output_attentions: bool = False,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """(batch, seq_len, hidden_size) -> the same shape, and the local and the global attention map if asked for.

        All three side by side, since reentrant checkpointing differentiates through what it finds at the top alone.
        """
        attended, maps = self.attention(hidden_states, pattern, head_mask, output_attentions)
        chunk_size = self.config.chunk_size_feed_forward
        if chunk_size == 0:
            states = self._feed_forward(attended)
        else:
            states = torch.cat([self._feed_forward(chunk) for chunk in attended.split(chunk_size, 1)], 1)
        return states, *(maps or (None, None))

    def _feed_forward(self, attended: Tensor) -> Tensor:
        """Both halves at once where nobody listens in between; a compiler decides by itself what to keep for backward."""
        intermediate, output, activation = self.intermediate, self.output, name_of(self.intermediate.activation)
        is_plain_pair = (
            is_plain(intermediate, LongformerIntermediate)
            and is_plain(output, LongformerOutput)
            and is_plain_linear(intermediate.dense)
            and is_plain_linear(output.dense)
        )
        if activation is None or not is_plain_pair or torch.compiler.is_compiling():
            return output(intermediate(attended), attended)
        narrowed = feed_forward(attended, intermediate.dense, output.dense, activation)
        return output.LayerNorm(add_dropped(output.dropout, narrowed, attended))


class LongformerEncoder(nn.Module):
    """All layers. One pattern serves those that share a window."""

    def __init__(self, config: LongformerConfig) -> None:
        super().__init__()
        self.config = config
        self.layer = nn.ModuleList(LongformerLayer(config, number) for number in range(config.num_hidden_layers))
        self.gradient_checkpointing = bool(getattr(config, "gradient_checkpointing", False))
        self.checkpointing_options: dict[str, Any] = {"use_reentrant": False}

    def forward(
        self,
        hidden_states: Tensor,
        pattern: AttentionPattern,
        head_mask: Tensor | None = None,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
    ) -> LongformerBaseModelOutput:
        """Run the layers.

        Args:
            hidden_states: (batch, seq_len, hidden_size), embedded tokens.
            pattern: the masks of this batch; each layer takes them with its own window.
            head_mask: (num_hidden_layers, num_attention_heads) or None.
            output_attentions, output_hidden_states: what to return besides the last hidden states.
        """
        told, found = self.config.num_hidden_layers, len(self.layer)
        if told != found:
            raise ValueError(
                f"config.num_hidden_layers: got {told}, expected {found}, the layers there are: set it, and "
                "config.attention_window, when layers are taken away or added."
            )
        windows = self.config.windows()
        patterns = {window: pattern.with_window(window // 2) for window in windows}
        states = [hidden_states] if output_hidden_states else []
        local_maps: list[Tensor] = []
        global_maps: list[Tensor] = []
        for number, (layer, window) in enumerate(zip(self.layer, windows, strict=True)):
            mask = None if head_mask is None else head_mask[number]
            run = functools.partial(layer, pattern=patterns[window], head_mask=mask, output_attentions=output_attentions)
            if self.gradient_checkpointing and self.training:
                hidden_states, local, of_globals = checkpoint(run, hidden_states, **self.checkpointing_options)
            else:
                hidden_states, local, of_globals = run(hidden_states)
            if output_hidden_states:
                states.append(hidden_states)
            local_maps += [local] if local is not None else []
            global_maps += [of_globals] if of_globals is not None else []
        return LongformerBaseModelOutput(
            last_hidden_state=hidden_states,
            hidden_states=tuple(states) if output_hidden_states else None,
            attentions=tuple(local_maps) if output_attentions else None,
            global_attentions=tuple(global_maps) or None,
        )
