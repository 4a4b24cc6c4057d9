"""What calling the tokenizer gives: a mapping of names to lists or tensors that knows which text each token came from."""

from __future__ import annotations

import warnings
from collections import UserDict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import torch
    from tokenizers import Encoding  # type: ignore[import-untyped]

TENSORS = ("pt", "np")


class CharSpan(NamedTuple):
    """Characters of a text: the first, and one past the last."""

    start: int
    end: int


class TokenSpan(NamedTuple):
    """Tokens of a row: the first, and one past the last."""

    start: int
    end: int


class BatchEncoding(UserDict[str, Any]):
    """Encoded texts: ``encoded["input_ids"]``, ``encoded.input_ids`` and ``model(**encoded)`` all work.

    Attributes:
        data: {name: value}. For one text without tensors the values are lists with one entry for each token; for several texts,
            or with overflowing tokens, lists of such lists, the rows; with ``return_tensors`` tensors of (rows, tokens).
        encodings: one object of the `tokenizers` library for each row, or None, as after ``pad``.

    The methods that speak of tokens, words and characters take (row, index), or the index alone for row 0. Word and character
    numbers count within one text; ``sequence_index`` says which of a pair.
    """

    def __init__(
        self,
        data: Mapping[str, Any] | None = None,
        encoding: Encoding | Sequence[Encoding] | None = None,
        tensor_type: str | None = None,
        prepend_batch_axis: bool = False,
    ) -> None:
        super().__init__(data)
        if encoding is not None and not isinstance(encoding, (list, tuple)):
            encoding = [encoding]
        self._encodings: Sequence[Encoding] | None = encoding
        self.convert_to_tensors(tensor_type, prepend_batch_axis)

    def __getitem__(self, item: Any) -> Any:
        """The value of a name, a row's encoding by number, or {name: rows} by slice."""
        if isinstance(item, str):
            return self.data[item]
        if self._encodings is not None and not isinstance(item, slice):
            return self._encodings[item]
        if isinstance(item, slice):
            return {name: value[item] for name, value in self.data.items()}
        raise KeyError(f"{item!r}: expected a name such as 'input_ids', a slice, or, for texts just encoded, a row's number.")

    def __getattr__(self, item: str) -> Any:
        # Unpickling asks for attributes before there are any data.
        data = self.__dict__.get("data", {})
        if item in data:
            return data[item]
        raise AttributeError(f"{type(self).__name__} has no attribute or entry {item!r}; it holds {', '.join(data)}.")

    def __getstate__(self) -> dict[str, Any]:
        return {"data": self.data, "encodings": self._encodings}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.data, self._encodings = state["data"], state["encodings"]

    @property
    def encodings(self) -> Sequence[Encoding] | None:
        """The library's object for each row, or None."""
        return self._encodings

    @property
    def is_fast(self) -> bool:
        """Whether rows know their texts."""
        return self._encodings is not None

    @property
    def n_sequences(self) -> int | None:
        """1 for texts, 2 for pairs, None if unknown."""
        return self._encodings[0].n_sequences if self._encodings else None

    def _row(self, method: str, row: int) -> Encoding:
        if not self._encodings:
            raise ValueError(
                f"{method}: these rows carry ids alone, expected the result of calling the tokenizer (not of pad)."
            )
        return self._encodings[row]

    def _at(self, method: str, row_or_index: int, index: int | None, *, tokens: bool = True) -> tuple[Encoding, int]:
        """(row, index), of which the row may have been left out; negative token numbers count from the end."""
        row, place = (0, row_or_index) if index is None else (row_or_index, index)
        found = self._row(method, row)
        return found, place + len(found) if tokens and place < 0 else place

    def tokens(self, batch_index: int = 0) -> list[str]:
        """The tokens of a row as texts."""
        return self._row("tokens", batch_index).tokens

    def sequence_ids(self, batch_index: int = 0) -> list[int | None]:
        """For each token of a row 0 or 1, which text of a pair it is from; None for special tokens."""
        return self._row("sequence_ids", batch_index).sequence_ids

    def word_ids(self, batch_index: int = 0) -> list[int | None]:
        """For each token of a row the number of its word; None for special tokens."""
        return self._row("word_ids", batch_index).word_ids

    def token_to_sequence(self, batch_or_token_index: int, token_index: int | None = None) -> int | None:
        """Which text of a pair a token is from; None for special tokens."""
        row, place = self._at("token_to_sequence", batch_or_token_index, token_index)
        return row.token_to_sequence(place)

    def token_to_word(self, batch_or_token_index: int, token_index: int | None = None) -> int | None:
        """The number of a token's word; None for special tokens."""
        row, place = self._at("token_to_word", batch_or_token_index, token_index)
        return row.token_to_word(place)

    def token_to_chars(self, batch_or_token_index: int, token_index: int | None = None) -> CharSpan | None:
        """The characters of a token in its text; None for special tokens."""
        row, place = self._at("token_to_chars", batch_or_token_index, token_index)
        return _span(CharSpan, row.token_to_chars(place))

    def word_to_tokens(
        self, batch_or_word_index: int, word_index: int | None = None, sequence_index: int = 0
    ) -> TokenSpan | None:
        """The tokens of a word; None where it has none in the row."""
        row, place = self._at("word_to_tokens", batch_or_word_index, word_index, tokens=False)
        return _span(TokenSpan, row.word_to_tokens(place, sequence_index))

    def word_to_chars(
        self, batch_or_word_index: int, word_index: int | None = None, sequence_index: int = 0
    ) -> CharSpan | None:
        """The characters of a word; None where it has no token in the row."""
        row, place = self._at("word_to_chars", batch_or_word_index, word_index, tokens=False)
        return _span(CharSpan, row.word_to_chars(place, sequence_index))

    def char_to_token(self, batch_or_char_index: int, char_index: int | None = None, sequence_index: int = 0) -> int | None:
        """The token that holds a character; None where none does, as for a space that offsets leave out."""
        row, place = self._at("char_to_token", batch_or_char_index, char_index, tokens=False)
        return row.char_to_token(place, sequence_index)

    def char_to_word(self, batch_or_char_index: int, char_index: int | None = None, sequence_index: int = 0) -> int | None:
        """The word that holds a character; None where none does."""
        row, place = self._at("char_to_word", batch_or_char_index, char_index, tokens=False)
        return row.char_to_word(place, sequence_index)

    def convert_to_tensors(self, tensor_type: str | None = None, prepend_batch_axis: bool = False) -> BatchEncoding:
        """Turn the values into tensors, in place.

        Args:
            tensor_type: "pt" for PyTorch, "np" for NumPy, None for no change.
            prepend_batch_axis: whether the values are one row's, which becomes a batch of one.

        Raises:
            ValueError: rows of different lengths.
        """
        if tensor_type is not None:
            check_tensor_type("tensor_type", tensor_type)
            for name, value in self.data.items():
                self.data[name] = _as_tensor(name, [value] if prepend_batch_axis else value, tensor_type)
        return self

    def to(self, device: str | int | torch.device, *, non_blocking: bool = False) -> BatchEncoding:
        """Move all tensors to a device, in place; lists stay what they are.

        Args:
            device: such as "cuda:0".
            non_blocking: whether to go on while the copy runs.
        """
        import torch

        if isinstance(device, (str, int, torch.device)):
            self.data = {
                name: value.to(device=device, non_blocking=non_blocking) if isinstance(value, torch.Tensor) else value
                for name, value in self.data.items()
            }
        else:
            # Wrappers for mixed precision cast whatever a model is given; ids in half precision would be other ids.
            warnings.warn(f"to: got {device!r}, expected a device; encoded texts are not cast.", stacklevel=2)
        return self


