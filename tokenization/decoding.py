"""From ids back to tokens and texts, and what the vocabulary holds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from tokenizers import AddedToken, Tokenizer  # type: ignore[import-untyped]

from longformer_triton.tokenization import options
from longformer_triton.tokenization.special import SpecialTokens

if TYPE_CHECKING:
    from longformer_triton.tokenization.backend import Backend

# In this order, since later ones see what earlier ones left.
_CLEAN_UP = (" .", " ?", " !", " ,", " ' ", " n't", " 'm", " 's", " 've", " 're")


class Decoding(SpecialTokens):
    """What a tokenizer can do without encoding anything.

    Attributes:
        errors: what is done with bytes that are no UTF-8.
        clean_up_tokenization_spaces: whether spaces before punctuation go, if a call does not say.
    """

    errors: str
    clean_up_tokenization_spaces: bool
    _backend: Backend

    @property
    def backend_tokenizer(self) -> Tokenizer:
        """The library's tokenizer, to look at: truncation and padding live in copies of it, and so do its parts."""
        return self._backend.base

    @property
    def is_fast(self) -> bool:
        """True: there is one class, on the `tokenizers` library."""
        return True

    @property
    def vocab_size(self) -> int:
        """Entries of the vocabulary without added tokens; ``len(tokenizer)`` counts those too."""
        return self.backend_tokenizer.get_vocab_size(with_added_tokens=False)

    def __len__(self) -> int:
        return self.backend_tokenizer.get_vocab_size(with_added_tokens=True)

    def __bool__(self) -> bool:
        return True

    def get_vocab(self) -> dict[str, int]:
        """{token: id}, added tokens included."""
        return self.backend_tokenizer.get_vocab(with_added_tokens=True)

    @property
    def vocab(self) -> dict[str, int]:
        """:meth:`get_vocab`."""
        return self.get_vocab()

    @property
    def added_tokens_decoder(self) -> dict[int, AddedToken]:
        """{id: token} of the tokens that are never cut."""
        return self.backend_tokenizer.get_added_tokens_decoder()

    @property
    def added_tokens_encoder(self) -> dict[str, int]:
        """{text: id} of the same, by id."""
        return {token.content: place for place, token in sorted(self.added_tokens_decoder.items())}

    def get_added_vocab(self) -> dict[str, int]:
        """:attr:`added_tokens_encoder`."""
        return self.added_tokens_encoder

    @property
    def pad_token_type_id(self) -> int:
        """0: Longformer has one type."""
        return 0

    def convert_tokens_to_ids(self, tokens: Any) -> Any:
        """The id of a token, or the list of those of several; unk_token's for tokens that the vocabulary lacks."""
        if isinstance(tokens, str):
            position = options.lone_surrogate(tokens)
            if position is not None:
                raise options.surrogate_error("tokens", "a token", tokens, position)
            found = self.backend_tokenizer.token_to_id(tokens)
            if found is None and tokens != self.unk_token:
                return self.unk_token_id
            return found
        return [self.convert_tokens_to_ids(token) for token in tokens]

    def convert_ids_to_tokens(self, ids: Any, skip_special_tokens: bool = False) -> Any:
        """The token of an id, or the list of those of several; None for ids beyond the vocabulary."""
        ids = _as_list(ids)
        name = self.backend_tokenizer.id_to_token
        if isinstance(ids, int):
            return name(_checked([ids], "ids")[0])
        skipped = set(self.all_special_ids) if skip_special_tokens else ()
        return [name(place) for place in _checked(ids, "ids") if place not in skipped]

    def convert_tokens_to_string(self, tokens: Sequence[str]) -> str:
        """The text of tokens."""
        if self.errors == "replace":
            return self.backend_tokenizer.decoder.decode(list(tokens))
        return _bytes_of(tokens).decode("utf-8", self.errors)

    def decode(
        self,
        token_ids: Any,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
    ) -> str:
        """The text of ids.

        Args:
            token_ids: an id, a list of ids, or a tensor of one dimension.
            skip_special_tokens: whether special tokens are left out.
            clean_up_tokenization_spaces: whether spaces before punctuation are; None: as the tokenizer was made.

        Raises:
            ValueError: a negative id, such as the -100 of labels that do not count.
            TypeError: no ids.
            UnicodeDecodeError: bytes that are no UTF-8, with ``errors="strict"``.
        """
        ids = _as_list(token_ids)
        return self._decoded([[ids] if isinstance(ids, int) else ids], skip_special_tokens, clean_up_tokenization_spaces)[0]

    def batch_decode(
        self,
        sequences: Any,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
    ) -> list[str]:
        """The texts of several rows of ids, on the library's threads; arguments as :meth:`decode`."""
        rows = [_as_list(row) for row in _as_list(sequences)]
        return self._decoded(
            [[row] if isinstance(row, int) else row for row in rows], skip_special_tokens, clean_up_tokenization_spaces
        )

    def _decoded(self, rows: Sequence[Any], skip_special_tokens: bool, clean_up: bool | None) -> list[str]:
        rows = [_checked(row, "token_ids") for row in rows]
        if self.errors == "replace":
            texts = self.backend_tokenizer.decode_batch(rows, skip_special_tokens=skip_special_tokens)
        else:
            skipped = self._backend.specials if skip_special_tokens else {}
            tokens = [[token for token in self.convert_ids_to_tokens(row) if token is not None] for row in rows]
            texts = [self.convert_tokens_to_string([token for token in row if token not in skipped]) for row in tokens]
        clean_up = self.clean_up_tokenization_spaces if clean_up is None else clean_up
        return [self.clean_up_tokenization(text) for text in texts] if clean_up else texts

    @staticmethod
    def clean_up_tokenization(out_string: str) -> str:
        """The text without spaces before punctuation and English contractions."""
        for artefact in _CLEAN_UP:
            out_string = out_string.replace(artefact, artefact.strip())
        return out_string

    def build_inputs_with_special_tokens(self, token_ids_0: list[int], token_ids_1: list[int] | None = None) -> list[int]:
        """The ids of a text, or of a pair, with special tokens: ``<s> A </s>``, ``<s> A </s></s> B </s>``."""
        first, last = self.bos_token_id, self.eos_token_id
        if first is None or last is None:
            raise ValueError("bos_token, eos_token: got None, expected both to build a row: set them, or use cls and sep.")
        row = [first, *token_ids_0, last]
        return row if token_ids_1 is None else [*row, last, *token_ids_1, last]

    def create_token_type_ids_from_sequences(self, token_ids_0: list[int], token_ids_1: list[int] | None = None) -> list[int]:
        """Zeros for a text or a pair with special tokens: Longformer does not tell them apart."""
        return [0] * (len(token_ids_0) + 2 if token_ids_1 is None else len(token_ids_0) + len(token_ids_1) + 4)

    def get_special_tokens_mask(
        self, token_ids_0: Any, token_ids_1: Any = None, already_has_special_tokens: bool = False
    ) -> list[int]:
        """1 for special tokens and 0 for others.

        Args:
            token_ids_0, token_ids_1: the ids of a text, or of a pair, without special tokens.
            already_has_special_tokens: whether ``token_ids_0`` is a whole row with special tokens in it.

        Raises:
            ValueError: two lists with ``already_has_special_tokens``.
        """
        first = _as_list(token_ids_0)
        if already_has_special_tokens:
            if token_ids_1 is not None:
                raise ValueError(
                    "token_ids_1: got a second list with already_has_special_tokens=True, expected None. You should not supply "
                    "a second sequence if the provided sequence of ids is already formatted with special tokens for the model."
                )
            special = set(self.all_special_ids)
            return [int(place in special) for place in first]
        row = [1, *[0] * len(first), 1]
        return row if token_ids_1 is None else [*row, 1, *[0] * len(_as_list(token_ids_1)), 1]


