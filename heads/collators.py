"""From rows of a data set to batches for training: padding, masked tokens and global tokens.

A collator is what ``torch.utils.data.DataLoader(collate_fn=...)`` and transformers' ``Trainer(data_collator=...)`` call. Both
here take rows as :class:`LongformerTokenizer` returns them, and tokenizers of transformers do as well.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

from longformer_triton.heads import global_tokens
from longformer_triton.model.settings import plain

if TYPE_CHECKING:
    from longformer_triton.tokenization import BatchEncoding

GlobalAttention: TypeAlias = "str | Callable[[BatchEncoding], Any] | None"
IGNORED = -100
_PLACES = ("start_positions", "end_positions")
# {task: what is global unless the caller says otherwise}; see the table in global_tokens.
_BY_TASK = {
    "text-classification": "first",
    "question-answering": "question",
    "multiple-choice": "second",
    "token-classification": "none",
    "fill-mask": "none",
}
_NAMES = ("first", "question", "none")
# What tokenizers give on request, for whoever makes the labels, and no model takes.
_NO_INPUTS = frozenset((
    "length", "num_truncated_tokens", "offset_mapping", "overflow_to_sample_mapping", "overflowing_tokens",
    "special_tokens_mask",
))  # fmt: skip
_LABELLED_TOKENS = ("token-classification", "fill-mask")
# Of the tokens that are chosen, the shares that become <mask> and that become any word (arXiv 1810.04805, section 3.1).
_MASK_SHARE, _ANY_SHARE = 0.8, 0.1
# Where tokenizers make tensors, whatever torch.set_default_device says.
_DEVICE = "cpu"


def mask_tokens(
    input_ids: Tensor,
    maskable: Tensor,
    *,
    mask_token_id: int,
    words: Tensor,
    probability: float = 0.15,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Choose tokens to predict, and mask most of them (arXiv 1810.04805, section 3.1), drawn anew each time as RoBERTa does.

    Of the chosen, 80 % become ``<mask>``, 10 % any of ``words``, and 10 % stay what they are.

    Args:
        input_ids: int64, any shape; not changed.
        maskable: bool of the same shape; False for special tokens and padding.
        mask_token_id: of ``<mask>``.
        words: (count,) ids that chosen tokens may become.
        probability: with which each token is chosen.
        generator: of the random numbers, on the device of ``input_ids``; None is torch's own.

    Returns:
        (input_ids with masked tokens, labels: the ids that were there, -100 where nothing is to be predicted).
    """
    chance = torch.rand(input_ids.shape, generator=generator, device=input_ids.device)
    fate = torch.rand(input_ids.shape, generator=generator, device=input_ids.device)
    others = words[torch.randint(len(words), input_ids.shape, generator=generator, device=input_ids.device)]
    chosen = (chance < probability) & maskable
    masked = torch.where(chosen & (fate < _MASK_SHARE), mask_token_id, input_ids)
    masked = torch.where(chosen & (fate >= _MASK_SHARE) & (fate < _MASK_SHARE + _ANY_SHARE), others, masked)
    return masked, torch.where(chosen, input_ids, IGNORED)


def ordinary_words(tokenizer: Any) -> Tensor:
    """(count,) ids of all tokens but the special ones.

    A random ``<pad>`` in a text would move the positions of all that follows, as they are counted over what is no padding.
    """
    special = set(tokenizer.all_special_ids)
    return torch.tensor([word for word in range(len(tokenizer)) if word not in special], device=_DEVICE)


