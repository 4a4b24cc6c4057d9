"""One label, several labels, or a number for a whole text."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, mse_loss

from longformer_triton.heads.global_tokens import first_token
from longformer_triton.model import inputs
from longformer_triton.model.base import LongformerPreTrainedModel
from longformer_triton.model.config import LongformerConfig
from longformer_triton.model.longformer import LongformerModel
from longformer_triton.model.outputs import LongformerSequenceClassifierOutput


class LongformerClassificationHead(nn.Module):
    """The first token to scores of labels: dense, tanh, projection."""

    def __init__(self, config: LongformerConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.out_proj = nn.Linear(config.hidden_size, config.num_labels)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """(batch, seq_len, hidden_size) -> (batch, num_labels)."""
        pooled = torch.tanh(self.dense(self.dropout(hidden_states[:, 0])))
        return self.out_proj(self.dropout(pooled))


def classification_loss(logits: Tensor, labels: Tensor, problem_type: str | None) -> Tensor:
    """The loss of a problem type; None is seen from ``logits`` (batch, num_labels) and the dtype of ``labels``.

    One label is a regression (mean squared error); integers are one class each (cross-entropy); floats are a yes or no for
    each label (binary cross-entropy).
    """
    inputs.tensor("labels", labels)
    labels = labels.to(logits.device)
    if problem_type is None:
        if logits.shape[1] == 1:
            problem_type = "regression"
        else:
            problem_type = "multi_label_classification" if labels.is_floating_point() else "single_label_classification"
    if problem_type == "regression":
        if labels.numel() != logits.numel():
            raise ValueError(f"labels: got shape {tuple(labels.shape)}, expected as many numbers as {tuple(logits.shape)}.")
        return mse_loss(logits, _as_targets(labels.view(logits.shape), logits))
    if problem_type == "single_label_classification":
        return cross_entropy(logits, inputs.classes("labels", labels, logits.shape[:1], logits.shape[1]))
    if labels.shape != logits.shape:
        raise ValueError(f"labels: got shape {tuple(labels.shape)}, expected (batch, num_labels) = {tuple(logits.shape)}.")
    return binary_cross_entropy_with_logits(logits, _as_targets(labels, logits))


def _as_targets(labels: Tensor, logits: Tensor) -> Tensor:
    """``labels`` to compare ``logits`` with: integers take their dtype, others keep their own, as in transformers."""
    return labels if labels.is_floating_point() else labels.to(logits.dtype)


class LongformerForSequenceClassification(LongformerPreTrainedModel):
    """Longformer that classifies texts, or regresses a number if config.num_labels is 1.

    The first token is global if no mask says otherwise (:mod:`longformer_triton.heads.global_tokens`).

    Example:
        >>> import torch
        >>> from longformer_triton import LongformerConfig, LongformerForSequenceClassification
        >>> sizes = dict(vocab_size=100, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
        >>> model = LongformerForSequenceClassification(LongformerConfig(**sizes, num_labels=3)).eval()
        >>> model(torch.randint(3, 100, (2, 300)), labels=torch.tensor([0, 2])).logits.shape
        torch.Size([2, 3])
    """

    def __init__(self, config: LongformerConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.longformer = LongformerModel(config, add_pooling_layer=False)
        self.classifier = LongformerClassificationHead(config)
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
    ) -> LongformerSequenceClassifierOutput | tuple[object, ...]:
        """Score the labels of each text.

        Args:
            labels: (batch,) of integers, (batch,) of numbers for a regression, or (batch, num_labels) of floats 0 and 1 for
                several labels at once; config.problem_type decides where this does not. Other arguments as
                :meth:`LongformerModel.forward`.

        Returns:
            :class:`LongformerSequenceClassifierOutput`, or its tuple.

        Raises:
            ValueError, TypeError: as :meth:`LongformerModel.forward`.
        """
        given = inputs.tokens(input_ids, inputs_embeds, self.config.hidden_size)
        if global_attention_mask is None:
            global_attention_mask = first_token(given)
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
        logits = self.classifier(encoded.last_hidden_state)
        loss = None if labels is None else classification_loss(logits, labels, self.config.problem_type)
        output = LongformerSequenceClassifierOutput(
            loss, logits, encoded.hidden_states, encoded.attentions, encoded.global_attentions
        )
        return self._returned(output, return_dict)
