"""Which of several continuations fits."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from longformer_triton.heads.global_tokens import after_first_separators, tell_nothing_is_global
from longformer_triton.model import inputs
from longformer_triton.model.base import LongformerPreTrainedModel
from longformer_triton.model.config import LongformerConfig
from longformer_triton.model.longformer import LongformerModel
from longformer_triton.model.outputs import LongformerMultipleChoiceModelOutput


def _one_by_one(states: Tensor | None) -> Tensor | None:
    """(batch, num_choices, ...) -> (batch * num_choices, ...).

    By way of one axis: merging two takes the smaller stride, which torch 2.11 cannot tell when it exports for any length.
    """
    return None if states is None else states.flatten().unflatten(0, (states.shape[0] * states.shape[1], *states.shape[2:]))


class LongformerForMultipleChoice(LongformerPreTrainedModel):
    """Longformer that picks one of several texts, each a context with one choice.

    What follows the first pair of separators is global if no mask says otherwise
    (:mod:`longformer_triton.heads.global_tokens`).

    Example:
        >>> import torch
        >>> from longformer_triton import LongformerConfig, LongformerForMultipleChoice
        >>> sizes = dict(vocab_size=100, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
        >>> model = LongformerForMultipleChoice(LongformerConfig(**sizes)).eval()
        >>> input_ids = torch.randint(3, 100, (2, 4, 300))  # two questions of four choices
        >>> input_ids[..., [250, 251, 299]] = 2  # separators
        >>> model(input_ids, labels=torch.tensor([3, 0])).logits.shape
        torch.Size([2, 4])
    """

    def __init__(self, config: LongformerConfig) -> None:
        super().__init__(config)
        self.longformer = LongformerModel(config)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.classifier = nn.Linear(config.hidden_size, 1)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        global_attention_mask: Tensor | None = None,
        head_mask: Tensor | None = None,
        labels: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> LongformerMultipleChoiceModelOutput | tuple[object, ...]:
        """Score the choices of each question.

        Args:
            input_ids, token_type_ids, attention_mask, global_attention_mask, position_ids: (batch, num_choices, seq_len).
            inputs_embeds: (batch, num_choices, seq_len, hidden_size); nothing is global then unless a mask says so.
            labels: (batch,) of integers below num_choices. Other arguments as :meth:`LongformerModel.forward`.

        Returns:
            :class:`LongformerMultipleChoiceModelOutput`, or its tuple; hidden states and maps have batch * num_choices rows.

        Raises:
            ValueError: a text has no separator and no mask was given.
            ValueError, TypeError: as :meth:`LongformerModel.forward`.
        """
        name, given = ("input_ids", input_ids) if input_ids is not None else ("inputs_embeds", inputs_embeds)
        if given is not None:
            inputs.tensor(name, given)
        if given is None or given.dim() != (3 if given is input_ids else 4):
            got = "neither input_ids nor inputs_embeds" if given is None else f"shape {tuple(given.shape)}"
            raise ValueError(
                f"input_ids: got {got}, expected (batch, num_choices, seq_len), or inputs_embeds with one dimension more."
            )
        for name, value in (
            ("token_type_ids", token_type_ids), ("attention_mask", attention_mask), ("position_ids", position_ids),
            ("global_attention_mask", global_attention_mask),
        ):  # fmt: skip
            if value is None:
                continue
            inputs.tensor(name, value)
            if value.shape != given.shape[:3]:
                raise ValueError(
                    f"{name}: got shape {tuple(value.shape)}, expected {tuple(given.shape[:3])}, that of the input."
                )
        flat_ids, flat_mask = _one_by_one(input_ids), _one_by_one(attention_mask)
        flat_global = _one_by_one(global_attention_mask)
        if flat_global is None and flat_ids is not None:
            flat_global = after_first_separators(flat_ids, self.config.sep_token_id, flat_mask)
        elif flat_global is None and not torch.compiler.is_compiling():
            tell_nothing_is_global("the choice begins")
        encoded = self.longformer(
            flat_ids,
            attention_mask=flat_mask,
            global_attention_mask=flat_global,
            head_mask=head_mask,
            token_type_ids=_one_by_one(token_type_ids),
            position_ids=_one_by_one(position_ids),
            inputs_embeds=_one_by_one(inputs_embeds),
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
        )
        logits = self.classifier(self.dropout(encoded.pooler_output)).view(given.shape[0], given.shape[1])
        loss = None
        if labels is not None:
            targets = inputs.classes("labels", labels, logits.shape[:1], logits.shape[1]).to(logits.device)
            loss = cross_entropy(logits, targets)
        output = LongformerMultipleChoiceModelOutput(
            loss, logits, encoded.hidden_states, encoded.attentions, encoded.global_attentions
        )
        return self._returned(output, return_dict)