class GlobalAttentionCollator:
    """Pads rows, and says which tokens are global in the task.

    ``global_attention_mask`` of a row is taken as it is. Labels of tokens are padded with -100, ``label`` becomes ``labels``,
    positions of answers move along with padding on the left, and the rows of multiple choice hold one list for each choice.
    What tokenizers give on request and no model takes (``offset_mapping``, ``overflow_to_sample_mapping``, ``length``,
    ``special_tokens_mask``, ...) is left out; other columns of numbers stay.

    Args:
        tokenizer: pads; its ``padding_side`` is followed.
        task: "text-classification", "question-answering", "multiple-choice", "token-classification" or "fill-mask", the names
            of :func:`pipeline`.
        global_attention: None for what the task's head would make global by itself
            (:mod:`longformer_triton.heads.global_tokens`); "first" for the first token, "question" for what precedes the first
            separator, "none"; or a function of the padded batch. Such are ``first_token``, ``token_ids``, ``every`` and
            ``token_spans`` of :mod:`longformer_triton.tokenization.global_attention`; its others ask what is part of which
            text, or for characters, which a padded batch does not say: call the tokenizer with them.
        pad_to_multiple_of: the length of batches is a multiple of it; nothing here needs that.

    Raises:
        ValueError: an unknown task or name, or padding on the left of texts to be classified by their first token.
        TypeError: ``global_attention`` is neither a name nor a function, or ``tokenizer`` none.

    Example:
        tokenizer = LongformerTokenizer.from_pretrained("checkpoint")
        collator = GlobalAttentionCollator(tokenizer, "text-classification")
        loader = DataLoader([{**tokenizer(text), "label": label} for text, label in data], batch_size=4, collate_fn=collator)
    """

    def __init__(
        self, tokenizer: Any, task: str, *, global_attention: GlobalAttention = None, pad_to_multiple_of: int | None = None
    ) -> None:
        _check_tokenizer(tokenizer)
        if task not in _BY_TASK:
            raise ValueError(f"task: got {task!r}, expected one of {', '.join(_BY_TASK)}.")
        if isinstance(global_attention, str) and global_attention not in _NAMES:
            names = ", ".join(map(repr, _NAMES))
            raise ValueError(f"global_attention: got {global_attention!r}, expected {names}, a function, or None.")
        if not (global_attention is None or isinstance(global_attention, str) or callable(global_attention)):
            raise TypeError(f"global_attention: got {type(global_attention).__name__}, expected a name, a function, or None.")
        if task == "text-classification" and tokenizer.padding_side == "left":
            raise ValueError(
                "tokenizer: got padding_side 'left', expected 'right': the classifier reads the first place of each row, "
                "which would be padding."
            )
        self.tokenizer, self.task, self.pad_to_multiple_of = tokenizer, task, pad_to_multiple_of
        self.global_attention = _BY_TASK[task] if global_attention is None else global_attention
        self._left_out = _NO_INPUTS

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """A batch of rows.

        Args:
            rows: mappings with ``input_ids``, and what else the task wants: ``attention_mask``, ``token_type_ids``,
                ``global_attention_mask`` and labels, each a list or a tensor.

        Returns:
            {name: tensor}: (batch, seq_len), for multiple choice (batch, choices, seq_len), and labels.

        Raises:
            ValueError: no rows, different entries in them, or different numbers of choices.
            TypeError: an entry holds text, or None, instead of numbers, or one number where each token needs its own.
        """
        flat, choices = _checked(rows, nested=self.task == "multiple-choice")
        flat = [{name: value for name, value in row.items() if name not in self._left_out} for row in flat]
        batch = _padded(self.tokenizer, flat, self.pad_to_multiple_of, self.task in _LABELLED_TOKENS)
        if "global_attention_mask" not in batch:
            batch["global_attention_mask"] = self._mask(batch["input_ids"], batch["attention_mask"])
        if self.task == "multiple-choice":
            batch = {name: value.unflatten(0, (len(rows), choices)) for name, value in batch.items()}
            labels = [row[name] for row in rows for name in ("labels", "label") if name in row]
            if labels:
                batch["labels"] = torch.as_tensor(labels, device=_DEVICE)
        return batch

    def _mask(self, ids: Tensor, real: Tensor) -> Tensor:
        if self.global_attention == "question":
            mask = global_tokens.question(ids, self.tokenizer.sep_token_id, real)
        elif self.global_attention == "second":
            mask = global_tokens.after_first_separators(ids, self.tokenizer.sep_token_id, real)
        else:
            from longformer_triton.tokenization import BatchEncoding, global_attention

            encoded = BatchEncoding({"input_ids": ids, "attention_mask": real})
            mask = torch.tensor(global_attention.rows_for(self.global_attention, encoded), device=_DEVICE)
        return mask * real


