"""Longformer's self-attention: projections around the kernels, heads, dropout and attention maps."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from longformer_triton.kernels import (
    AttentionPattern,
    absorbed_global_attention,
    attention_probabilities,
    checks,
    longformer_attention,
    sliding_window_attention,
)
from longformer_triton.model.config import LongformerConfig
from longformer_triton.model.linear import apply_linear
from longformer_triton.model.plain import is_plain_linear
from longformer_triton.model.residual import add_projected
from longformer_triton.model.settings import check_absorb

Maps = tuple[Tensor, "Tensor | None"]
GLOBAL_PROJECTIONS = ("query_global", "key_global", "value_global")
PROJECTIONS = ("query", "key", "value", *GLOBAL_PROJECTIONS)


class _WithZeroGradients(torch.autograd.Function):
    """The identity on ``states``; in backward every parameter that stands beside it gets a gradient of zeros.

    Data-parallel training waits for a gradient of each parameter, also of those that a batch leaves unused.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(states: Tensor, *parameters: Tensor) -> Tensor:  # noqa: ARG004 - for their gradients alone
        return states.view_as(states)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:  # noqa: ARG004 - the interface
        ctx.like = [(parameter.shape, parameter.dtype, parameter.device) for parameter in inputs[1:]]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        return (grad, *(torch.zeros(shape, dtype=dtype, device=device) for shape, dtype, device in ctx.like))


class AttentionComputation:
    """What a self-attention module of Longformer computes, whoever made the module: ours, and those of patched models.

    The module has the six projections, ``head_dim``, ``dropout`` and ``config``; of the configuration, the two fields that only
    ours has may be absent.
    """

    query: nn.Linear
    key: nn.Linear
    value: nn.Linear
    query_global: nn.Linear
    key_global: nn.Linear
    value_global: nn.Linear
    head_dim: int
    dropout: float
    config: Any
    training: bool
    # Whether global projections get gradients of zeros where nothing is global, or none at all.
    fills_unused_gradients: ClassVar[bool] = True

    def attend(
        self,
        hidden_states: Tensor,
        pattern: AttentionPattern,
        head_mask: Tensor | None = None,
        output_attentions: bool = False,
    ) -> tuple[Tensor, Maps | None]:
        """Project the states, attend locally and globally, and apply the ``head_mask``.

        Args:
            hidden_states: (batch, seq_len, hidden_size).
            pattern: who sees whom.
            head_mask: (heads,), factors on the probabilities of each head that is here; None: all ones.
            output_attentions: whether to compute the attention maps too.

        Returns:
            context (batch, seq_len, heads * head_dim), and with ``output_attentions`` the local and the global map.
        """
        query, key, value = (self._split(apply_linear(linear, hidden_states)) for linear in (self.query, self.key, self.value))
        dropout_p = self.dropout if self.training else 0.0
        # One seed for both parts, so that absorbed projections drop what the others would.
        seed = torch.randint(-(2**63), 2**63 - 1, (), dtype=torch.int64, device=query.device) if dropout_p > 0 else None
        maps = None
        if pattern.global_mask is None:
            context = sliding_window_attention(query, key, value, pattern=pattern, dropout_p=dropout_p, dropout_seed=seed)
            if self.fills_unused_gradients:
                context = self._with_zero_gradients(context, *GLOBAL_PROJECTIONS)
            if output_attentions:
                maps = attention_probabilities(query, key, pattern)
        else:
            query_global = self._split(apply_linear(self.query_global, pattern.gather_global(hidden_states)))
            if not output_attentions and self._absorb(pattern, query.shape[1], hidden_states.shape[2]):
                context = sliding_window_attention(query, key, value, pattern=pattern, dropout_p=dropout_p, dropout_seed=seed)
                del query, key, value  # without gradients, before anything more is allocated
                rows = self._absorbed_rows(hidden_states, query_global, pattern, dropout_p, seed)
                context = _replace_rows(context, rows, pattern)
            else:
                key_global, value_global = (
                    self._split(apply_linear(linear, hidden_states)) for linear in (self.key_global, self.value_global)
                )
                context = longformer_attention(
                    query, key, value, query_global, key_global, value_global, pattern, dropout_p=dropout_p, dropout_seed=seed
                )
                if output_attentions:
                    maps = attention_probabilities(query, key, pattern, query_global=query_global, key_global=key_global)
        if head_mask is not None:
            context = context * head_mask.to(context.dtype).view(1, -1, 1, 1)
            if maps is not None:
                local, of_globals = maps
                factors = head_mask.to(local.dtype).view(1, -1, 1, 1)
                maps = local * factors, None if of_globals is None else of_globals * factors
        return context.transpose(1, 2).flatten(2), maps

    def _split(self, states: Tensor) -> Tensor:
        """(batch, tokens, heads * head_dim) -> (batch, heads, tokens, head_dim), a view."""
        return states.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)

    def _absorb(self, pattern: AttentionPattern, heads: int, hidden_size: int) -> bool:
        """Whether global rows go without projecting every token: where that is cheaper, if the configuration leaves it open.

        Never where a projection is more than its weight and bias, whatever the configuration says: it has to be called.

        While tracing, the number of global tokens is known only if the configuration bounds it; projecting never costs more
        than two products, so that is what a graph for any number does.
        """
        setting = getattr(self.config, "absorb_global_projections", "auto")
        check_absorb(setting)
        if not (is_plain_linear(self.key_global) and is_plain_linear(self.value_global)):
            return False
        if setting != "auto":
            return bool(setting)
        if checks.is_tracing() and getattr(self.config, "max_globals", None) is None:
            return False
        return pattern.global_index.shape[1] * (heads - 1) < hidden_size

    def _absorbed_rows(
        self, hidden_states: Tensor, query_global: Tensor, pattern: AttentionPattern, dropout_p: float, seed: Tensor | None
    ) -> Tensor:
        """(batch, heads, G, head_dim). Under autocast, weights and states take the dtype of what it made of the query."""
        states, key_weight, value_weight, value_bias = (
            tensor.to(query_global.dtype)
            for tensor in (hidden_states, self.key_global.weight, self.value_global.weight, self.value_global.bias)
        )
        rows = absorbed_global_attention(
            states, query_global, key_weight, value_weight, value_bias, pattern, dropout_p=dropout_p, dropout_seed=seed
        )
        # The bias of the key moves all scores of a row alike, and the softmax takes that out again.
        if torch.is_grad_enabled() and self.key_global.bias.requires_grad:
            rows = _WithZeroGradients.apply(rows, self.key_global.bias)
        return rows

    def _with_zero_gradients(self, states: Tensor, *projections: str) -> Tensor:
        parameters = [parameter for name in projections for parameter in getattr(self, name).parameters()]
        needed = [parameter for parameter in parameters if parameter.requires_grad]
        return _WithZeroGradients.apply(states, *needed) if needed and torch.is_grad_enabled() else states


