"""Tasks whose answer is about a text as a whole, or about its masked words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from longformer_triton.heads.global_tokens import first_token
from longformer_triton.heads.pipelines import Pipeline, Row, fields


class FillMask(Pipeline):
    """The likeliest words behind each mask token."""

    task, model_class = "fill-mask", "LongformerForMaskedLM"

    @staticmethod
    def expected() -> str:
        """One input, in words."""
        return "a text with the mask token, such as 'A <mask> text.'"

    def rows(self, item: str, where: str) -> list[Row]:
        """One row, in which something is masked.

        Raises:
            ValueError: nothing is.
        """
        rows = super().rows(item, where)
        if self._mask_id() not in rows[0].input_ids:
            raise ValueError(
                f"{where}got no {self.tokenizer.mask_token}, expected one at least in the first {self.longest} tokens."
            )
        return rows

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Iterable[Tensor]:
        """(masks, vocab_size) log-probabilities for each row: only masked tokens go through the decoder."""
        model: Any = self.model
        states = model.longformer(input_ids, attention_mask=attention_mask).last_hidden_state
        masked = input_ids.eq(self._mask_id())
        scores = model.lm_head(states[masked]).float().log_softmax(-1)
        return scores.split(masked.sum(1).tolist())

    def _mask_id(self) -> int:
        number = self.tokenizer.mask_token_id
        if number is None:
            raise ValueError("tokenizer: got one without a mask token, expected one to fill masks with.")
        return number

    def result(
        self, item: str, rows: Sequence[Row], outputs: Sequence[Tensor], *, top_k: int = 5, targets: Sequence[str] | None = None
    ) -> list[Any]:
        """For each mask a list of {"score", "token", "token_str", "sequence", "start", "end"}; of one mask, its list alone.

        Args:
            top_k: how many words.
            targets: choose among these words only; each has to be one token (with its leading space).
        """
        row, log_probabilities = rows[0], outputs[0]
        allowed = None if targets is None else torch.tensor([self._one_token(target) for target in targets])
        choice = log_probabilities if allowed is None else log_probabilities[:, allowed]
        values, indices = choice.topk(min(top_k, choice.shape[-1]))
        places = [place for place, token in enumerate(row.input_ids) if token == self._mask_id()]
        found = []
        for place, scores, numbers in zip(places, values.exp().tolist(), indices, strict=True):
            tokens = (numbers if allowed is None else allowed[numbers]).tolist()
            start, end = row.offsets[place]
            words = [self.tokenizer.decode([token]) for token in tokens]
            found.append([
                {
                    "score": score, "token": token, "token_str": word,
                    "sequence": item[:start] + _joined(item[:start], word) + item[end:], "start": start, "end": end,
                }
                for score, token, word in zip(scores, tokens, words, strict=True)
            ])  # fmt: skip
        return found[0] if len(found) == 1 else found

    def _one_token(self, target: str) -> int:
        ids = self.tokenizer.encode(target, add_special_tokens=False)
        if len(ids) != 1:
            raise ValueError(f"targets: got {target!r}, which is {len(ids)} tokens, expected words of one token each.")
        return ids[0]


def _joined(before: str, word: str) -> str:
    """A word as it reads after ``before``: a mask takes in the space in front of it, and so do most words."""
    return word.lstrip(" ") if not before or before[-1].isspace() else word


class TextClassification(Pipeline):
    """The label of a text, or of a pair."""

    task, model_class = "text-classification", "LongformerForSequenceClassification"

    @staticmethod
    def expected() -> str:
        """One input, in words."""
        return "a text, or {'text': ..., 'text_pair': ...}"

    def checked(self, item: Any, number: int) -> dict[str, Any]:
        """A text and its pair, or None."""
        if isinstance(item, str):
            return {"text": item, "text_pair": None}
        return {"text_pair": None, **fields(item, number, {"text": str}, self.expected())}

    def rows(self, item: Mapping[str, Any], where: str) -> list[Row]:
        """One row."""
        return self.encode(where, item["text"], item["text_pair"])

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Iterable[Tensor]:
        """(num_labels,) logits for each row; the first token is global."""
        return self.model(input_ids, attention_mask=attention_mask).logits

    def result(
        self, item: Any, rows: Sequence[Row], outputs: Sequence[Tensor], *, top_k: int | None = 1, function: str | None = None
    ) -> Any:
        """{"label", "score"}, or the ``top_k`` of them as a list (None: all).

        Args:
            function: "softmax", "sigmoid" or "none" (numbers as they are); None follows config.problem_type and the labels.
        """
        config = self.model.config
        if function is None:
            if config.problem_type == "regression":
                function = "none"
            else:
                several = config.problem_type == "multi_label_classification" or config.num_labels == 1
                function = "sigmoid" if several else "softmax"
        functions = {"softmax": lambda logits: logits.softmax(-1), "sigmoid": torch.sigmoid, "none": lambda logits: logits}
        if function not in functions:
            raise ValueError(f"function: got {function!r}, expected one of {', '.join(functions)}.")
        scores = functions[function](outputs[0])
        values, indices = scores.topk(len(scores) if top_k is None else min(top_k, len(scores)))
        labels = [
            {"label": config.id2label[number], "score": score}
            for score, number in zip(values.tolist(), indices.tolist(), strict=True)
        ]
        return labels[0] if top_k == 1 else labels


class MultipleChoice(Pipeline):
    """Which of several continuations fits a context."""

    task, model_class = "multiple-choice", "LongformerForMultipleChoice"

    @staticmethod
    def expected() -> str:
        """One input, in words."""
        return "{'context': a text, 'choices': a list of texts}, with a 'question' if there is one"

    def checked(self, item: Any, number: int) -> dict[str, Any]:
        """A context, choices, and a question or ""."""
        found = {"question": "", **fields(item, number, {"context": str, "choices": (list, tuple)}, self.expected())}
        if not found["choices"] or not all(isinstance(choice, str) for choice in found["choices"]):
            raise ValueError(f"input {number}: got {found['choices']!r} as choices, expected one text at least, all texts.")
        return found

    def rows(self, item: Mapping[str, Any], where: str) -> list[Row]:
        """A row for each choice: the context, then the question and the choice."""
        texts = [f"{item['question']} {choice}".strip() for choice in item["choices"]]
        return [self._one_choice(where, item["context"], text) for text in texts]

    def _one_choice(self, where: str, context: str, text: str) -> Row:
        return self.encode(where, context, text, "only_first")[0]

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Iterable[Tensor]:
        """(1,) logit for each row; what follows the context is global."""
        return self.model(input_ids[:, None], attention_mask=attention_mask[:, None]).logits

    def result(self, item: Mapping[str, Any], rows: Sequence[Row], outputs: Sequence[Tensor]) -> dict[str, Any]:
        """{"choice": its number, "text", "score", "scores": of all choices, summing to one}."""
        scores = torch.cat(list(outputs)).softmax(0)
        best = int(scores.argmax())
        return {"choice": best, "text": item["choices"][best], "score": float(scores[best]), "scores": scores.tolist()}


class Embedding(Pipeline):
    """A vector for a text."""

    task, model_class = "embedding", "LongformerModel"

    @staticmethod
    def expected() -> str:
        """One input, in words."""
        return "a text"

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Iterable[Tensor]:
        """(2, hidden_size) for each row: the mean over real tokens, and the first token, which is global."""
        states = self.model(
            input_ids, attention_mask=attention_mask, global_attention_mask=first_token(input_ids)
        ).last_hidden_state
        real = attention_mask[..., None].to(states.dtype)
        mean = (states * real).sum(1) / real.sum(1)
        return torch.stack((mean, states[:, 0]), 1)

    def result(self, item: str, rows: Sequence[Row], outputs: Sequence[Tensor]) -> dict[str, list[float]]:
        """{"mean": ..., "cls": ...}, each a list of hidden_size numbers."""
        mean, cls = outputs[0].tolist()
        return {"mean": mean, "cls": cls}
