"""A label for each token."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from longformer_triton.model import inputs
from longformer_triton.model.base import LongformerPreTrainedModel
from longformer_triton.model.config import LongformerConfig
from longformer_triton.model.longformer import LongformerModel
from longformer_triton.model.outputs import LongformerTokenClassifierOutput


class LongformerForTokenClassification(LongformerPreTrainedModel):
    """Longformer that labels every token, such as names of people and places.

    Example:
        >>> import torch
        >>> from longformer_triton import LongformerConfig, LongformerForTokenClassification
        >>> sizes = dict(vocab_size=100, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
        >>> model = LongformerForTokenClassification(LongformerConfig(**sizes, num_labels=5)).eval()
        >>> model(torch.randint(3, 100, (2, 300))).logits.shape
        torch.Size([2, 300, 5])
    """

    def __init__(self, config: LongformerConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.longformer = LongformerModel(config, add_pooling_layer=False)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
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
        labels: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> LongformerTokenClassifierOutput | tuple[object, ...]:
        """Score the labels of each token.

        Args:
            labels: (batch, seq_len) of integers; -100 where no loss is wanted. Other arguments as
                :meth:`LongformerModel.forward`.

        Returns:
            :class:`LongformerTokenClassifierOutput`, or its tuple.

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
        logits = self.classifier(self.dropout(encoded.last_hidden_state))
        loss = None
        if labels is not None:
            targets = inputs.classes("labels", labels, logits.shape[:2], logits.shape[2]).to(logits.device)
            loss = cross_entropy(logits.flatten(0, 1), targets)
        output = LongformerTokenClassifierOutput(
            loss, logits, encoded.hidden_states, encoded.attentions, encoded.global_attentions
        )
        return self._returned(output, return_dict)
