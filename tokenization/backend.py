"""The `tokenizers` library behind the tokenizer: built once, never changed, and seen through views with settings of their own.

The library keeps truncation and padding as state of the object that encodes. Setting it for each call, as transformers
does, fails when threads share a tokenizer. Here each combination of settings has an object of its own; all of them share one
vocabulary, so that a view costs microseconds and no lock is held while texts are encoded.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from tokenizers import AddedToken, Encoding, Tokenizer, decoders, models, pre_tokenizers, processors  # type: ignore[import-untyped]

# Programs use a handful of settings; one that counts max_length up must not fill the memory.
_VIEWS_KEPT = 32


def template(sep: tuple[str, int], cls: tuple[str, int], **settings: bool) -> processors.RobertaProcessing:
    """RoBERTa's ``<s> A </s></s> B </s>`` around texts; the library has renamed its arguments, but kept their order."""
    return processors.RobertaProcessing(sep, cls, **settings)


_BUILDERS = {"ByteLevel": pre_tokenizers.ByteLevel, "RobertaProcessing": template}


class Truncation(NamedTuple):
    """How the library cuts: its own arguments."""

    max_length: int
    stride: int
    strategy: str
    direction: str


class Padding(NamedTuple):
    """How the library fills up: its own arguments."""

    length: int | None
    direction: str
    pad_id: int
    pad_token: str
    pad_type_id: int
    pad_to_multiple_of: int | None


class Setting(NamedTuple):
    """What distinguishes one view of the backend from another.

    Attributes:
        add_prefix_space: before each text, and before each word of texts that are split; None: as the tokenizer was made.
        split_special: whether special tokens in the text are cut like any other.
        truncation, padding: None where there is none.
    """

    add_prefix_space: bool | None = None
    split_special: bool = False
    truncation: Truncation | None = None
    padding: Padding | None = None


class Backend:
    """A vocabulary with its added tokens, without truncation or padding of its own.

    Adding more tokens makes another backend, so that whoever encodes is not disturbed.

    Attributes:
        base: the library's tokenizer.
        specials: {text: token} of the tokens that were ever special. The library keeps such a set too, and does not tell it:
            a special token that is added again as a common one stays special, and its entry no longer says so.
    """

    def __init__(self, base: Tokenizer, specials: Mapping[str, AddedToken]) -> None:
        self.base, self.specials = base, {**special_tokens(base), **specials}
        self._views: dict[Setting, Tokenizer] = {Setting(): base}
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {"base": self.base, "specials": self.specials}

    def __setstate__(self, state: dict[str, Any]) -> None:
        # A pickled tokenizer of the library forgets its set.
        self.__init__(sibling(state["base"], state["specials"]), state["specials"])  # type: ignore[misc]

    def __deepcopy__(self, memo: dict[int, Any]) -> Backend:
        # Nothing here changes, so that copies may share it; the library would write 50,000 tokens as JSON and read them.
        return Backend(sibling(self.base, self.specials), self.specials)

    def with_tokens(self, tokens: Sequence[str | AddedToken], special: bool) -> tuple[Backend, int]:
        """A backend with more tokens, and how many of them the library took, new to the vocabulary or with new settings."""
        base = sibling(self.base, self.specials)
        taken = (base.add_special_tokens if special else base.add_tokens)(list(tokens))
        return Backend(base, self.specials), taken

    def view(self, setting: Setting) -> Tokenizer:
        """A tokenizer of the library with these settings."""
        found = self._views.get(setting)
        if found is not None:
            return found
        view = sibling(self.base, self.specials, setting.add_prefix_space)
        view.encode_special_tokens = setting.split_special
        if setting.truncation is not None:
            view.enable_truncation(**setting.truncation._asdict())
        if setting.padding is not None:
            view.enable_padding(**setting.padding._asdict())
        with self._lock:
            while len(self._views) >= _VIEWS_KEPT:
                self._views.pop(next(name for name in self._views if name != Setting()))
            return self._views.setdefault(setting, view)

    def encode(self, batch: Sequence[Any], setting: Setting, *, split_into_words: bool, special: bool) -> list[Encoding]:
        """Encode a batch on the library's threads.

        Raises:
            ValueError: the texts cannot be cut as ``setting`` says.
            TypeError: something is no text; :func:`longformer_triton.tokenization.options.explain` says which.
        """
        try:
            return self.view(setting).encode_batch(batch, is_pretokenized=split_into_words, add_special_tokens=special)
        except (TypeError, ValueError):
            raise
        except BaseException as error:
            if type(error) is not Exception and type(error).__name__ != "PanicException":
                raise
            cut = setting.truncation
            if cut is None:
                raise
            raise ValueError(
                f"truncation: got {cut.strategy!r} with max_length {cut.max_length} and stride {cut.stride}, which some text "
                f"of the batch is too short for, or has no second part for ({str(error).splitlines()[0]}). Expected a part "
                "longer than what has to go, and a stride shorter than what stays: 'longest_first', a larger max_length, or a "
                "smaller stride."
            ) from error


