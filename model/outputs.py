"""What models return: fields by attribute, key and index, or as a tuple. The layout of attention maps is documented here once.

``hidden_states`` holds num_hidden_layers + 1 tensors (batch, seq_len, hidden_size): the embeddings, then each layer's output.

``attentions`` holds one tensor a layer, (batch, heads, seq_len, x + attention_window + 1), where x is the most global tokens
of any text: the probabilities, before dropout, with which each token attends to the global tokens (first x columns, in the
order of their positions) and to its window (the token itself at column x + attention_window / 2). A window column on a global
token is 0, since its probability stands in the first x columns; the rows of global tokens are 0, since theirs stand in
``global_attentions``; columns beyond a text's own global tokens are 0. Without any global token x is 0; where
config.max_globals is set, x is that number.

``global_attentions`` holds one tensor a layer, (batch, heads, seq_len, x): how much each global token (last dimension) attends
to each token; None without any global token, though a compiled graph, which cannot know, gives x = 0 there. Both have the
length of the input.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor

_Output = TypeVar("_Output", bound="ModelOutput")


class ModelOutput(dict[str, Any]):
    """A dataclass that is also a dict of its fields that are not None, in order, readable by position and by slice.

    A dict and not merely a mapping, because that is what data-parallel gathering and training loops look for.
    """

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        torch.utils._pytree.register_pytree_node(
            cls,
            lambda output: (list(output.values()), list(output)),
            cls._rebuilt,
            serialized_type_name=f"{cls.__module__}.{cls.__qualname__}",
            flatten_with_keys_fn=lambda output: (
                [(torch.utils._pytree.MappingKey(name), value) for name, value in output.items()],
                list(output),
            ),
        )

    @classmethod
    def _rebuilt(cls: type[_Output], values: Iterable[Any], names: Any) -> _Output:
        """From the leaves of a pytree, which need not be tensors."""
        output = cls()
        for name, value in zip(names, values, strict=True):
            output[name] = value
        return output

    def __post_init__(self) -> None:
        names = [field.name for field in dataclasses.fields(self)]  # type: ignore[arg-type]
        content = getattr(self, names[0])
        # Libraries that map a function over a dict build the result as type(output)({...}), or from pairs.
        if content is not None and not isinstance(content, (Tensor, tuple)):
            setattr(self, names[0], None)
            for name, value in dict(content).items():
                setattr(self, name, value)
        for name in names:
            value = getattr(self, name)
            if value is not None:
                super().__setitem__(name, value)

    def to_tuple(self) -> tuple[Any, ...]:
        """The fields that are not None, in order."""
        return tuple(self.values())

    def __getitem__(self, key: Any) -> Any:
        return super().__getitem__(key) if isinstance(key, str) else self.to_tuple()[key]

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, value)
        super().__setattr__(key, value)

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name in self:
            super().__setitem__(name, value)


@dataclasses.dataclass(eq=False)
class LongformerBaseModelOutput(ModelOutput):
    """What the encoder returns.

    Attributes:
        last_hidden_state: (batch, seq_len, hidden_size), the last layer's output.
        hidden_states, attentions, global_attentions: as :mod:`longformer_triton.model.outputs` says; None unless asked for.
    """

    last_hidden_state: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    global_attentions: tuple[Tensor, ...] | None = None


@dataclasses.dataclass(eq=False)
class LongformerBaseModelOutputWithPooling(ModelOutput):
    """What LongformerModel returns.

    Attributes:
        last_hidden_state: (batch, seq_len, hidden_size), the last layer's output.
        pooler_output: (batch, hidden_size), the first token through a dense layer and tanh; None without a pooling layer.
        hidden_states, attentions, global_attentions: as :mod:`longformer_triton.model.outputs` says; None unless asked for.
    """

    last_hidden_state: Tensor | None = None
    pooler_output: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    global_attentions: tuple[Tensor, ...] | None = None


@dataclasses.dataclass(eq=False)
class LongformerMaskedLMOutput(ModelOutput):
    """What LongformerForMaskedLM returns.

    Attributes:
        loss: shape (), cross-entropy of the labelled tokens; None without labels.
        logits: (batch, seq_len, vocab_size), before softmax.
        hidden_states, attentions, global_attentions: as :mod:`longformer_triton.model.outputs` says; None unless asked for.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    global_attentions: tuple[Tensor, ...] | None = None


@dataclasses.dataclass(eq=False)
class LongformerQuestionAnsweringModelOutput(ModelOutput):
    """What LongformerForQuestionAnswering returns.

    Attributes:
        loss: shape (), the mean of the two positions' cross-entropies; None without positions.
        start_logits: (batch, seq_len), before softmax.
        end_logits: (batch, seq_len), before softmax.
        hidden_states, attentions, global_attentions: as :mod:`longformer_triton.model.outputs` says; None unless asked for.
    """

    loss: Tensor | None = None
    start_logits: Tensor | None = None
    end_logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    global_attentions: tuple[Tensor, ...] | None = None


@dataclasses.dataclass(eq=False)
class LongformerSequenceClassifierOutput(ModelOutput):
    """What LongformerForSequenceClassification returns.

    Attributes:
        loss: shape (), of the problem type; None without labels.
        logits: (batch, num_labels), before softmax or sigmoid, or the regressed values.
        hidden_states, attentions, global_attentions: as :mod:`longformer_triton.model.outputs` says; None unless asked for.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    global_attentions: tuple[Tensor, ...] | None = None


@dataclasses.dataclass(eq=False)
class LongformerMultipleChoiceModelOutput(ModelOutput):
    """What LongformerForMultipleChoice returns.

    Attributes:
        loss: shape (), cross-entropy over the choices; None without labels.
        logits: (batch, num_choices), before softmax.
        hidden_states, attentions, global_attentions: as :mod:`longformer_triton.model.outputs` says; None unless asked for.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    global_attentions: tuple[Tensor, ...] | None = None


@dataclasses.dataclass(eq=False)
class LongformerTokenClassifierOutput(ModelOutput):
    """What LongformerForTokenClassification returns.

    Attributes:
        loss: shape (), cross-entropy of the labelled tokens; None without labels.
        logits: (batch, seq_len, num_labels), before softmax.
        hidden_states, attentions, global_attentions: as :mod:`longformer_triton.model.outputs` says; None unless asked for.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    global_attentions: tuple[Tensor, ...] | None = None
