"""The special tokens of a tokenizer as attributes: ``cls_token``, ``cls_token_id`` and so on, under transformers' names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from tokenizers import AddedToken  # type: ignore[import-untyped]

Token: TypeAlias = "str | AddedToken"
# In transformers' order, which decides the ids of those that a vocabulary lacks.
NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
ADDITIONAL = "additional_special_tokens"


def as_added_token(name: str, value: Any) -> Token:
    """A token as it was given, or read from JSON.

    Raises:
        TypeError: it is no text, no AddedToken, and no object that describes one.
    """
    if isinstance(value, Mapping) and "content" in value:
        return AddedToken(**{key: item for key, item in value.items() if key != "__type"})
    if not isinstance(value, (str, AddedToken)):
        raise TypeError(f"{name}: got {type(value).__name__}, expected a str or a tokenizers.AddedToken.")
    return value


def copied(token: AddedToken, *, special: bool) -> AddedToken:
    """The token, special or not; a copy, since the caller keeps his."""
    return AddedToken(**{**token.__getstate__(), "special": special})


class _TokenAttribute:
    """A special token as a text; setting it changes the name only, not the vocabulary (``add_special_tokens`` does both)."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, owner: Any, kind: type) -> str | None:
        value = owner._special.get(self.name)
        return None if value is None else _content(value)

    def __set__(self, owner: Any, value: Token | None) -> None:
        owner._special[self.name] = None if value is None else as_added_token(self.name, value)


class _IdAttribute:
    """The id of a special token; that of ``unk_token`` if the vocabulary lacks it, None if there is no such token."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, owner: Any, kind: type) -> int | None:
        token = getattr(owner, self.name)
        return None if token is None else owner.convert_tokens_to_ids(token)

    def __set__(self, owner: Any, value: int | None) -> None:
        setattr(owner, self.name, None if value is None else owner.convert_ids_to_tokens(value))


class SpecialTokens:
    """What a tokenizer knows about its special tokens.

    Attributes:
        bos_token, eos_token, unk_token, sep_token, pad_token, cls_token, mask_token: texts, or None where there is none.
        bos_token_id and so on: their ids.
        additional_special_tokens, additional_special_tokens_ids: lists of more.
    """

    _special: dict[str, Token | None]
    _additional: list[Token]

    bos_token = _TokenAttribute("bos_token")
    eos_token = _TokenAttribute("eos_token")
    unk_token = _TokenAttribute("unk_token")
    sep_token = _TokenAttribute("sep_token")
    pad_token = _TokenAttribute("pad_token")
    cls_token = _TokenAttribute("cls_token")
    mask_token = _TokenAttribute("mask_token")
    bos_token_id = _IdAttribute("bos_token")
    eos_token_id = _IdAttribute("eos_token")
    unk_token_id = _IdAttribute("unk_token")
    sep_token_id = _IdAttribute("sep_token")
    pad_token_id = _IdAttribute("pad_token")
    cls_token_id = _IdAttribute("cls_token")
    mask_token_id = _IdAttribute("mask_token")

    def convert_tokens_to_ids(self, tokens: Any) -> Any:
        """Ids of tokens; the tokenizer knows."""
        raise NotImplementedError

    def add_tokens(self, new_tokens: Token | Sequence[Token], special_tokens: bool = False) -> int:
        """Extend the vocabulary; the tokenizer can."""
        raise NotImplementedError

    @property
    def additional_special_tokens(self) -> list[str]:
        """Special tokens without a role."""
        return [_content(token) for token in self._additional]

    @additional_special_tokens.setter
    def additional_special_tokens(self, value: Iterable[Token]) -> None:
        self._additional = _checked_list(value)

    @property
    def additional_special_tokens_ids(self) -> list[int]:
        """The ids of :attr:`additional_special_tokens`."""
        return [self.convert_tokens_to_ids(token) for token in self.additional_special_tokens]

    @property
    def special_tokens_map_extended(self) -> dict[str, Any]:
        """{attribute: token as it was given}, with those that there are."""
        found: dict[str, Any] = {name: self._special[name] for name in NAMES if self._special.get(name)}
        return {**found, **({ADDITIONAL: list(self._additional)} if self._additional else {})}

    @property
    def special_tokens_map(self) -> dict[str, Any]:
        """{attribute: text}, with those that there are."""
        found: dict[str, Any] = {name: getattr(self, name) for name in NAMES if getattr(self, name)}
        return {**found, **({ADDITIONAL: self.additional_special_tokens} if self._additional else {})}

    @property
    def all_special_tokens_extended(self) -> list[Token]:
        """Every special token once, as it was given."""
        found: dict[str, Token] = {}
        for token in (*(self._special.get(name) for name in NAMES), *self._additional):
            if token:
                found.setdefault(_content(token), token)
        return list(found.values())

    @property
    def all_special_tokens(self) -> list[str]:
        """Every special token once, as texts."""
        return [_content(token) for token in self.all_special_tokens_extended]

    @property
    def all_special_ids(self) -> list[int]:
        """The ids of :attr:`all_special_tokens`."""
        return [self.convert_tokens_to_ids(token) for token in self.all_special_tokens]

    def add_special_tokens(self, special_tokens_dict: Mapping[str, Any], replace_additional_special_tokens: bool = True) -> int:
        """Give special tokens their roles, and add to the vocabulary those that it lacks, at its end.

        The template ``<s> text </s>`` stays what it was, as in transformers.

        Args:
            special_tokens_dict: {"cls_token": token, ..., "additional_special_tokens": [tokens]}.
            replace_additional_special_tokens: whether the list replaces the one there is, or is appended to it.

        Returns:
            How many tokens were new. The model's embeddings need as many more rows:
            ``resize_token_embeddings(len(tokenizer))``.

        Raises:
            ValueError: a key that is no special token's.
            TypeError: a value that is no token.
        """
        plain = {"rstrip": False, "lstrip": False, "normalized": False, "special": True}
        wrong = sorted(set(special_tokens_dict) - {*NAMES, ADDITIONAL})
        if wrong:
            raise ValueError(
                f"special_tokens_dict: got the key {wrong[0]!r}, expected some of {', '.join((*NAMES, ADDITIONAL))}."
            )
        added: list[Token] = []
        roles: dict[str, Token] = {}
        additional = list(self._additional)
        for name, value in special_tokens_dict.items():
            given = _checked_list(value) if name == ADDITIONAL else [as_added_token(name, value)]
            tokens = [AddedToken(token, **plain) if isinstance(token, str) else token for token in given]
            if name != ADDITIONAL:
                roles[name] = tokens[0]
            elif replace_additional_special_tokens:
                additional = tokens or additional
            else:
                tokens = [token for token in tokens if _content(token) not in self.additional_special_tokens]
                additional += tokens
            added += [token for token in tokens if token not in added]
        self._special.update(roles)
        self._additional = additional
        return self.add_tokens(added, special_tokens=True) if added else 0


def _content(token: Token) -> str:
    return token if isinstance(token, str) else token.content


def _checked_list(value: Any) -> list[Token]:
    if not isinstance(value, (list, tuple)):
        raise TypeError(f"{ADDITIONAL}: got {type(value).__name__}, expected a list of str or tokenizers.AddedToken.")
    return [as_added_token(ADDITIONAL, token) for token in value]
