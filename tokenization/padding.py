"""Filling up rows that are encoded already: the collator's work, on plain mappings of names to lists or tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from longformer_triton.tokenization.encoding import BatchEncoding
from longformer_triton.tokenization.options import DO_NOT_PAD, LONGEST


class Filling(NamedTuple):
    """How rows are filled up.

    Attributes:
        strategy: one of options.PADDING.
        length: for "max_length".
        multiple: the length becomes a multiple of it, or None.
        side: "right" or "left".
        main: the name of the ids, which decide about lengths.
        values: {name: what its entry is filled up with}; other entries are kept as they are.
        mask: whether an attention mask is made where there is none.
    """

    strategy: str
    length: int | None
    multiple: int | None
    side: str
    main: str
    values: Mapping[str, int]
    mask: bool


def pad(encoded: Any, how: Filling, return_tensors: str | None) -> BatchEncoding:
    """Fill up one row, or a batch, to one length. What is given is not changed.

    Args:
        encoded: a mapping of names to lists (one row), to lists of lists or tensors (a batch), or a list of mappings, one for
            each row, as a data loader has them.
        how: what to fill up, and how far.
        return_tensors: "pt", "np" or None; None keeps the kind that ``encoded`` has.

    Raises:
        ValueError: there are no ids, rows have different entries, or entries different numbers of rows.
        TypeError: it is none of the above.
    """
    entries = _entries(encoded, how.main)
    kind = _kind(entries[how.main])
    entries = {name: _as_lists(value) for name, value in entries.items()}
    ids = entries[how.main]
    if kind is not None and return_tensors is None:
        return_tensors = kind
    if not ids:
        return BatchEncoding({**entries, "attention_mask": []} if how.mask else entries)
    if not isinstance(ids[0], (list, tuple)):
        return BatchEncoding(_filled(entries, how), tensor_type=return_tensors)
    wrong = {name: len(value) for name, value in entries.items() if len(value) != len(ids)}
    if wrong:
        raise ValueError(f"encoded_inputs: got rows {wrong}, expected {len(ids)} in each entry, as many as {how.main} has.")
    if how.strategy == LONGEST:
        how = how._replace(strategy="max_length", length=max(map(len, ids)))
    rows = [_filled({name: value[place] for name, value in entries.items()}, how) for place in range(len(ids))]
    return BatchEncoding({name: [row[name] for row in rows] for name in rows[0]}, tensor_type=return_tensors)


def _entries(encoded: Any, main: str) -> dict[str, Any]:
    if isinstance(encoded, (list, tuple)):
        if not encoded or not all(isinstance(row, Mapping) for row in encoded):
            raise TypeError(
                f"encoded_inputs: got {type(encoded).__name__} of {type(encoded[0]).__name__ if encoded else 'nothing'}, "
                "expected a mapping, or a list of mappings such as the tokenizer returns."
            )
        lacking = next((row for row in encoded if set(row) != set(encoded[0])), None)
        if lacking is not None:
            raise ValueError(
                f"encoded_inputs: got rows with {list(encoded[0])} and {list(lacking)}, expected the same entries in all."
            )
        encoded = {name: [row[name] for row in encoded] for name in encoded[0]}
    if not isinstance(encoded, Mapping):
        raise TypeError(f"encoded_inputs: got {type(encoded).__name__}, expected a mapping, or a list of mappings.")
    if main not in encoded:
        raise ValueError(
            "You should supply an encoding or a list of encodings to this method that includes "
            f"{main}, but you provided {list(encoded)}"
        )
    return dict(encoded)


def _kind(value: Any) -> str | None:
    """ "pt" or "np" for tensors and lists of tensors, else None."""
    first = value[0] if isinstance(value, (list, tuple)) and len(value) else value
    module = type(first).__module__.split(".")[0]
    return {"torch": "pt", "numpy": "np"}.get(module)


def _as_lists(value: Any) -> Any:
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, (list, tuple)) and value and hasattr(value[0], "tolist"):
        return [row.tolist() for row in value]
    return value


def _filled(row: Mapping[str, Any], how: Filling) -> dict[str, Any]:
    """One row, with its entries filled up."""
    filled = dict(row)
    ids = row[how.main]
    if how.mask and "attention_mask" not in filled:
        filled["attention_mask"] = [1] * len(ids)
    if how.strategy == DO_NOT_PAD:
        return filled
    length = len(ids) if how.strategy == LONGEST else how.length or 0
    if how.multiple:
        length = -(-length // how.multiple) * how.multiple
    for name, value in how.values.items():
        if name in filled:
            given: Sequence[int] = filled[name]
            more = [value] * (length - len(ids))
            filled[name] = [*given, *more] if how.side == "right" else [*more, *given]
    return filled