class LongformerSelfAttention(AttentionComputation, nn.Module):
    """Windowed attention, and full attention of global tokens with projections of their own (arXiv 2004.05150, section 3.1)."""

    def __init__(self, config: LongformerConfig, layer_id: int = 0) -> None:
        super().__init__()
        self.config = config
        self.head_dim = config.hidden_size // config.num_attention_heads
        pruned = config.pruned_heads.get(layer_id, [])
        self.heads = [head for head in range(config.num_attention_heads) if head not in pruned]
        for name in PROJECTIONS:
            setattr(self, name, nn.Linear(config.hidden_size, self.num_heads * self.head_dim))
        self.dropout = config.attention_probs_dropout_prob

    @property
    def num_heads(self) -> int:
        """How many heads are left here."""
        return len(self.heads)

    def forward(
        self,
        hidden_states: Tensor,
        pattern: AttentionPattern,
        head_mask: Tensor | None = None,
        output_attentions: bool = False,
    ) -> tuple[Tensor, Maps | None]:
        """As :meth:`attend`, with a ``head_mask`` (num_attention_heads,) that counts pruned heads too."""
        if head_mask is not None and self.num_heads < self.config.num_attention_heads:
            head_mask = head_mask[self.heads]
        return self.attend(hidden_states, pattern, head_mask, output_attentions)

    def keep_heads(self, kept: list[int]) -> None:
        """Remove all heads but ``kept`` (numbers as in the configuration) from the six projections."""
        places = [self.heads.index(head) for head in kept]
        for name in PROJECTIONS:
            setattr(self, name, _slice_linear(getattr(self, name), places, self.head_dim, dim=0))
        self.heads = kept


class LongformerSelfOutput(nn.Module):
    """The projection after attention, with residual and layer norm."""

    def __init__(self, config: LongformerConfig, width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, context: Tensor, residual: Tensor) -> Tensor:
        """(batch, seq_len, width) and (batch, seq_len, hidden_size) -> (batch, seq_len, hidden_size)."""
        return add_projected(self, context, residual)


class LongformerAttention(nn.Module):
    """Self-attention and the projection after it."""

    def __init__(self, config: LongformerConfig, layer_id: int = 0) -> None:
        super().__init__()
        self.self = LongformerSelfAttention(config, layer_id)
        self.output = LongformerSelfOutput(config, self.self.num_heads * self.self.head_dim)

    def forward(
        self,
        hidden_states: Tensor,
        pattern: AttentionPattern,
        head_mask: Tensor | None = None,
        output_attentions: bool = False,
    ) -> tuple[Tensor, Maps | None]:
        """As :meth:`LongformerSelfAttention.forward`, projected back to (batch, seq_len, hidden_size)."""
        context, maps = self.self(hidden_states, pattern, head_mask, output_attentions)
        return self.output(context, hidden_states), maps

    def keep_heads(self, kept: list[int]) -> None:
        """Remove all heads but ``kept``, here and in what reads them."""
        places = [self.self.heads.index(head) for head in kept]
        self.output.dense = _slice_linear(self.output.dense, places, self.self.head_dim, dim=1)
        self.self.keep_heads(kept)


def _replace_rows(context: Tensor, rows: Tensor, pattern: AttentionPattern) -> Tensor:
    """``context`` (batch, heads, seq_len, head_dim) with ``rows`` (batch, heads, G, head_dim) at the global tokens.

    Rows at -1 are zeros, added to token 0: adding to what was set to zero is exact, and needs no count of the globals.
    """
    assert pattern.global_mask is not None
    index = pattern.global_index[:, None, :, None]
    emptied = context.masked_fill(pattern.global_mask[:, None, :, None], 0.0)
    return emptied.scatter_add(2, index.clamp_min(0).expand_as(rows), rows)


def _slice_linear(linear: nn.Linear, heads: list[int], head_dim: int, dim: int) -> nn.Linear:
    """A linear layer with the features of some heads alone, of its outputs (dim 0) or of its inputs (dim 1)."""
    weight, bias = linear.weight.detach(), linear.bias.detach()
    features = torch.arange(weight.shape[dim], device=weight.device).view(-1, head_dim)[heads].flatten()
    weight = weight.index_select(dim, features)
    kept = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
    kept.weight = nn.Parameter(weight, requires_grad=linear.weight.requires_grad)
    kept.bias = nn.Parameter(bias[features] if dim == 0 else bias.clone(), requires_grad=linear.bias.requires_grad)
    return kept
