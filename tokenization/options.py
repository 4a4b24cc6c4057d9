"""What the arguments of a call mean: texts, how they are cut and how they are filled up. Messages say what would be right."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

_log = logging.getLogger(__name__)

LONGEST, MAX_LENGTH, DO_NOT_PAD = "longest", "max_length", "do_not_pad"
PADDING = (LONGEST, MAX_LENGTH, DO_NOT_PAD)
DO_NOT_TRUNCATE = "do_not_truncate"
TRUNCATION = ("longest_first", "only_first", "only_second", DO_NOT_TRUNCATE)
SIDES = ("right", "left")
# What stands for "no limit" in configurations; larger than any length, and transformers' own number.
NO_LIMIT = int(1e30)
_LARGE = int(1e20)
# Arguments of transformers for which there is nothing here.
_ABSENT = frozenset((
    "commit_description", "commit_message", "create_pr", "gguf_file", "private", "proxies", "push_to_hub", "repo_id",
    "resume_download", "tags", "use_auth_token", "variant",
))  # fmt: skip


class Strategy(NamedTuple):
    """Resolved arguments: one of PADDING, one of TRUNCATION, and the length that they need, or None."""

    padding: str
    truncation: str
    max_length: int | None


class Once:
    """Warnings that a tokenizer gives a single time."""

    def __init__(self) -> None:
        self._given: set[str] = set()

    def warn(self, name: str, message: str, *values: Any) -> None:
        """Log a warning, unless one of that name was."""
        if name not in self._given:
            self._given.add(name)
            _log.warning(message, *values)


def checked_side(argument: str, value: Any) -> str:
    """ "right" or "left".

    Raises:
        ValueError: anything else.
    """
    if value not in SIDES:
        raise ValueError(f"{argument}: got {value!r}, expected 'right' or 'left'.")
    return str(value)


def strategy(
    padding: Any,
    truncation: Any,
    max_length: int | None,
    pad_to_multiple_of: int | None,
    *,
    model_max_length: int,
    can_pad: bool,
    once: Once,
    verbose: bool = True,
) -> Strategy:
    """Resolve ``padding`` and ``truncation`` as transformers does.

    ``max_length`` alone means truncation; ``True`` means "longest" and "longest_first"; without ``max_length`` the model's is
    taken, and where there is none nothing is cut or filled up.

    Raises:
        ValueError: an unknown strategy, no padding token, or a length that is no multiple of ``pad_to_multiple_of``.
    """
    checked_length("max_length", max_length, 0)
    checked_length("pad_to_multiple_of", pad_to_multiple_of, 1)
    if max_length is not None and padding is False and truncation is None:
        if verbose:
            once.warn("truncation", "max_length: got %d without truncation, which is taken as truncation=True.", max_length)
        truncation = TRUNCATION[0]
    if max_length is not None and max_length > _LARGE:
        raise ValueError(
            f"max_length: got {max_length}, expected a number of tokens. A model_max_length like this says of no limit: leave "
            "max_length and truncation out, or say how many tokens your model takes."
        )
    how_to_pad = _choice("padding", padding, PADDING)
    how_to_cut = _choice("truncation", truncation, TRUNCATION)
    if padding is True and max_length is not None and how_to_cut == DO_NOT_TRUNCATE and verbose:
        warnings.warn(
            "`max_length` is ignored when `padding`=`True` and there is no truncation strategy. "
            "To pad to max length, use `padding='max_length'`.",
            stacklevel=4,
        )
    if max_length is None and (how_to_pad == MAX_LENGTH or how_to_cut != DO_NOT_TRUNCATE):
        if model_max_length <= _LARGE:
            max_length = model_max_length
        else:
            if verbose:
                once.warn("no limit", "max_length: none given, and model_max_length says of none: lengths stay what they are.")
            how_to_pad = DO_NOT_PAD if how_to_pad == MAX_LENGTH else how_to_pad
            how_to_cut = DO_NOT_TRUNCATE
    if how_to_pad != DO_NOT_PAD and not can_pad:
        raise ValueError(
            "padding: got a strategy, but the tokenizer has no pad_token: set one (tokenizer.pad_token = tokenizer.eos_token), "
            "or add one with tokenizer.add_special_tokens({'pad_token': '<pad>'})."
        )
    both = how_to_pad != DO_NOT_PAD and how_to_cut != DO_NOT_TRUNCATE
    if both and pad_to_multiple_of is not None and max_length is not None and max_length % pad_to_multiple_of:
        raise ValueError(
            f"max_length: got {max_length}, expected a multiple of pad_to_multiple_of ({pad_to_multiple_of}), since texts are "
            "both cut and filled up to it."
        )
    return Strategy(how_to_pad, how_to_cut, max_length)


def _choice(argument: str, value: Any, allowed: tuple[str, ...]) -> str:
    """A strategy by name; True is the first, False and None are the last."""
    if value is True:
        return allowed[0]
    if value is False or value is None:
        return allowed[-1]
    if value in allowed:
        return allowed[allowed.index(value)]
    raise ValueError(f"{argument}: got {value!r}, expected True, False, {', '.join(map(repr, allowed))}.")


def without_absent(given: Mapping[str, Any], instead: str) -> dict[str, Any]:
    """The arguments without those of transformers that are not here, where they ask for nothing: None or False.

    Raises:
        NotImplementedError: one asks for something; ``instead`` says what to do.
    """
    for name, value in given.items():
        if name in _ABSENT and value is not None and value is not False:
            raise NotImplementedError(f"{name}: got {value!r}, expected None, for there is no such option here: {instead}.")
    return {name: value for name, value in given.items() if name not in _ABSENT}


def checked_length(argument: str, value: Any, least: int) -> None:
    """Refuse what is no number of tokens, nor None.

    Raises:
        TypeError: no integer.
        ValueError: too small.
    """
    if value is None:
        return
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{argument}: got {value!r}, expected an integer, or None.")
    if value < least:
        raise ValueError(f"{argument}: got {value}, expected at least {least}.")


def checked_cut(max_length: int, specials: int, stride: int) -> None:
    """Refuse a length that special tokens fill already, which the library would take for no limit at all, and rows that never
    move on, on which it prints a panic.

    Raises:
        ValueError: it is such.
    """
    if max_length < specials:
        raise ValueError(
            f"max_length: got {max_length}, expected at least {specials}, the number of special tokens in each row: a larger "
            "max_length, or add_special_tokens=False."
        )
    room = max_length - specials
    if stride and stride >= room:
        raise ValueError(
            f"stride: got {stride}, expected less than {room}, what max_length {max_length} leaves for a text: a smaller "
            "stride, or a larger max_length."
        )


def batch_of(text: Any, text_pair: Any, split_into_words: bool) -> tuple[list[Any], bool]:
    """The batch for the library, and whether the caller gave one.

    Returns:
        (texts, or tuples of two; whether ``text`` was a list of texts).

    Raises:
        ValueError: ``text`` and ``text_pair`` do not belong together, or are no texts.
        TypeError: one is a batch, the other is not.
    """
    for argument, value in (("text", text), ("text_pair", text_pair)):
        if not (_is_text(value) or (argument == "text_pair" and value is None)):
            raise ValueError(
                f"{argument}: got {_kind(value)}, expected a str, a list of str (texts, or with is_split_into_words=True the "
                "words of one text), or a list of lists of str (the words of texts)."
            )
    is_batch = isinstance(text, (list, tuple)) and (not split_into_words or bool(text and isinstance(text[0], (list, tuple))))
    if not is_batch:
        # An empty second text is none, to transformers; within a batch it is one.
        return [(text, text_pair) if text_pair else text], False
    if not text:
        raise ValueError("text: got an empty list, expected one text at least.")
    if text_pair is None:
        return list(text), True
    if isinstance(text_pair, str):
        raise TypeError("text_pair: got a str beside a list of texts, expected a list as long as text.")
    if len(text) != len(text_pair):
        raise ValueError(f"text_pair: got {len(text_pair)} texts, expected {len(text)}, as many as text.")
    return list(zip(text, text_pair, strict=True)), True


def _is_text(value: Any) -> bool:
    if isinstance(value, (list, tuple)) and value:
        first = value[0]
        return isinstance(first, str) or (isinstance(first, (list, tuple)) and (not first or isinstance(first[0], str)))
    return isinstance(value, (str, list, tuple))


def _kind(value: Any) -> str:
    inner = f" of {_kind(value[0])}" if isinstance(value, (list, tuple)) and value else ""
    return type(value).__name__ + inner


def explain(batch: Sequence[Any], split_into_words: bool, error: Exception) -> Exception:
    """The reason why the library refused a batch: it says neither which text nor where."""
    for number, item in enumerate(batch):
        is_pair = isinstance(item, (list, tuple)) and (not split_into_words or any(isinstance(x, (list, tuple)) for x in item))
        parts = item if is_pair else [item]
        if is_pair and len(parts) != 2:
            return TypeError(
                f"text: got a list of {len(parts)} as text {number}, expected a str or a pair; for words pass "
                "is_split_into_words=True."
            )
        for side, part in enumerate(parts):
            where = f"text {number}" + (f", part {side + 1}" if is_pair else "")
            words = part if split_into_words and isinstance(part, (list, tuple)) else [part]
            for place, word in enumerate(words):
                at = f"{where}, word {place}" if split_into_words else where
                if not isinstance(word, str):
                    return TypeError(f"text: got {type(word).__name__} as {at}, expected a str.")
                position = lone_surrogate(word)
                if position is not None:
                    return surrogate_error("text", at, word, position)
            if split_into_words and isinstance(part, str):
                return TypeError(f"text: got a str as {where}, expected its words, since is_split_into_words=True.")
    return error


def lone_surrogate(text: str) -> int | None:
    """The position of the first half of a UTF-16 pair without its other half, which UTF-8 cannot hold."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        return error.start
    return None


def surrogate_error(argument: str, where: str, text: str, position: int) -> ValueError:
    """What to say of a lone surrogate."""
    shown = text[max(0, position - 20) : position + 20]
    return ValueError(
        f"{argument}: got the lone surrogate {text[position]!r} in {where} at position {position} ({shown!r}), expected "
        "Unicode: read it with errors='replace', or take text.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace')."
    )
