"""Tasks whose answers are places in a text: an answer to a question, and words with labels."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from longformer_triton.heads.pipelines import Pipeline, Row, fields
from longformer_triton.model.settings import check_at_least

AGGREGATIONS = ("none", "first", "average", "max")


def best_spans(start_logits: Tensor, end_logits: Tensor, most_tokens: int, count: int) -> list[tuple[float, int, int]]:
    """The ``count`` pairs (start, end) of tokens, start <= end < start + most_tokens, with the greatest sums of logits.

    Looking at the best start and the best end separately would find pairs that are no span. (seq_len,) each; minus infinity
    where nothing may begin or end. Returns (sum, start, end), best first.
    """
    seq_len = start_logits.shape[0]
    most_tokens = min(most_tokens, seq_len)
    # [start, tokens after it]
    ends = torch.nn.functional.pad(end_logits, (0, most_tokens - 1), value=-torch.inf).unfold(0, most_tokens, 1)
    sums = (start_logits[:, None] + ends).flatten()
    values, indices = sums.topk(min(count, sums.shape[0]))
    found = zip(values.tolist(), indices.tolist(), strict=True)
    return [
        (value, index // most_tokens, index // most_tokens + index % most_tokens)
        for value, index in found
        if value > -torch.inf
    ]


class QuestionAnswering(Pipeline):
    """Where in a text the answer to a question stands."""

    task, model_class, can_split = "question-answering", "LongformerForQuestionAnswering", True

    @staticmethod
    def expected() -> str:
        """One input, in words."""
        return "{'question': a text, 'context': a text}"

    def __call__(
        self,
        inputs: Any = None,
        *,
        question: str | None = None,
        context: str | None = None,
        progress: bool | None = None,
        **options: Any,
    ) -> Any:
        """Do the task.

        Args:
            inputs, progress, options: as for every pipeline.
            question, context: one input in two arguments, as transformers takes it too; then there are no ``inputs``.

        Returns:
            The result of one input, a list of results, or a generator of them.

        Raises:
            ValueError, TypeError: as for every pipeline; or there are ``inputs`` and a question or context beside them.
        """
        apart = {name: text for name, text in (("question", question), ("context", context)) if text is not None}
        if apart and inputs is not None:
            raise TypeError(f"inputs: got some beside {' and '.join(apart)}, expected either, and each input with both in it.")
        return super().__call__(apart or inputs, progress=progress, **options)

    def options(self, *, top_k: int = 1, max_answer_tokens: int = 30, null_answer: bool = False) -> dict[str, Any]:
        """What a call may say besides its inputs.

        Args:
            top_k: how many answers.
            max_answer_tokens: the longest answer.
            null_answer: whether "no answer" (an empty text at 0) competes, with the weight the model gives to the first token.

        Raises:
            ValueError, TypeError: one does not fit.
        """
        check_at_least("top_k", top_k, 1)
        check_at_least("max_answer_tokens", max_answer_tokens, 1)
        return {"top_k": top_k, "max_answer_tokens": max_answer_tokens, "null_answer": null_answer}

    def checked(self, item: Any, where: str) -> dict[str, Any]:
        """A question and its context."""
        return fields(item, where, {"question": str, "context": str}, self.expected())

    def rows(self, item: Mapping[str, Any], where: str) -> list[Row]:
        """A row for each window of the context, each behind the whole question.

        Raises:
            ValueError: there is nothing in the context.
        """
        if not item["context"].strip():
            raise ValueError(f"{where}: got an empty context, expected a text to look for the answer in.")
        return self.encode(where, item["question"], item["context"], whole=(0, "'question'"))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Iterable[Tensor]:
        """(2, tokens) logits for each row: beginning and end; the question is global."""
        output = self.model(input_ids, attention_mask=attention_mask)
        both = torch.stack((output.start_logits, output.end_logits), 1)
        return [logits[:, :length] for logits, length in zip(both, attention_mask.sum(1).tolist(), strict=True)]

    def result(
        self,
        item: Mapping[str, Any],
        rows: Sequence[Row],
        outputs: Sequence[Tensor],
        *,
        top_k: int,
        max_answer_tokens: int,
        null_answer: bool,
    ) -> Any:
        """{"score", "answer", "start", "end"}, or a list of ``top_k`` of them; start and end are characters of the context.

        The score is the probability of the span among all beginnings and ends in all windows.
        """
        legal = [self._only_context(row, output) for row, output in zip(rows, outputs, strict=True)]
        nulls = [float(output[:, 0].sum()) for output in outputs]
        total = sum(self._log_total(legal, outputs, side, null_answer) for side in (0, 1))
        found: dict[tuple[int, int], float] = {}
        for row, logits in zip(rows, legal, strict=True):
            for value, first, last in best_spans(logits[0], logits[1], max_answer_tokens, top_k):
                place = (row.offsets[first][0], row.offsets[last][1])
                # The same words in two windows: the better one counts.
                found[place] = max(found.get(place, -torch.inf), value)
        if null_answer:
            # An answer in any window is an answer, so the window that doubts it least speaks for none.
            found[0, 0] = min(nulls)
        ranked = sorted(found.items(), key=lambda pair: -pair[1])[:top_k]
        answers = [
            {
                "score": math.exp(value - total),
                "answer": item["context"][start:end],
                "start": start,
                "end": end,
            }
            for (start, end), value in ranked
        ]
        return answers[0] if top_k == 1 else answers

    @staticmethod
    def _only_context(row: Row, logits: Tensor) -> Tensor:
        """(2, tokens) with minus infinity wherever no answer may begin or end: in the question, at special tokens."""
        outside = torch.tensor([part != 1 for part in row.part], device="cpu")
        return logits.masked_fill(outside, -torch.inf)

    @staticmethod
    def _log_total(legal: Sequence[Tensor], outputs: Sequence[Tensor], side: int, null_answer: bool) -> float:
        """The logarithm of the sum of all weights of beginnings (side 0) or ends (side 1)."""
        weights = [logits[side] for logits in legal]
        if null_answer:
            weights += [output[side, :1] for output in outputs]
        return float(torch.cat(weights).logsumexp(0))


class TokenClassification(Pipeline):
    """Words with labels, such as names."""

    task, model_class, can_split = "token-classification", "LongformerForTokenClassification", True

    @staticmethod
    def expected() -> str:
        """One input, in words."""
        return "a text"

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Iterable[Tensor]:
        """(tokens, num_labels) probabilities for each row."""
        probabilities = self.model(input_ids, attention_mask=attention_mask).logits.float().softmax(-1)
        return [row[:length] for row, length in zip(probabilities, attention_mask.sum(1).tolist(), strict=True)]

    def options(self, *, aggregation: str = "first", ignore_labels: Sequence[str] = ("O",)) -> dict[str, Any]:
        """What a call may say besides its inputs.

        Args:
            aggregation: "none": every token. "first", "average", "max": words, labelled by their first token, by the mean of
                their tokens' probabilities, or by the token that is surest; neighbours with the same label, B- and I- put
                aside, are one.
            ignore_labels: labels to leave out.

        Raises:
            ValueError: there is no such aggregation.
        """
        if aggregation not in AGGREGATIONS:
            raise ValueError(f"aggregation: got {aggregation!r}, expected one of {', '.join(AGGREGATIONS)}.")
        return {"aggregation": aggregation, "ignore_labels": ignore_labels}

    def result(
        self,
        item: str,
        rows: Sequence[Row],
        outputs: Sequence[Tensor],
        *,
        aggregation: str,
        ignore_labels: Sequence[str],
    ) -> list[dict[str, Any]]:
        """Tokens, or words, with their labels, in the order of the text.

        Each is {"label", "score", "word", "start", "end"}; without aggregation with an "index" too, the token's number in the
        whole text, special tokens before it counted.
        """
        tokens = list(_merged(rows, outputs))
        labels = self.model.config.id2label
        if aggregation == "none":
            before = next((place for place, part in enumerate(rows[0].part) if part is not None), 0)
            found = [
                {
                    "label": labels[int(scores.argmax())], "score": float(scores.max()), "word": item[start:end],
                    "start": start, "end": end, "index": index,
                }
                for index, (_, (start, end), scores) in enumerate(tokens, start=before)
            ]  # fmt: skip
            return [entry for entry in found if entry["label"] not in ignore_labels]
        words = [_word(group, aggregation) for group in _grouped(tokens)]
        entities: list[dict[str, Any]] = []
        counts: list[int] = []
        previous = None
        for scores, start, end in words:
            # White space alone: where several stand together, the tokenizer makes words of them too.
            if not item[start:end].strip():
                continue
            label = labels[int(scores.argmax())]
            kind = label[2:] if label[:2] in ("B-", "I-") else label
            if label in ignore_labels:
                previous = None
                continue
            if kind == previous and not label.startswith("B-"):
                entities[-1]["end"] = end
                entities[-1]["score"] += float(scores.max())
                counts[-1] += 1
            else:
                entities.append({"label": kind, "score": float(scores.max()), "word": "", "start": start, "end": end})
                counts.append(1)
            previous = kind
        for entity, count in zip(entities, counts, strict=True):
            entity["score"] /= count
            entity["word"] = item[entity["start"] : entity["end"]]
        return entities


Token = tuple[int, tuple[int, int], Tensor]


def _merged(rows: Sequence[Row], outputs: Sequence[Tensor]) -> Iterator[Token]:
    """(word, characters, probabilities) of each token of the text, once: from the window where it has most text around it."""
    chosen: dict[tuple[int, int, int], tuple[int, Token]] = {}
    for row, output in zip(rows, outputs, strict=True):
        inside = [place for place, part in enumerate(row.part) if part is not None]
        for rank, place in enumerate(inside):
            around = min(rank, len(inside) - 1 - rank)
            characters, word = row.offsets[place], row.words[place]
            assert word is not None
            # A character of several tokens, an emoji of several bytes, has one stretch: its tokens are told apart by place.
            key = (*characters, _same_before(row, place))
            if key not in chosen or around > chosen[key][0]:
                chosen[key] = around, (word, characters, output[place])
    return (token for _, (_, token) in sorted(chosen.items(), key=lambda pair: pair[0]))


def _same_before(row: Row, place: int) -> int:
    """How many tokens right before this one stand for the same characters."""
    count = 0
    while place > count and row.offsets[place - count - 1] == row.offsets[place] and row.part[place - count - 1] is not None:
        count += 1
    return count


def _grouped(tokens: Sequence[Token]) -> Iterator[list[Token]]:
    """Tokens of one word together."""
    group: list[Token] = []
    for token in tokens:
        if group and token[0] != group[-1][0]:
            yield group
            group = []
        group.append(token)
    if group:
        yield group


def _word(tokens: Sequence[Token], aggregation: str) -> tuple[Tensor, int, int]:
    """(probabilities, first character, one past the last) of a word from those of its tokens."""
    scores = torch.stack([token[2] for token in tokens])
    if aggregation == "first":
        of_word = scores[0]
    elif aggregation == "average":
        of_word = scores.mean(0)
    else:
        of_word = scores[int(scores.max(1).values.argmax())]
    return of_word, tokens[0][1][0], tokens[-1][1][1]
