"""Where in a text the answer to a question begins and ends."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from longformer_triton.heads.global_tokens import question, tell_nothing_is_global
from longformer_triton.model import inputs
from longformer_triton.model.base import LongformerPreTrainedModel
from longformer_triton.model.config import LongformerConfig
from longformer_triton.model.longformer import LongformerModel
from longformer_triton.model.outputs import LongformerQuestionAnsweringModelOutput


class LongformerForQuestionAnswering(LongformerPreTrainedModel):
    """Longformer that marks the answer to a question in a text: ``<s> question </s></s> text </s>``.

    The question is global if no mask says otherwise (:mod:`longformer_triton.heads.global_tokens`).

    Raises:
        ValueError: config.num_labels is not 2, the beginning and the end.

    Example:
        >>> import torch
        >>> from longformer_triton import LongformerConfig, LongformerForQuestionAnswering
        >>> sizes = dict(vocab_size=100, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
        >>> model = LongformerForQuestionAnswering(LongformerConfig(**sizes)).eval()
        >>> who_was_jim_henson = [0, 12, 21, 33, 44, 5, 2, 2]
        >>> jim_henson_was_a_nice_puppet = [33, 44, 21, 6, 7, 8, 2]
        >>> input_ids = torch.tensor([who_was_jim_henson + jim_henson_was_a_nice_puppet])
        >>> outputs = model(input_ids, attention_mask=torch.ones_like(input_ids))
        >>> answer = input_ids[0, outputs.start_logits.argmax() : outputs.end_logits.argmax() + 1]
        >>> outputs.start_logits.shape, outputs.end_logits.shape
        (torch.Size([1, 15]), torch.Size([1, 15]))
    """

    def __init__(self, config: LongformerConfig) -> None:
        super().__init__(config)
        if config.num_labels != 2:
            raise ValueError(
                f"num_labels: got {config.num_labels}, expected 2 for question answering, scores of the beginning and of the "
                "end: LongformerConfig(num_labels=2)."
            )
        self.num_labels = config.num_labels
        self.longformer = LongformerModel(config, add_pooling_layer=False)
        self.qa_outputs = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        global_attention_mask: Tensor | None = None,
        head_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> LongformerQuestionAnsweringModelOutput | tuple[object, ...]:
        """Score every token as the beginning and as the end of the answer.

        Args:
            start_positions, end_positions: (batch,) of integers; positions at or beyond seq_len count for nothing. Other
                arguments as :meth:`LongformerModel.forward`.

        Returns:
            :class:`LongformerQuestionAnsweringModelOutput`, or its tuple.

        Raises:
            ValueError: a text has no separator and no mask was given, or one of the positions without the other. And as
                :meth:`LongformerModel.forward`.
        """
        if (start_positions is None) != (end_positions is None):
            missing, given = ("end", "start") if end_positions is None else ("start", "end")
            raise ValueError(f"{missing}_positions: got None with {given}_positions, expected both, for a loss, or neither.")
        if global_attention_mask is None:
            inputs.tokens(input_ids, inputs_embeds, self.config.hidden_size)
            if input_ids is not None:
                global_attention_mask = question(input_ids, self.config.sep_token_id, attention_mask)
            elif not torch.compiler.is_compiling():
                tell_nothing_is_global("the question ends")
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
        start_logits, end_logits = self.qa_outputs(encoded.last_hidden_state).unbind(-1)
        start_logits, end_logits = start_logits.contiguous(), end_logits.contiguous()
        loss = None
        if start_positions is not None and end_positions is not None:
            start_loss = _position_loss("start_positions", start_logits, start_positions)
            loss = (start_loss + _position_loss("end_positions", end_logits, end_positions)) / 2
        output = LongformerQuestionAnsweringModelOutput(
            loss, start_logits, end_logits, encoded.hidden_states, encoded.attentions, encoded.global_attentions
        )
        return self._returned(output, return_dict)


def _position_loss(name: str, logits: Tensor, positions: Tensor) -> Tensor:
    """Cross-entropy of (batch,) positions, given as (batch,) or (batch, 1); answers that were cut off count for nothing."""
    seq_len = logits.shape[1]
    inside = inputs.classes(name, positions, logits.shape[:1], None).clamp(0, seq_len)
    return cross_entropy(logits, inside.to(logits.device), ignore_index=seq_len)
