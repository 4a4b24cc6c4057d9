"""Small Longformers, ours and transformers' with the same weights, and batches of texts for them."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

import longformer_triton

MODELS = (
    "LongformerModel",
    "LongformerForMaskedLM",
    "LongformerForSequenceClassification",
    "LongformerForMultipleChoice",
    "LongformerForTokenClassification",
    "LongformerForQuestionAnswering",
)
VOCABULARY, SEPARATOR, PADDING = 40, 2, 1
# Large weights make scores differ, so that a wrong mask shows; without dropout there is one right answer.
TINY: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 20,
    "max_position_embeddings": 120,
    "attention_window": [4, 8],
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "initializer_range": 0.3,
    "layer_norm_eps": 1e-5,
}


def ours(name: str, **options: Any) -> Any:
    """A model of this package in evaluation mode, tiny but for ``options``."""
    return getattr(longformer_triton, name)(longformer_triton.LongformerConfig(**{**TINY, **options})).eval()


def theirs(name: str, **options: Any) -> Any:
    """The same of transformers, with weights of its own."""
    import transformers

    return getattr(transformers, name)(transformers.LongformerConfig(**{**TINY, **options})).eval()


def pair(name: str, **options: Any) -> tuple[Any, Any]:
    """(ours, transformers') with the same weights; the state loads strictly, so that both have the same names."""
    mine, original = ours(name, **options), theirs(name, **options)
    mine.load_state_dict(original.state_dict())
    return mine, original


def filled(model: Any) -> Any:
    """``model`` with random biases and norms too, which begin alike in every model: what was left out or swapped shows."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    return model


@dataclasses.dataclass(frozen=True)
class Texts:
    """A batch of random texts; everything random follows from ``seed``."""

    batch: int = 2
    seq_len: int = 21
    padding: str = "right"
    globals_: str = "first"
    seed: int = 0
    extras: tuple[str, ...] = ()
    choices: int = 0

    def inputs(self, model: str) -> dict[str, Tensor]:
        """Keyword arguments of a forward pass, labels included."""
        generator = torch.Generator().manual_seed(self.seed)

        def draw(high: int, *shape: int) -> Tensor:
            return torch.randint(0, high, shape, generator=generator)

        rows = self.batch * max(1, self.choices)
        ids = draw(VOCABULARY - 3, rows, self.seq_len) + 3
        real = self._real(generator, rows)
        inputs = {"attention_mask": real}
        needs_separators = model.endswith(("Choice", "Answering"))
        if needs_separators:
            # Three in each text, of which transformers takes the first.
            for row in range(rows):
                places = real[row].nonzero().flatten()
                ids[row, places[torch.tensor([1, 2, -1])]] = SEPARATOR
        inputs["input_ids"] = torch.where(real == 1, ids, PADDING)
        if self.globals_ != "by_task":
            inputs["global_attention_mask"] = self._marked(generator, real)
        if "token_types" in self.extras:
            inputs["token_type_ids"] = draw(2, rows, self.seq_len)
        if "positions" in self.extras:
            inputs["position_ids"] = draw(100, rows, self.seq_len) + 2
        if "embeds" in self.extras:
            inputs["inputs_embeds"] = torch.randn(rows, self.seq_len, TINY["hidden_size"], generator=generator)
            del inputs["input_ids"]
        if self.choices:
            inputs = {key: value.unflatten(0, (self.batch, self.choices)) for key, value in inputs.items()}
        if "head_mask" in self.extras:
            inputs["head_mask"] = torch.rand(TINY["num_hidden_layers"], TINY["num_attention_heads"], generator=generator)
        return inputs | self._labels(model, draw)

    def _real(self, generator: torch.Generator, rows: int) -> Tensor:
        real = torch.ones((rows, self.seq_len), dtype=torch.int64)
        # Three tokens at least: two separators and one more.
        lengths = torch.randint(min(4, self.seq_len), self.seq_len + 1, (rows,), generator=generator)
        for row, length in enumerate(lengths.tolist()):
            if self.padding == "right":
                real[row, length:] = 0
            elif self.padding == "left":
                real[row, : self.seq_len - length] = 0
            elif self.padding == "holes":
                real[row, 4:] = torch.randint(0, 2, (max(0, self.seq_len - 4),), generator=generator)
        return real

    def _marked(self, generator: torch.Generator, real: Tensor) -> Tensor:
        marked = torch.zeros_like(real)
        if self.globals_ == "first":
            marked[:, 0] = 1
        elif self.globals_ == "all":
            marked[:] = 1
        elif self.globals_ == "some":
            marked = (torch.rand(real.shape, generator=generator) < 0.2).long()
        return marked * real

    def _labels(self, model: str, draw: Any) -> dict[str, Tensor]:
        if model.endswith("Answering"):
            # Two positions past the end are ignored; if all were, the loss would be the mean of nothing.
            places = {name: draw(self.seq_len + 2, self.batch) for name in ("start_positions", "end_positions")}
            return {name: place.index_fill(0, torch.tensor(0), self.seq_len // 2) for name, place in places.items()}
        shapes = {
            "LongformerForMaskedLM": (VOCABULARY, self.batch, self.seq_len),
            "LongformerForSequenceClassification": (2, self.batch),
            "LongformerForMultipleChoice": (max(1, self.choices), self.batch),
            "LongformerForTokenClassification": (2, self.batch, self.seq_len),
        }
        return {"labels": draw(*shapes[model])} if model in shapes else {}


@st.composite
def texts(draw: st.DrawFn, model: str) -> Texts:
    """Batches that both implementations can compute."""
    extras = draw(st.sets(st.sampled_from(["token_types", "positions", "head_mask", "embeds"]), max_size=2))
    kinds = ["first", "none", "some", "all"]
    by_task = model.endswith(("Classification", "Choice", "Answering")) and "embeds" not in extras
    return Texts(
        batch=draw(st.integers(1, 3)),
        seq_len=draw(st.integers(4, 40)),
        padding=draw(st.sampled_from(["none", "right", "left", "holes"])),
        globals_=draw(st.sampled_from([*kinds, "by_task"] if by_task else kinds)),
        seed=draw(st.integers(0, 2**16)),
        extras=tuple(sorted(extras)),
        choices=draw(st.integers(1, 3)) if model.endswith("Choice") else 0,
    )