def from_vocabulary(vocab_file: str, merges_file: str) -> models.BPE:
    """The model in vocab.json and merges.txt.

    Raises:
        ValueError: they cannot be read as such.
    """
    try:
        return models.BPE.from_file(vocab_file, merges_file, continuing_subword_prefix="", end_of_word_suffix="")
    except Exception as error:
        raise ValueError(
            f"vocab_file, merges_file: {vocab_file} and {merges_file} cannot be read as byte-level BPE ({error}): expected a "
            "JSON object {token: id} and one merge of two tokens a line."
        ) from error


def from_tokenizer_file(tokenizer_file: str) -> Tokenizer:
    """The tokenizer in tokenizer.json.

    Raises:
        ValueError: it cannot be read, or is no byte-level BPE.
    """
    try:
        base = Tokenizer.from_file(tokenizer_file)
    except Exception as error:
        raise ValueError(f"tokenizer_file: {tokenizer_file} cannot be read ({error}): get the file again.") from error
    check_is_byte_level(base, tokenizer_file)
    return base


def check_is_byte_level(base: Tokenizer, where: str) -> None:
    """Refuse what is no byte-level BPE: a BERT vocabulary would load, and give nonsense.

    Raises:
        ValueError: it is none.
    """
    if not isinstance(base.model, models.BPE) or not isinstance(base.decoder, decoders.ByteLevel):
        raise ValueError(
            f"tokenizer_file: {where} holds a {type(base.model).__name__} model with a {type(base.decoder).__name__} decoder, "
            "expected byte-level BPE, as RoBERTa and Longformer have. transformers' AutoTokenizer reads it: in a loop of your "
            "own, models take its ids, and MaskedLanguageCollator its rows."
        )


def empty_model() -> models.BPE:
    """A model without a vocabulary, to be trained."""
    return models.BPE(continuing_subword_prefix="", end_of_word_suffix="")


def assemble(model: models.BPE, add_prefix_space: bool) -> Tokenizer:
    """RoBERTa's pipeline around a model, without its template, which needs the ids of the special tokens."""
    base = Tokenizer(model)
    base.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    base.decoder = decoders.ByteLevel()
    return base


def rebuilt(part: Any, **changes: bool) -> Any:
    """A pre-tokenizer or a post-processor with some settings changed; the same object where it has none of them."""
    if part is None:
        return None
    state = json.loads(part.__getstate__())
    kind = state.get("type")
    if kind not in _BUILDERS or all(state.get(name, value) == value for name, value in changes.items()):
        return part
    arguments = {name: tuple(value) if isinstance(value, list) else value for name, value in state.items() if name != "type"}
    return _BUILDERS[kind](**{**arguments, **{name: value for name, value in changes.items() if name in state}})


def special_tokens(base: Tokenizer) -> dict[str, AddedToken]:
    """{text: token} of the added tokens that say that they are special."""
    return {token.content: token for token in base.get_added_tokens_decoder().values() if token.special}


def sibling(base: Tokenizer, specials: Mapping[str, AddedToken], add_prefix_space: bool | None = None) -> Tokenizer:
    """Another tokenizer of the same vocabulary, which both share, and with the same ``specials``; see :class:`Backend`."""
    sibling = Tokenizer(base.model)
    if base.normalizer is not None:
        sibling.normalizer = base.normalizer
    changes = {} if add_prefix_space is None else {"add_prefix_space": add_prefix_space}
    sibling.pre_tokenizer = rebuilt(base.pre_tokenizer, **changes)
    if base.post_processor is not None:
        sibling.post_processor = rebuilt(base.post_processor, **changes)
    sibling.decoder = base.decoder
    # In the order of their ids, so that each gets the one it has; first as special, then with today's settings.
    tokens = [token for _, token in sorted(base.get_added_tokens_decoder().items())]
    sibling.add_tokens([specials.get(token.content, token) for token in tokens])
    sibling.add_tokens(tokens)
    return sibling
