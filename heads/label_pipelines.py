"""Tasks whose answer is about a text as a whole, or about its masked words."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from longformer_triton.heads.global_tokens import first_token
from longformer_triton.heads.pipelines import Pipeline, Row, check_unicode, fields
from longformer_triton.kernels.precision import to_accumulation_dtype
from longformer_triton.model.settings import check_at_least


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
                f"{where}: got no {self.tokenizer.mask_token}, expected one at least in the first {self.longest} tokens."
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

    def options(self, *, top_k: int = 5, targets: str | Sequence[str] | None = None) -> dict[str, Any]:
        """What a call may say besides its inputs.

        Args:
            top_k: how many words.
            targets: choose among these words only, or score this one; each has to be one token (with its leading space).

        Raises:
            ValueError, TypeError: one does not fit.
        """
        check_at_least("top_k", top_k, 1)
        if targets is None:
            return {"top_k": top_k, "allowed": None}
        words = [targets] if isinstance(targets, str) else targets
        if not isinstance(words, Sequence) or not words or not all(isinstance(word, str) for word in words):
            raise ValueError(f"targets: got {targets!r}, expected a word, a list of one at least, or None for all there are.")
        return {"top_k": top_k, "allowed": torch.tensor([self._one_token(word) for word in words], device="cpu")}

    def result(
        self, item: str, rows: Sequence[Row], outputs: Sequence[Tensor], *, top_k: int, allowed: Tensor | None
    ) -> list[Any]:
        """For each mask a list of {"score", "token", "token_str", "sequence", "start", "end"}; of one mask, its list alone.

        "sequence" is the text with the word in the place of the mask and of the spaces that the mask takes in.
        """
        row, log_probabilities = rows[0], outputs[0]
        choice = log_probabilities if allowed is None else log_probabilities[:, allowed]
        values, indices = choice.topk(min(top_k, choice.shape[-1]))
        places = [place for place, token in enumerate(row.input_ids) if token == self._mask_id()]
        found = []
        for place, scores, numbers in zip(places, values.exp().tolist(), indices, strict=True):
            tokens = (numbers if allowed is None else allowed[numbers]).tolist()
            start, end = row.offsets[place]
            before = item[:start].rstrip() if self._mask_takes_spaces() else item[:start]
            words = [self.tokenizer.decode([token]) for token in tokens]
            found.append([
                {
                    "score": score, "token": token, "token_str": word,
                    "sequence": before + word + item[end:], "start": start, "end": end,
                }
                for score, token, word in zip(scores, tokens, words, strict=True)
            ])  # fmt: skip
        return found[0] if len(found) == 1 else found

    def _mask_takes_spaces(self) -> bool:
        """Whether the spaces before a mask belong to it, as with RoBERTa's: the word brings its own, or joins what is there."""
        mask = self.tokenizer.added_tokens_decoder.get(self._mask_id())
        return mask is not None and mask.lstrip

    def _one_token(self, target: str) -> int:
        ids = self.tokenizer.encode(target, add_special_tokens=False)
        if len(ids) != 1:
            raise ValueError(f"targets: got {target!r}, which is {len(ids)} tokens, expected words of one token each.")
        return ids[0]


class TextClassification(Pipeline):
    """The label of a text, or of a pair."""

    task, model_class = "text-classification", "LongformerForSequenceClassification"

    @staticmethod
    def expected() -> str:
        """One input, in words."""
        return "a text, or {'text': ..., 'text_pair': ...}"

    def checked(self, item: Any, where: str) -> dict[str, Any]:
        """A text and its pair, or None."""
        given = {"text": item} if isinstance(item, str) else item
        return fields(given, where, {"text": str, "text_pair": (str, type(None))}, self.expected(), text_pair=None)

    def rows(self, item: Mapping[str, Any], where: str) -> list[Row]:
        """One row."""
        return self.encode(where, item["text"], item["text_pair"])

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Iterable[Tensor]:
        """(num_labels,) logits for each row; the first token is global."""
        return self.model(input_ids, attention_mask=attention_mask).logits

    def options(self, *, top_k: int | None = 1, function: str | None = None) -> dict[str, Any]:
        """What a call may say besides its inputs.

        Args:
            top_k: how many labels; None: all.
            function: "softmax", "sigmoid" or "none" (numbers as they are); None follows config.problem_type and the labels.

        Raises:
            ValueError, TypeError: one does not fit.
        """
        if top_k is not None:
            check_at_least("top_k", top_k, 1)
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
        return {"top_k": top_k, "score": functions[function]}

    def result(
        self,
        item: Any,
        rows: Sequence[Row],
        outputs: Sequence[Tensor],
        *,
        top_k: int | None,
        score: Callable[[Tensor], Tensor],
    ) -> Any:
        """{"label", "score"}, or the ``top_k`` best of them as a list."""
        scores = score(outputs[0])
        values, indices = scores.topk(len(scores) if top_k is None else min(top_k, len(scores)))
        labels = [
            {"label": self.model.config.id2label[number], "score": score}
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

    def options(self) -> dict[str, Any]:
        """There are none."""
        return {}

    def checked(self, item: Any, where: str) -> dict[str, Any]:
        """A context, choices, and a question or ""."""
        found = fields(item, where, {"context": str, "choices": (list, tuple), "question": str}, self.expected(), question="")
        if not found["choices"] or not all(isinstance(choice, str) for choice in found["choices"]):
            raise ValueError(f"{where}: got {found['choices']!r} as choices, expected one text at least, all texts.")
        for number, choice in enumerate(found["choices"]):
            check_unicode(choice, where, f"choice {number}")
        return found

    def rows(self, item: Mapping[str, Any], where: str) -> list[Row]:
        """A row for each choice: the context, then the question and the choice."""
        texts = [f"{item['question']} {choice}".strip() for choice in item["choices"]]
        return [
            self.encode(where, item["context"], text, whole=(1, f"'question' and choice {number}"))[0]
            for number, text in enumerate(texts)
        ]

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

    def options(self) -> dict[str, Any]:
        """There are none."""
        return {}

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Iterable[Tensor]:
        """(2, hidden_size) for each row: the mean over real tokens, and the first token, which is global."""
        states = self.model(
            input_ids, attention_mask=attention_mask, global_attention_mask=first_token(input_ids)
        ).last_hidden_state
        states = to_accumulation_dtype(states)  # a sum over a long text is beyond float16
        real = attention_mask[..., None].to(states.dtype)
        mean = (states * real).sum(1) / real.sum(1)
        return torch.stack((mean, states[:, 0]), 1)

    def result(self, item: str, rows: Sequence[Row], outputs: Sequence[Tensor]) -> dict[str, list[float]]:
        """{"mean": ..., "cls": ...}, each a list of hidden_size numbers."""
        mean, cls = outputs[0].tolist()
        return {"mean": mean, "cls": cls}
