"""From text to answer: ``pipeline(task, model)`` gives a function of texts, as transformers' does.

Whatever comes in, a text, a list or a stream, rows of similar length run together, and results come out in the order of the
input.
"""

from __future__ import annotations

import abc
import dataclasses
import importlib
import inspect
import itertools
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from longformer_triton.kernels.backends import present
from longformer_triton.model.base import LongformerPreTrainedModel
from longformer_triton.model.settings import check_at_least, dtype_of
from longformer_triton.tokenization import LongformerTokenizer
from longformer_triton.tokenization.options import lone_surrogate, surrogate_error

TOO_LONG = ("split", "truncate", "error")
_SHOW_PROGRESS_FROM = 32
# Rows that are sorted by length together: enough to find like lengths, few enough to hold.
_BATCHES_AT_ONCE = 32


@dataclasses.dataclass
class Row:
    """What goes through the model once: a text, a pair, or one window of them.

    Attributes:
        input_ids: one id for each token.
        offsets: (first character, one past the last) of each token in its text; (0, 0) for special tokens.
        part: for each token 0 or 1, which text of a pair it is from; None for special tokens.
        words: for each token the number of its word; None for special tokens.
    """

    input_ids: list[int]
    offsets: list[tuple[int, int]]
    part: list[int | None]
    words: list[int | None]


