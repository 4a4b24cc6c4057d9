"""Words, positions and token types, summed and normalised, as in RoBERTa."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from longformer_triton.kernels import checks
from longformer_triton.model import inputs
from longformer_triton.model.config import LongformerConfig
from longformer_triton.model.residual import dropped

_LONGER = "model.resize_position_embeddings(n), which tiles the learned positions"


def positions_from_padding(input_ids: Tensor, padding_idx: int) -> Tensor:
    """Positions of tokens, counted from padding_idx + 1 and over real tokens alone; padding has position padding_idx.

    Args:
        input_ids: (batch, seq_len) of integers.
        padding_idx: the id of the padding token.
    """
    real = input_ids.ne(padding_idx).long()
    return real.cumsum(1) * real + padding_idx


class LongformerEmbeddings(nn.Module):
    """(batch, seq_len) of ids, or (batch, seq_len, hidden_size) of word embeddings -> (batch, seq_len, hidden_size)."""

    def __init__(self, config: LongformerConfig) -> None:
        super().__init__()
        self.padding_idx = config.pad_token_id
        # In transformers' order, by whose numbers the state of an optimiser knows its parameters.
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.position_embeddings = nn.Embedding(
            config.max_position_embeddings, config.hidden_size, padding_idx=config.pad_token_id
        )

    def forward(
        self,
        input_ids: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
    ) -> Tensor:
        """Embed ``input_ids`` or ``inputs_embeds``; positions follow the padding of ids, or count through embeddings.

        Raises:
            ValueError, TypeError: more tokens than the position table has rows for, or no indices of a table.
        """
        given = input_ids if inputs_embeds is None else inputs_embeds
        assert given is not None
        shape = (given.shape[0], given.shape[1])
        self._check_length(shape[1], input_ids, position_ids)
        for name, value, table, field, remedy in (
            ("input_ids", input_ids, self.word_embeddings, "vocab_size", None),
            ("token_type_ids", token_type_ids, self.token_type_embeddings, "type_vocab_size", None),
            ("position_ids", position_ids, self.position_embeddings, "max_position_embeddings", _LONGER),
        ):
            inputs.indices(name, value, shape, table.num_embeddings, field, remedy)
        if inputs_embeds is None:
            assert input_ids is not None
            inputs_embeds = self.word_embeddings(input_ids)
        else:
            inputs.no_wider("inputs_embeds", inputs_embeds, self.position_embeddings.weight)
        if position_ids is None:
            if input_ids is not None:
                position_ids = positions_from_padding(input_ids, self.padding_idx)
            else:
                first = self.padding_idx + 1
                position_ids = torch.arange(first, first + inputs_embeds.shape[1], device=inputs_embeds.device)[None]
        if token_type_ids is None:
            token_types = self.token_type_embeddings.weight[0]
        else:
            token_types = self.token_type_embeddings(token_type_ids)
        states = inputs_embeds + self.position_embeddings(position_ids) + token_types
        return dropped(self.dropout, self.LayerNorm(states))

    @property
    def longest(self) -> int:
        """The most real tokens that a text may have."""
        return self.position_embeddings.num_embeddings - self.padding_idx - 1

    def _check_length(self, tokens: int, input_ids: Tensor | None, position_ids: Tensor | None) -> None:
        """Refuse what would index past the position table, before anything is launched.

        Padding has no position of its own, so a padded text may be longer than the table; what counts are real tokens. They
        are counted only where the shape alone does not settle it, and never where ids have no values, while tracing or on meta:
        there the shape decides. An exported graph has no such check, since it would bound the lengths it accepts.
        """
        if torch.compiler.is_exporting() or position_ids is not None:
            return
        if tokens <= self.longest:
            return
        if input_ids is not None and not input_ids.is_meta and not checks.is_tracing():
            tokens = int(input_ids.ne(self.padding_idx).sum(1).max()) if input_ids.numel() else 0
        if tokens > self.longest:
            name = "input_ids" if input_ids is not None else "inputs_embeds"
            raise ValueError(
                f"{name}: got {tokens} tokens, expected at most {self.longest}: the position table has "
                f"{self.position_embeddings.num_embeddings} rows, of which {self.padding_idx + 1} are taken by padding. "
                f"Truncate or split the text, or call {_LONGER}, and train on."
            )
