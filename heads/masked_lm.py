"""Predicting masked words."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import cross_entropy, gelu

from longformer_triton.model import inputs
from longformer_triton.model.base import LongformerPreTrainedModel
from longformer_triton.model.config import LongformerConfig
from longformer_triton.model.initialization import resized_rows
from longformer_triton.model.linear import apply_linear
from longformer_triton.model.longformer import LongformerModel
from longformer_triton.model.outputs import LongformerMaskedLMOutput


class LongformerLMHead(nn.Module):
    """Hidden states to scores of words: dense, GELU, layer norm, and a decoder that is the word embedding."""

    def __init__(self, config: LongformerConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size)
        # Checkpoints name the decoder's bias twice.
        self.bias = self.decoder.bias

    def forward(self, hidden_states: Tensor) -> Tensor:
        """(batch, seq_len, hidden_size) -> (batch, seq_len, vocab_size)."""
        return apply_linear(self.decoder, self.layer_norm(gelu(apply_linear(self.dense, hidden_states))))


class LongformerForMaskedLM(LongformerPreTrainedModel):
    """Longformer that predicts the words behind ``<mask>``.

    Example:
        >>> import torch
        >>> from longformer_triton import LongformerConfig, LongformerForMaskedLM
        >>> sizes = dict(vocab_size=100, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
        >>> model = LongformerForMaskedLM(LongformerConfig(**sizes, max_position_embeddings=2050, attention_window=64)).eval()
        >>> mask_token_id = 99
        >>> input_ids = torch.randint(3, 99, (1, 2000))
        >>> input_ids[0, 4] = mask_token_id
        >>> logits = model(input_ids).logits
        >>> masked_index = (input_ids[0] == mask_token_id).nonzero().item()
        >>> probabilities = logits[0, masked_index].softmax(dim=0)
        >>> values, predictions = probabilities.topk(5)
        >>> predictions.shape
        torch.Size([5])
    """

    _keys_to_ignore_on_save = ("lm_head.decoder.weight", "lm_head.decoder.bias")

    def __init__(self, config: LongformerConfig) -> None:
        super().__init__(config)
        self.longformer = LongformerModel(config, add_pooling_layer=False)
        self.lm_head = LongformerLMHead(config)
        self.post_init()

    def tie_weights(self) -> None:
        """Make the decoder's weight the word embedding, and its bias the head's.

        If the configuration says so no longer, the weight becomes a copy: a new parameter, so call this before an optimiser is
        made.
        """
        decoder, words = self.lm_head.decoder, self.get_input_embeddings().weight
        is_tied = self.longformer.built_in["tie_word_embeddings"] = self.config.tie_word_embeddings
        if is_tied:
            decoder.weight = words
        elif decoder.weight is words:
            decoder.weight = nn.Parameter(words.detach().clone(), requires_grad=words.requires_grad)
        self.lm_head.bias = decoder.bias

    def get_output_embeddings(self) -> nn.Linear:
        """The decoder."""
        return self.lm_head.decoder

    def set_output_embeddings(self, decoder: nn.Linear) -> None:
        """Replace the decoder; if the configuration says that it is the word embedding, :meth:`tie_weights` makes it so."""
        self.lm_head.decoder = decoder
        self.lm_head.bias = decoder.bias
        self.longformer.built_in["tie_word_embeddings"] = self.config.tie_word_embeddings

    def _resize_output(self, size: int, std: float | None) -> None:
        decoder = self.lm_head.decoder
        if not self.config.tie_word_embeddings:
            resized_rows(decoder, size, std)
        # A decoder of the user's may have no bias, and a tied weight is resized already.
        if decoder.bias is not None:
            resized_rows(decoder, size, 0.0, name="bias")
        decoder.out_features = size

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        global_attention_mask: Tensor | None = None,
        head_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> LongformerMaskedLMOutput | tuple[object, ...]:
        """Score every word at every token.

        Args:
            labels: (batch, seq_len) of ids; -100 where no loss is wanted. Other arguments as :meth:`LongformerModel.forward`.

        Returns:
            :class:`LongformerMaskedLMOutput`, or its tuple.

        Raises:
            ValueError, TypeError: as :meth:`LongformerModel.forward`.
        """
        encoded = self.longformer(
            input_ids,
            attention_mask=attention_mask,
            global_attention_mask=global_attention_mask,
            head_mask=head_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
        )
        logits = self.lm_head(encoded.last_hidden_state)
        loss = None
        if labels is not None:
            targets = inputs.classes("labels", labels, logits.shape[:2], logits.shape[2]).to(logits.device)
            loss = cross_entropy(logits.flatten(0, 1), targets)
        output = LongformerMaskedLMOutput(loss, logits, encoded.hidden_states, encoded.attentions, encoded.global_attentions)
        return self._returned(output, return_dict)