class Pipeline(abc.ABC):
    """A task, done for texts by a model and its tokenizer.

    Args:
        model: with the task's head, in evaluation mode afterwards.
        tokenizer: the model's.
        batch_size: rows that run together.
        too_long: what to do with texts of more tokens than the model has positions for: "split" into overlapping windows and
            merge, "truncate", or "error".
        stride: tokens that neighbouring windows share, at most a quarter of a window.

    Raises:
        ValueError, TypeError: ``too_long`` is nothing that the task can do, or another argument does not fit.
    """

    task: ClassVar[str]
    model_class: ClassVar[str]
    can_split: ClassVar[bool] = False

    def __init__(
        self,
        model: LongformerPreTrainedModel,
        tokenizer: LongformerTokenizer,
        *,
        batch_size: int = 8,
        too_long: str | None = None,
        stride: int = 128,
    ) -> None:
        allowed = TOO_LONG if self.can_split else TOO_LONG[1:]
        self.too_long = too_long or ("split" if self.can_split else "error")
        if self.too_long not in allowed:
            raise ValueError(f"too_long: got {too_long!r}, expected one of {', '.join(allowed)} for {self.task}.")
        check_at_least("batch_size", batch_size, 1)
        check_at_least("stride", stride, 0)
        self.model, self.tokenizer = model.eval(), tokenizer
        self.batch_size, self.stride = batch_size, stride

    @property
    def longest(self) -> int:
        """The most tokens, special ones included, that one row may have."""
        return min(self.model.base_model.embeddings.longest, self.tokenizer.model_max_length)

    def __call__(self, inputs: Any, *, progress: bool | None = None, **options: Any) -> Any:
        """Do the task.

        Args:
            inputs: one input of the task, a list of them, or an iterator, which is read as results are asked for.
            progress: whether to show a bar; None: for lists of more than a few, on a terminal.
            options: of the task, as its method ``options`` has them.

        Returns:
            The result of one input, a list of results, or a generator of them.

        Raises:
            ValueError, TypeError: an option does not fit, before any input is read; or an input is none of the task's, and the
                message says which.
        """
        if self._is_one(inputs):
            return next(self.stream([inputs], **options))
        if isinstance(inputs, Sequence):
            results = self.stream(inputs, **options)
            return list(_with_progress(results, len(inputs), self.task, progress))
        if isinstance(inputs, Iterable):
            return self.stream(inputs, **options)
        raise TypeError(f"inputs: got {type(inputs).__name__}, expected {self.expected()}, a list of those, or an iterator.")

    def stream(self, inputs: Iterable[Any], **options: Any) -> Generator[Any, None, None]:
        """Results one by one, in the order of ``inputs``, which are read as far as is needed."""
        known = list(inspect.signature(self.options).parameters)
        unknown = [name for name in options if name not in known]
        if unknown:
            raise TypeError(
                f"{unknown[0]}: got an option that {self.task} does not have, expected {', '.join(known) or 'none'}."
            )
        return self._results(inputs, self.options(**options))

    def _results(self, inputs: Iterable[Any], options: Mapping[str, Any]) -> Generator[Any, None, None]:
        numbered = enumerate(inputs)
        while chunk := list(itertools.islice(numbered, self.batch_size * _BATCHES_AT_ONCE)):
            items = [self.checked(item, named(number)) for number, item in chunk]
            rows = [self.rows(item, named(number)) for item, (number, _) in zip(items, chunk, strict=True)]
            outputs = self._run(list(itertools.chain.from_iterable(rows)))
            for item, of_item in zip(items, rows, strict=True):
                yield self.result(item, of_item, list(itertools.islice(outputs, len(of_item))), **options)

    def _run(self, rows: Sequence[Row]) -> Iterator[Tensor]:
        """What the model says of each row, in the order of ``rows``; those of like length run together, long ones first."""
        order = sorted(range(len(rows)), key=lambda number: -len(rows[number].input_ids))
        outputs: dict[int, Tensor] = {}
        for start in range(0, len(order), self.batch_size):
            numbers = order[start : start + self.batch_size]
            with torch.inference_mode():
                said = self.forward(*self._padded([rows[number] for number in numbers]))
            outputs.update(zip(numbers, (tensor.float().cpu() for tensor in said), strict=True))
        return (outputs[number] for number in range(len(rows)))

    def _padded(self, rows: Sequence[Row]) -> tuple[Tensor, Tensor]:
        """(input_ids, attention_mask), each (batch, longest row), on the model's device."""
        width = max(len(row.input_ids) for row in rows)
        input_ids = torch.full((len(rows), width), self.model.config.pad_token_id, dtype=torch.int64, device="cpu")
        mask = torch.zeros_like(input_ids)
        for place, row in enumerate(rows):
            input_ids[place, : len(row.input_ids)] = torch.tensor(row.input_ids, device="cpu")
            mask[place, : len(row.input_ids)] = 1
        return input_ids.to(self.model.device), mask.to(self.model.device)

    def encode(self, where: str, text: str, pair: str | None = None, *, whole: tuple[int, str] | None = None) -> list[Row]:
        """The rows of a text or a pair.

        Args:
            where: what messages call the input.
            text, pair: what to encode.
            whole: which of the two is never cut, 0 or 1, and what messages call it; None: both give way.

        Raises:
            ValueError: they are too long, and may not be cut so that they fit.
        """
        # Of models with few positions a quarter: windows have to move on.
        stride = min(self.stride, self.longest // 4) if self.too_long == "split" else 0
        cut = {"max_length": self.longest, "stride": stride, "return_overflowing_tokens": self.too_long == "split"}
        if whole is None and self.too_long != "error":
            return self._encoded(text, pair, truncation="longest_first", **cut)
        rows = self._encoded(text, pair)
        tokens = len(rows[0].input_ids)
        if tokens <= self.longest:
            return rows
        if whole is None or self.too_long == "error":
            ways = "'split' or 'truncate'" if self.can_split else "'truncate'"
            raise ValueError(
                f"{where}: got {tokens} tokens, expected at most {self.longest}, the positions that the model has: pass "
                f"too_long={ways}, or a model with more positions (resize_position_embeddings)."
            )
        part, name = whole
        kept = rows[0].part.count(part)
        most = self.longest - rows[0].part.count(None) - stride - 1
        if kept > most:
            raise ValueError(
                f"{where}: got {kept} tokens in {name}, which is never cut, expected at most {most}, so that more "
                f"than {stride} of the model's {self.longest} positions are left for the rest: shorten it, or pass "
                f"{'a smaller stride, or ' if stride else ''}a model with more positions (resize_position_embeddings)."
            )
        return self._encoded(text, pair, truncation=("only_second", "only_first")[part], **cut)

    def _encoded(self, text: str, pair: str | None, **options: Any) -> list[Row]:
        # One text as a batch of one: only batches come back as rows.
        pairs = None if pair is None else [pair]
        encoded = self.tokenizer([text], pairs, return_offsets_mapping=True, verbose=False, **options)
        return [
            Row(encoded["input_ids"][row], encoded["offset_mapping"][row], encoded.sequence_ids(row), encoded.word_ids(row))
            for row in range(len(encoded["input_ids"]))
        ]

    @staticmethod
    @abc.abstractmethod
    def expected() -> str:
        """What one input is, in words."""

    def _is_one(self, inputs: Any) -> bool:
        """Whether ``inputs`` is one input of the task."""
        return isinstance(inputs, (str, Mapping))

    @abc.abstractmethod
    def options(self, *given: Any, **options: Any) -> dict[str, Any]:
        """What a call may say besides its inputs: keyword arguments, checked and in the form that :meth:`result` takes."""

    def checked(self, item: Any, where: str) -> Any:
        """``item``, if it is an input of the task; messages call it ``where``.

        Raises:
            ValueError, TypeError: it is not.
        """
        if not isinstance(item, str):
            raise TypeError(f"{where}: got {type(item).__name__}, expected {self.expected()}.")
        check_unicode(item, where, "the text")
        return item

    def rows(self, item: Any, where: str) -> list[Row]:
        """What has to run through the model for ``item``."""
        return self.encode(where, item)

    @abc.abstractmethod
    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Iterable[Tensor]:
        """What the model says: a tensor for each row, without its padding."""

    @abc.abstractmethod
    def result(self, *of_item: Any, **options: Any) -> Any:
        """What the outputs mean: from (item, its rows, their outputs) and what :meth:`options` returned."""


def named(number: int) -> str:
    """What messages call an input of several."""
    return f"input {number}"


def fields(
    item: Any, where: str, kinds: Mapping[str, type | tuple[type, ...]], expected: str, **defaults: Any
) -> dict[str, Any]:
    """A mapping with given fields of given types; those with a default may be missing.

    Raises:
        TypeError, ValueError: it is none, or lacks one.
    """
    if not isinstance(item, Mapping):
        raise TypeError(f"{where}: got {type(item).__name__}, expected {expected}.")
    found = {**defaults, **item}
    missing = [name for name in kinds if name not in found]
    if missing:
        raise ValueError(f"{where}: got no {missing[0]!r} among {sorted(item)}, expected {expected}.")
    for name, kind in kinds.items():
        if not isinstance(found[name], kind):
            raise TypeError(f"{where}: got {type(found[name]).__name__} for {name!r}, expected {expected}.")
        if isinstance(found[name], str):
            check_unicode(found[name], where, repr(name))
    return found


def check_unicode(text: str, where: str, name: str) -> None:
    """Refuse a lone surrogate, which the tokenizer cannot take; messages call the input ``where`` and its text ``name``.

    Raises:
        ValueError: there is one.
    """
    position = lone_surrogate(text)
    if position is not None:
        raise surrogate_error(where, name, text, position)


def _with_progress(results: Iterator[Any], total: int, task: str, wanted: bool | None) -> Iterator[Any]:
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    shown = (console.is_terminal and total >= _SHOW_PROGRESS_FROM) if wanted is None else wanted
    return iter(track(results, description=task, total=total, console=console)) if shown else results


_TASKS = {
    "fill-mask": "longformer_triton.heads.label_pipelines:FillMask",
    "text-classification": "longformer_triton.heads.label_pipelines:TextClassification",
    "multiple-choice": "longformer_triton.heads.label_pipelines:MultipleChoice",
    "embedding": "longformer_triton.heads.label_pipelines:Embedding",
    "token-classification": "longformer_triton.heads.span_pipelines:TokenClassification",
    "question-answering": "longformer_triton.heads.span_pipelines:QuestionAnswering",
}


def pipeline(
    task: str,
    model: str | Path | LongformerPreTrainedModel,
    tokenizer: str | Path | LongformerTokenizer | None = None,
    *,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    **options: Any,
) -> Pipeline:
    """A function that does a task for texts.

    Args:
        task: "fill-mask", "question-answering", "text-classification", "token-classification", "multiple-choice" or
            "embedding".
        model: a checkpoint directory, a name on the hub, or a model with the task's head.
        tokenizer: the same, or a tokenizer; None: what lies beside the model.
        dtype, device: of the model; None leaves a model as it is, and loads one in float32 on the CPU.
        options: batch_size, too_long, stride; see :class:`Pipeline`.

    Raises:
        ValueError: no such task, no tokenizer, or an option that does not fit.
        TypeError: a model without the task's head, or an option of another type.

    Example:
        answer = pipeline("question-answering", "checkpoint")
        answer({"question": "Who was Jim Henson?", "context": long_text})
    """
    if task not in _TASKS:
        raise ValueError(f"task: got {task!r}, expected one of {', '.join(_TASKS)}.")
    home, _, name = _TASKS[task].partition(":")
    kind: type[Pipeline] = getattr(importlib.import_module(home), name)
    model_class = getattr(importlib.import_module("longformer_triton"), kind.model_class)
    if isinstance(model, (str, Path)):
        tokenizer = model if tokenizer is None else tokenizer
        loaded: LongformerPreTrainedModel = model_class.from_pretrained(model, dtype=dtype, device=device)
    elif isinstance(model, model_class):
        loaded = model.to(device=None if device is None else present(device), dtype=dtype_of(dtype))
    else:
        found = f"{type(model).__module__}.{type(model).__qualname__}"
        raise TypeError(
            f"model: got a {found}, expected a {kind.model_class} of this package, or a checkpoint to load one from."
        )
    if tokenizer is None:
        raise ValueError("tokenizer: got None beside a model object, expected a tokenizer or the directory of one.")
    if isinstance(tokenizer, (str, Path)):
        tokenizer = LongformerTokenizer.from_pretrained(tokenizer)
    if not (callable(tokenizer) and hasattr(tokenizer, "model_max_length")):
        raise TypeError(
            f"tokenizer: got {type(tokenizer).__name__}, expected a LongformerTokenizer, or the directory to load one from."
        )
    return kind(loaded, tokenizer, **options)
