"""Which tokens of encoded texts are global: masks for tasks, and helpers to make others (arXiv 2004.05150, section 3.1).

A global token sees every token of its row, and every token sees it. Calling the tokenizer with ``global_attention`` adds a
mask:

==============================  =================================  =============================================================
``global_attention``            global                             for
==============================  =================================  =============================================================
"first"                         the first token, ``<s>``           classification of texts: the classifier reads that token
"question"                      ``<s>`` and the first text         question answering, on pairs (question, text)
"none"                          nothing                            masked language modelling: words follow from what is near
a function of the encoded rows  what it says                       anything else, with the functions here:
:func:`token_ids`               tokens with some ids               marks in the text, such as a separator for each paragraph
:func:`every`                   every n-th token                   long documents: summary tokens at intervals pass news along
:func:`token_spans`             stretches of tokens                prompts and instructions of known length
:func:`character_spans`         stretches of characters            headings, names, an entity whose relations are asked for
:func:`sentence_starts`         the first token of each sentence   token classification, extractive summaries, evidence
==============================  =================================  =============================================================

The functions take what the tokenizer returned and give a mask of the form of its ``input_ids``, lists or a tensor, of 0 and 1,
and 0 on padding. ``union`` joins several::

    encoded = tokenizer(texts, padding=True, global_attention=lambda rows: every(rows, 128))
    mask = union(first_token(encoded), sentence_starts(encoded, texts))

A row costs as much as it has tokens times its global ones, and the batch is padded to the most global tokens of a row: above a
quarter, full attention is near, and a warning says so.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

from longformer_triton.tokenization.encoding import BatchEncoding

GlobalAttention: TypeAlias = "str | Callable[[BatchEncoding], Any]"
_Rows: TypeAlias = "list[list[int]]"
_Spans: TypeAlias = "Sequence[Sequence[tuple[int, int]]]"
# Behind a mark that ends a sentence, with quotes and brackets that close on it, or at a new line.
_BEFORE_A_SENTENCE = re.compile(r"(?:\A|[.!?…]+[\"'”\u2019»)\]]*\s|\n)\s*(?=\S)")


def first_token(encoded: BatchEncoding) -> Any:
    """Make the first token of each text global, for classification: the classifier reads it, so it has to have read all.

    Args:
        encoded: what the tokenizer returned.

    Returns:
        A mask of the form of ``input_ids``.
    """
    return every(encoded, max(1, *(len(row) for row in _ids(encoded))))


def question(encoded: BatchEncoding) -> Any:
    """Make the first text of each pair, and ``<s>`` before it, global, for question answering.

    Each token of the second text is judged against the question. In rows that overflowed, the question is global in each.

    Args:
        encoded: pairs (question, text) that the tokenizer has encoded.

    Returns:
        A mask of the form of ``input_ids``.

    Raises:
        ValueError: the rows are no pairs, or ids alone, which do not say what is part of which text.
    """
    if encoded.encodings is None:
        raise ValueError(
            "encoded: got ids alone, expected the result of calling the tokenizer, which knows the parts of pairs. A collator "
            "takes the name instead: global_attention='question'."
        )
    if encoded.n_sequences != 2:
        raise ValueError(
            "global_attention: got 'question' for texts without a second part, expected pairs: tokenizer(questions, texts, "
            "global_attention='question')."
        )
    found = []
    for number, real in enumerate(_real(encoded)):
        parts = encoded.sequence_ids(number)
        start = real.index(1) if 1 in real else 0
        # Without any token in the question, <s> stands for it.
        end = max((place for place, part in enumerate(parts) if part == 0), default=start)
        found.append([int(start <= place <= end) for place in range(len(real))])
    return _like(encoded, found)


def token_ids(encoded: BatchEncoding, ids: Iterable[int]) -> Any:
    """Make all tokens with one of some ids global, such as a mark in front of each paragraph.

    Args:
        encoded: what the tokenizer returned.
        ids: the ids.

    Returns:
        A mask of the form of ``input_ids``.
    """
    wanted = set(ids)
    return _like(encoded, [[int(place in wanted) for place in row] for row in _ids(encoded)])


def every(encoded: BatchEncoding, step: int, start: int = 0) -> Any:
    """Make every ``step``-th token global, for documents in which news has to travel further than the windows.

    Args:
        encoded: what the tokenizer returned.
        step: tokens from one to the next.
        start: the first, counted from the first token that is no padding.

    Returns:
        A mask of the form of ``input_ids``.

    Raises:
        ValueError: ``step`` is less than 1, or ``start`` negative.
    """
    if step < 1 or start < 0:
        raise ValueError(f"step: got {step} from start {start}, expected a step >= 1 from a start >= 0.")
    found = []
    for real in _real(encoded):
        chosen = set([place for place, is_real in enumerate(real) if is_real][start::step])
        found.append([int(place in chosen) for place in range(len(real))])
    return _like(encoded, found)


def token_spans(encoded: BatchEncoding, bounds: _Spans) -> Any:
    """Make stretches of tokens global, such as an instruction whose length is known.

    Args:
        encoded: what the tokenizer returned.
        bounds: for each row its stretches (first token, one past the last); padding on the left counts.

    Returns:
        A mask of the form of ``input_ids``.

    Raises:
        ValueError: not one list for each row, or a stretch that is not within it.
    """
    ids = _ids(encoded)
    _check_count("bounds", bounds, len(ids), "row")
    found = []
    for number, (row, stretches) in enumerate(zip(ids, bounds, strict=True)):
        mask = [0] * len(row)
        for first, end in stretches:
            if not 0 <= first <= end <= len(row):
                raise ValueError(f"bounds: got ({first}, {end}) in row {number}, expected 0 <= first <= end <= {len(row)}.")
            mask[first:end] = [1] * (end - first)
        found.append(mask)
    return _like(encoded, found)


def character_spans(encoded: BatchEncoding, bounds: _Spans, sequence_index: int = 0) -> Any:
    """Make the tokens of stretches of characters global, such as headings, or the names that a question is about.

    Args:
        encoded: texts that the tokenizer has encoded, not split into words (their characters count within each word).
        bounds: for each text its stretches (first character, one past the last); a token counts if it holds one of them. In
            rows that overflowed, stretches are global where they are.
        sequence_index: which text of a pair is meant.

    Returns:
        A mask of the form of ``input_ids``.

    Raises:
        ValueError: not one list for each text, or a stretch that ends before it begins.
    """
    sources = _sources(encoded)
    _check_count("bounds", bounds, max(sources) + 1, "text")
    for number, stretches in enumerate(bounds):
        for first, end in stretches:
            if not 0 <= first <= end:
                raise ValueError(f"bounds: got ({first}, {end}) in text {number}, expected 0 <= first <= end.")
    found = []
    for number, source in enumerate(sources):
        row = encoded[number]
        places = zip(row.offsets, row.sequence_ids, strict=True)
        found.append(
            [
                int(part == sequence_index and any(first < end and start < stop for start, end in bounds[source]))
                for (first, stop), part in places
            ]
        )
    return _like(encoded, found)


def sentence_starts(
    encoded: BatchEncoding,
    texts: str | Sequence[str],
    sequence_index: int = 0,
    starts_of: Callable[[str], Iterable[int]] | None = None,
) -> Any:
    """Make the first token of each sentence global, for token classification, extractive summaries and finding evidence.

    Args:
        encoded: texts that the tokenizer has encoded, not split into words.
        texts: the same texts, in which sentences are looked for.
        sequence_index: which text of a pair they are.
        starts_of: the characters at which the sentences of a text begin; None: behind ``.``, ``!`` and ``?``, and at new
            lines, which takes abbreviations for ends.

    Returns:
        A mask of the form of ``input_ids``.

    Raises:
        ValueError: not as many texts as were encoded.
    """
    texts = [texts] if isinstance(texts, str) else texts
    sources = _sources(encoded)
    _check_count("texts", texts, max(sources) + 1, "text")
    starts = [list((starts_of or sentence_boundaries)(text)) for text in texts]
    found = []
    for number, source in enumerate(sources):
        mask = [0] * len(encoded[number])
        for start in starts[source]:
            place = encoded.char_to_token(number, start, sequence_index)
            if place is not None:
                mask[place] = 1
        found.append(mask)
    return _like(encoded, found)


def sentence_boundaries(text: str) -> list[int]:
    """The characters at which sentences begin: the first one, those behind ``.``, ``!`` or ``?`` and a space, and of lines."""
    return sorted({match.end() for match in _BEFORE_A_SENTENCE.finditer(text)})


def union(*masks: Any) -> Any:
    """Make global what one of several masks does; all lists, or all tensors, of one form."""
    first, *others = masks
    if not isinstance(first, list):
        for other in others:
            first = first | other
        return first
    if first and isinstance(first[0], list):
        return [union(*rows) for rows in zip(*masks, strict=True)]
    return [int(any(values)) for values in zip(*masks, strict=True)]


_NAMED: dict[str, Callable[[BatchEncoding], Any]] = {
    "first": first_token,
    "question": question,
    "none": lambda encoded: token_ids(encoded, ()),
}


def rows_for(wanted: GlobalAttention, encoded: BatchEncoding) -> _Rows:
    """The rows of ``global_attention_mask`` that a call asks for.

    Raises:
        ValueError: no such name, or a function whose mask does not fit the rows.
        TypeError: neither a name nor a function.
    """
    if isinstance(wanted, str):
        if wanted not in _NAMED:
            names = ", ".join(map(repr, _NAMED))
            raise ValueError(f"global_attention: got {wanted!r}, expected {names}, or a function of the encoded batch.")
        found: Any = _NAMED[wanted](encoded)
    elif callable(wanted):
        found = wanted(encoded)
    else:
        raise TypeError(f"global_attention: got {type(wanted).__name__}, expected a name or a function of the encoded batch.")
    found = found.tolist() if hasattr(found, "tolist") else found
    real = _real(encoded)
    rows = [[int(value) for value in (row.tolist() if hasattr(row, "tolist") else row)] for row in found]
    if list(map(len, rows)) != list(map(len, real)) or not {value for row in rows for value in row} <= {0, 1}:
        raise ValueError(
            f"global_attention: the function gave rows of {list(map(len, rows))[:5]} values, expected "
            f"{list(map(len, real))[:5]}, each 0 or 1, one for each token, padding included."
        )
    rows = [[value & is_real for value, is_real in zip(row, mask, strict=True)] for row, mask in zip(rows, real, strict=True)]
    _warn(rows, real)
    return rows


def _warn(rows: _Rows, real: _Rows) -> None:
    """Say that so many global tokens cost what full attention does; one a text is never too many."""
    for number, (row, mask) in enumerate(zip(rows, real, strict=True)):
        if sum(row) > max(1, sum(mask) / 4):
            warnings.warn(
                f"global_attention: {sum(row)} of {sum(mask)} tokens of row {number} are global, more than a quarter; full "
                "attention costs hardly more. Choose fewer, or longer texts.",
                stacklevel=5,
            )
            return


def _ids(encoded: BatchEncoding) -> _Rows:
    """The ids as rows of lists."""
    ids = encoded["input_ids"]
    rows = ids.tolist() if hasattr(ids, "tolist") else ids
    return rows if rows and not isinstance(rows[0], int) else [rows]


def _real(encoded: BatchEncoding) -> _Rows:
    """1 for tokens and 0 for padding, as rows; all 1 if nothing says otherwise."""
    if encoded.encodings is not None:
        return [row.attention_mask for row in encoded.encodings]
    ids = _ids(encoded)
    if "attention_mask" not in encoded:
        return [[1] * len(row) for row in ids]
    return _ids(BatchEncoding({"input_ids": encoded["attention_mask"]}))


def _sources(encoded: BatchEncoding) -> list[int]:
    """For each row the number of its text."""
    if encoded.encodings is None:
        raise ValueError("encoded: got ids alone, expected the result of calling the tokenizer, which knows characters.")
    mapping = encoded.get("overflow_to_sample_mapping", range(len(encoded.encodings)))
    return [int(number) for number in mapping]


def _check_count(argument: str, given: Sequence[Any], expected: int, what: str) -> None:
    if len(given) != expected:
        raise ValueError(f"{argument}: got {len(given)} entries, expected {expected}, one for each {what}.")


def _like(encoded: BatchEncoding, rows: _Rows) -> Any:
    """Rows, 0 on padding, in the form of ``input_ids``."""
    rows = [[value & real for value, real in zip(*pair, strict=True)] for pair in zip(rows, _real(encoded), strict=True)]
    ids = encoded["input_ids"]
    if not hasattr(ids, "tolist"):
        return rows if ids and not isinstance(ids[0], int) else rows[0]
    if type(ids).__module__.split(".")[0] == "torch":
        import torch

        return torch.tensor(rows, dtype=torch.int64, device=ids.device).reshape(ids.shape)
    import numpy

    return numpy.asarray(rows, dtype=numpy.int64).reshape(ids.shape)