def _as_list(ids: Any) -> Any:
    """Tensors as lists, or as one number."""
    return ids.tolist() if hasattr(ids, "tolist") else ids


def _checked(ids: Iterable[Any], argument: str) -> list[int]:
    """Ids that the library takes: integers from 0 that fit 32 bits.

    Raises:
        ValueError, TypeError: one is not.
    """
    try:
        found = [place.__index__() for place in ids]
    except (AttributeError, TypeError):
        raise TypeError(
            f"{argument}: got {ids!r:.80}, expected an integer, a list of integers or a tensor of one dimension (batch_decode "
            "takes two)."
        ) from None
    if found and not (min(found) >= 0 and max(found) < 2**32):
        place = next(place for place, value in enumerate(found) if not 0 <= value < 2**32)
        raise ValueError(
            f"{argument}: got {found[place]} at position {place}, expected ids from 0. Labels hold -100 where they do not "
            "count: put pad_token_id there first."
        )
    return found


@lru_cache(maxsize=1)
def _byte_of() -> Mapping[str, int]:
    """{character: byte}: GPT-2 writes printable bytes as themselves, and the others, in order, as characters from 256 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {**{chr(byte): byte for byte in printable}, **{chr(256 + place): byte for place, byte in enumerate(others)}}


def _bytes_of(tokens: Iterable[str]) -> bytes:
    """The bytes that tokens stand for; one with other characters, as added tokens may have, stands for itself."""
    byte = _byte_of()
    return b"".join(
        bytes(byte[letter] for letter in token) if all(letter in byte for letter in token) else token.encode()
        for token in tokens
    )