def check_tensor_type(argument: str, value: Any) -> None:
    """Refuse other values than "pt" and "np", and None.

    Raises:
        ValueError: it is none of them.
        NotImplementedError: it is a framework that only transformers knows.
    """
    if value is None or str(getattr(value, "value", value)) in TENSORS:
        return
    message = f"{argument}: got {value!r}, expected 'pt' (PyTorch), 'np' (NumPy) or None (lists)."
    raise NotImplementedError(message) if value in ("tf", "jax", "mlx") else ValueError(message)


def _span(kind: Any, found: tuple[int, int] | None) -> Any:
    return None if found is None else kind(*found)


def _as_tensor(name: str, value: Any, tensor_type: str) -> Any:
    """An entry as a tensor; integers become int64, an empty row too, which a model could not take as anything else."""
    import numpy

    kind = str(getattr(tensor_type, "value", tensor_type))
    if kind == "pt":
        import torch

        if isinstance(value, torch.Tensor):
            return value
        if isinstance(value, list) and value and isinstance(value[0], torch.Tensor):
            value = [row.tolist() for row in value]
    elif isinstance(value, numpy.ndarray):
        return value
    try:
        found = numpy.asarray(value)
    except ValueError as error:
        if kind == "np" and isinstance(value, list) and len({len(row) for row in value}) > 1:
            return _ragged(value)
        raise ValueError(
            f"{name}: rows differ in length, expected one length for tensors. Unable to create tensor, you should probably "
            "activate truncation and/or padding with 'padding=True' 'truncation=True'."
        ) from error
    if found.size == 0:
        found = found.astype(numpy.int64)
    return torch.from_numpy(found) if kind == "pt" else found


def _ragged(rows: Sequence[Any]) -> Any:
    """An array of arrays, as transformers gives for rows of different lengths."""
    import numpy

    found = numpy.empty(len(rows), dtype=object)
    for place, row in enumerate(rows):
        found[place] = numpy.asarray(row)
    return found