class MaskedLanguageCollator:
    """Pads rows, and masks tokens to be predicted: 15 % are chosen, of which 80 % become ``<mask>`` and 10 % any word.

    The distribution is that of transformers' ``DataCollatorForLanguageModeling``, but that random words are never special
    tokens, as in fairseq, which trained RoBERTa. Special tokens and padding are never chosen.

    Args:
        tokenizer: pads, and knows its special tokens.
        probability: with which each token is chosen.
        global_attention: None leaves ``global_attention_mask`` out, and nothing is global; else as
            :class:`GlobalAttentionCollator` has it.
        pad_to_multiple_of: the length of batches is a multiple of it.
        generator: on the CPU, of all random numbers, so that a seed repeats them; None is torch's own. Workers of a data loader
            get copies of it, which draw alike: leave it None there, as torch seeds each worker.

    Raises:
        ValueError: a probability outside 0 to 1, or a tokenizer without ``<mask>``.
        TypeError: an argument of another kind.

    Example:
        collator = MaskedLanguageCollator(tokenizer, generator=torch.Generator().manual_seed(1))
        loader = DataLoader([tokenizer(text) for text in texts], batch_size=8, collate_fn=collator)
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        probability: float = 0.15,
        global_attention: GlobalAttention = None,
        pad_to_multiple_of: int | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        _check_tokenizer(tokenizer)
        probability = plain(probability)
        if isinstance(probability, bool) or not isinstance(probability, (int, float)):
            raise TypeError(f"probability: got {type(probability).__name__}, expected a number from 0 to 1.")
        if not (generator is None or isinstance(generator, torch.Generator)):
            raise TypeError(f"generator: got {type(generator).__name__}, expected a torch.Generator, or None for torch's own.")
        if not 0 <= probability <= 1:
            raise ValueError(f"probability: got {probability}, expected 0 to 1; the papers have 0.15.")
        if tokenizer.mask_token is None:
            raise ValueError("tokenizer: got one without a mask_token, expected one that has it, such as '<mask>'.")
        self.tokenizer, self.probability, self.generator = tokenizer, probability, generator
        self._pad = GlobalAttentionCollator(
            tokenizer, "fill-mask", global_attention=global_attention, pad_to_multiple_of=pad_to_multiple_of
        )
        self._pad._left_out = _NO_INPUTS - {"special_tokens_mask"}  # which says what is never chosen
        self._has_globals = global_attention is not None
        self._words = ordinary_words(tokenizer)

    def __call__(self, rows: Sequence[Any]) -> dict[str, Tensor]:
        """A batch of rows.

        Args:
            rows: mappings with ``input_ids``, perhaps ``attention_mask``, ``special_tokens_mask`` (1: never chosen; without it
                the tokenizer's special tokens are not) and ``global_attention_mask``; or lists of ids.

        Returns:
            ``input_ids``, ``attention_mask``, ``labels`` and what else the rows had, each (batch, seq_len) of int64.

        Raises:
            ValueError: no rows, or different entries in them.
        """
        given = [dict(row) if isinstance(row, Mapping) else {"input_ids": row} for row in rows]
        for row in given:
            for name in ("labels", "label"):  # of another task
                row.pop(name, None)
        batch = self._pad(given)
        if not self._has_globals and not any("global_attention_mask" in row for row in given):
            del batch["global_attention_mask"]
        special = batch.pop("special_tokens_mask", None)
        if special is None:
            special = torch.isin(batch["input_ids"], torch.tensor(self.tokenizer.all_special_ids, device=_DEVICE))
        batch["input_ids"], batch["labels"] = mask_tokens(
            batch["input_ids"],
            (special == 0) & (batch["attention_mask"] == 1),
            mask_token_id=self.tokenizer.mask_token_id,
            words=self._words,
            probability=self.probability,
            generator=self.generator,
        )
        return batch


def _check_tokenizer(tokenizer: Any) -> None:
    if not hasattr(tokenizer, "pad"):
        raise TypeError(f"tokenizer: got {type(tokenizer).__name__}, expected a tokenizer, such as a LongformerTokenizer.")


def _padded(
    tokenizer: Any, rows: Sequence[Mapping[str, Any]], pad_to_multiple_of: int | None, token_labels: bool
) -> dict[str, Tensor]:
    """Rows as tensors of one length: ids by the tokenizer, ``global_attention_mask`` with 0, labels of tokens with -100."""
    apart = {"labels", "label", "global_attention_mask", *_PLACES}
    encoded = [{name: value for name, value in row.items() if name not in apart} for row in rows]
    filled = tokenizer.pad(encoded, padding=True, pad_to_multiple_of=pad_to_multiple_of, return_tensors="pt")
    batch: dict[str, Tensor] = dict(filled.items())
    lengths = [len(row["input_ids"]) for row in rows]
    missing = [batch["input_ids"].shape[1] - length for length in lengths]
    is_left = tokenizer.padding_side == "left"
    for name in sorted(apart & set(rows[0])):
        values = [row[name].tolist() if hasattr(row[name], "tolist") else row[name] for row in rows]
        if name == "global_attention_mask" or (token_labels and name not in _PLACES):
            single = next((row for row, value in enumerate(values) if not isinstance(value, Sequence)), None)
            if single is not None:
                raise TypeError(f"{name}: got {values[single]!r} in row {single}, expected a list, one number for each token.")
            wrong = [(row, len(value)) for row, value in enumerate(values) if len(value) != lengths[row]]
            if wrong:
                row, count = wrong[0]
                raise ValueError(f"{name}: got {count} in row {row}, expected {lengths[row]}, one for each token.")
            filler = [0 if name == "global_attention_mask" else IGNORED]
            values = [
                filler * lack + list(value) if is_left else list(value) + filler * lack
                for value, lack in zip(values, missing, strict=True)
            ]
        elif name in _PLACES and is_left:
            values = [place + lack for place, lack in zip(values, missing, strict=True)]
        batch["labels" if name == "label" else name] = torch.as_tensor(values, device=_DEVICE)
    return batch


def _checked(rows: Sequence[Mapping[str, Any]], nested: bool) -> tuple[list[dict[str, Any]], int]:
    """(rows of one text each, choices in each row)."""
    if not rows:
        raise ValueError("rows: got none, expected at least one.")
    differing = next((row for row in rows if set(row) != set(rows[0])), None)
    if differing is not None:
        raise ValueError(f"rows: got some with {list(rows[0])} and some with {list(differing)}, expected the same in all.")
    if "input_ids" not in rows[0]:
        raise ValueError(f"rows: got {list(rows[0])}, expected input_ids among them, as a tokenizer gives.")
    for row in rows:
        for name, value in row.items():
            inside = value[0] if isinstance(value, (list, tuple)) and value else value
            if inside is None or isinstance(inside, str):
                what = "None" if inside is None else "text"
                raise TypeError(f"rows: got {what} in {name!r}, expected numbers: leave out such columns, or fill them.")
    if not nested:
        return [dict(row) for row in rows], 1
    counts = [len(row["input_ids"]) for row in rows]
    if len(set(counts)) > 1:
        raise ValueError(f"rows: got {min(counts)} choices in some and {max(counts)} in others, expected as many in all.")
    names = [name for name in rows[0] if name not in ("labels", "label")]
    return [{name: row[name][place] for name in names} for row in rows for place in range(counts[0])], counts[0]
