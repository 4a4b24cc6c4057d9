"""From texts to ids: what ``tokenizer(texts, ...)`` and its relatives do."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from longformer_triton.tokenization import global_attention as globals_
from longformer_triton.tokenization import options
from longformer_triton.tokenization import padding as _padding
from longformer_triton.tokenization.backend import Padding, Setting, Truncation
from longformer_triton.tokenization.decoding import Decoding
from longformer_triton.tokenization.encoding import BatchEncoding, check_tensor_type

if TYPE_CHECKING:
    from tokenizers import Encoding  # type: ignore[import-untyped]


class Calling(Decoding):
    """What a tokenizer does with texts.

    Attributes:
        model_max_length: where ``truncation=True`` cuts.
        padding_side, truncation_side: "right" or "left".
        model_input_names: entries that are returned if a call does not say.
        add_prefix_space, split_special_tokens: as the tokenizer was made; a call can say otherwise.
    """

    add_prefix_space: bool
    model_max_length: int
    padding_side: str
    truncation_side: str
    model_input_names: list[str]
    split_special_tokens: bool
    _once: options.Once

    def __call__(
        self,
        text: Any = None,
        text_pair: Any = None,
        text_target: Any = None,
        text_pair_target: Any = None,
        add_special_tokens: bool = True,
        padding: bool | str = False,
        truncation: bool | str | None = None,
        max_length: int | None = None,
        stride: int = 0,
        is_split_into_words: bool = False,
        pad_to_multiple_of: int | None = None,
        padding_side: str | None = None,
        return_tensors: str | None = None,
        return_token_type_ids: bool | None = None,
        return_attention_mask: bool | None = None,
        return_overflowing_tokens: bool = False,
        return_special_tokens_mask: bool = False,
        return_offsets_mapping: bool = False,
        return_length: bool = False,
        verbose: bool = True,
        *,
        split_special_tokens: bool | None = None,
        add_prefix_space: bool | None = None,
        global_attention: globals_.GlobalAttention | None = None,
    ) -> BatchEncoding:
        """Encode a text, a pair, or a batch of them.

        Args:
            text: a str; a list of str, which are texts, or with ``is_split_into_words`` the words of one text; or a list of
                lists of words.
            text_pair: of the same form, the second part of each row. An empty one beside a single text counts as none.
            text_target, text_pair_target: encoded likewise; their ids become ``labels``.
            add_special_tokens: whether ``<s>`` and ``</s>`` are put around.
            padding: True or "longest": to the longest row; "max_length": to ``max_length``; False: rows differ in length.
            truncation: True or "longest_first": token by token from the longer part; "only_first", "only_second": from that
                part; False. None: as True if there is ``max_length`` and no ``padding``.
            max_length: in tokens, special ones included; None: ``model_max_length``.
            stride: tokens that a row shares with the one it overflowed from.
            is_split_into_words: each word is encoded with a space before it, whatever ``add_prefix_space`` says.
            pad_to_multiple_of: the length of padded rows is a multiple of it, such as the attention window.
            padding_side: "right" or "left"; None: the tokenizer's.
            return_tensors: "pt" for PyTorch, "np" for NumPy, None for lists.
            return_token_type_ids, return_attention_mask: None: if ``model_input_names`` has them.
            return_overflowing_tokens: what truncation cuts off becomes further rows; ``overflow_to_sample_mapping`` says of
                which text.
            return_special_tokens_mask: 1 for special tokens and padding.
            return_offsets_mapping: (first character, one past the last) of each token in its text; (0, 0) for special tokens.
            return_length: the number of tokens of each row, padding included.
            verbose: whether to warn.
            split_special_tokens: whether special tokens in the text are cut like other text; None: as the tokenizer was made.
            add_prefix_space: whether a space is put before texts without one; None: as the tokenizer was made.
            global_attention: adds ``global_attention_mask``, 0 on padding: "first" for classification, "question" for question
                answering on pairs, "none", or a function of the encoded batch; see
                :mod:`longformer_triton.tokenization.global_attention`.

        Returns:
            :class:`BatchEncoding`: ``input_ids``, ``attention_mask``, and what was asked for.

        Raises:
            ValueError: arguments that do not fit each other, texts that cannot be cut as asked, a lone surrogate.
            TypeError: something that is no text.
        """
        shared = {name: value for name, value in locals().items() if name not in _TEXTS}
        if text is None and text_target is None:
            raise ValueError("text: got None, expected a text, or text_target.")
        check_tensor_type("return_tensors", return_tensors)
        found = None if text is None else self._called(text, text_pair, **shared)
        if text_target is None:
            assert found is not None
            return found
        target = self._called(text_target, text_pair_target, **{**shared, "global_attention": None})
        if found is None:
            return target
        found["labels"] = target["input_ids"]
        return found

    def _called(self, text: Any, text_pair: Any, *, verbose: bool, **call: Any) -> BatchEncoding:
        """Encode texts, with the arguments of ``__call__``."""
        split = call["is_split_into_words"]
        batch, is_batch = options.batch_of(text, text_pair, split)
        how = self._strategy(call["padding"], call["truncation"], call["max_length"], call["pad_to_multiple_of"], verbose)
        is_pair = isinstance(batch[0], tuple) if text_pair else not split and not isinstance(batch[0], str)
        specials = self.num_special_tokens_to_add(is_pair) if call["add_special_tokens"] else 0
        setting = self._setting(how, specials, call)
        try:
            encodings = self._backend.encode(batch, setting, split_into_words=split, special=call["add_special_tokens"])
        except TypeError as error:
            raise options.explain(batch, split, error) from error
        overflows = call["return_overflowing_tokens"]
        # The library copies overflowing rows each time it is asked for them.
        groups = [(first, *first.overflowing) for first in encodings] if overflows else [(first,) for first in encodings]
        rows = list(itertools.chain.from_iterable(groups))
        data = self._entries(rows, call)
        if overflows:
            data["overflow_to_sample_mapping"] = [number for number, group in enumerate(groups) for _ in group]
        longest = max(map(len, rows))
        if how.max_length is None and verbose and longest > self.model_max_length:
            message = (
                "texts: got %d tokens, more than model_max_length, %d: the model has no positions for them. Pass truncation."
            )
            self._once.warn("too long", message, longest, self.model_max_length)
        wanted = call["global_attention"]
        if wanted is not None:
            data["global_attention_mask"] = globals_.rows_for(wanted, BatchEncoding(data, rows))
        tensors = call["return_tensors"]
        if is_batch or overflows or tensors is not None:
            return BatchEncoding(data, rows, tensors)
        return BatchEncoding({name: value[0] if isinstance(value[0], list) else value for name, value in data.items()}, rows)

    def _strategy(
        self, padding: Any, truncation: Any, max_length: int | None, multiple: int | None, verbose: bool
    ) -> options.Strategy:
        return options.strategy(
            padding,
            truncation,
            max_length,
            multiple,
            model_max_length=self.model_max_length,
            can_pad=self.pad_token is not None,
            once=self._once,
            verbose=verbose,
        )

    def _setting(self, how: options.Strategy, specials: int, call: Mapping[str, Any]) -> Setting:
        """The arguments that the library keeps as state."""
        truncation = fill = None
        options.checked_length("stride", call["stride"], 0)
        if how.truncation != options.DO_NOT_TRUNCATE:
            assert how.max_length is not None
            options.checked_cut(how.max_length, specials, call["stride"])
            side = options.checked_side("truncation_side", self.truncation_side)
            truncation = Truncation(how.max_length, call["stride"], how.truncation, side)
        if how.padding != options.DO_NOT_PAD:
            side = options.checked_side("padding_side", call["padding_side"] or self.padding_side)
            length = how.max_length if how.padding == options.MAX_LENGTH else None
            assert self.pad_token is not None
            assert self.pad_token_id is not None
            multiple = call["pad_to_multiple_of"]
            fill = Padding(length, side, self.pad_token_id, self.pad_token, self.pad_token_type_id, multiple)
        prefix = True if call["is_split_into_words"] else call["add_prefix_space"]
        split = self.split_special_tokens if call["split_special_tokens"] is None else call["split_special_tokens"]
        return Setting(None if prefix == self.add_prefix_space else prefix, bool(split), truncation, fill)

    def _entries(self, rows: Sequence[Encoding], call: Mapping[str, Any]) -> dict[str, Any]:
        """{name: a list for each row}, in transformers' order."""
        types, mask = call["return_token_type_ids"], call["return_attention_mask"]
        data: dict[str, Any] = {"input_ids": [row.ids for row in rows]}
        if "token_type_ids" in self.model_input_names if types is None else types:
            data["token_type_ids"] = [row.type_ids for row in rows]
        if "attention_mask" in self.model_input_names if mask is None else mask:
            data["attention_mask"] = [row.attention_mask for row in rows]
        if call["return_special_tokens_mask"]:
            data["special_tokens_mask"] = [row.special_tokens_mask for row in rows]
        if call["return_offsets_mapping"]:
            data["offset_mapping"] = [row.offsets for row in rows]
        if call["return_length"]:
            data["length"] = list(map(len, rows))
        return data

    def encode(self, text: Any, text_pair: Any = None, add_special_tokens: bool = True, **options_: Any) -> Any:
        """The ids of one text or pair: a list, or what ``return_tensors`` asks for. Other arguments as for a call."""
        return self._one("text", text, text_pair, add_special_tokens=add_special_tokens, **options_)["input_ids"]

    def tokenize(self, text: Any, pair: Any = None, add_special_tokens: bool = False, **options_: Any) -> list[str]:
        """The tokens of one text or pair as texts, in which ``Ġ`` stands for a space. Other arguments as for a call."""
        return self._one("text", text, pair, add_special_tokens=add_special_tokens, **options_).tokens()

    def _one(self, argument: str, text: Any, pair: Any, **options_: Any) -> BatchEncoding:
        is_words = options_.get("is_split_into_words") and not (text and isinstance(text[0], (list, tuple)))
        if not isinstance(text, str) and not is_words:
            raise ValueError(
                f"{argument}: got {type(text).__name__}, expected one str (or its words, with is_split_into_words=True); for "
                "several texts call the tokenizer."
            )
        return self(text, pair, **options_)

    def pad(
        self,
        encoded_inputs: Any,
        padding: bool | str = True,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        padding_side: str | None = None,
        return_attention_mask: bool | None = None,
        return_tensors: str | None = None,
        verbose: bool = True,
    ) -> BatchEncoding:
        """Fill up rows that are encoded already, as a data loader's collator does.

        Ids, masks, token types and ``global_attention_mask`` (with 0) grow; other entries are kept as they are.

        Args:
            encoded_inputs: one row, a batch, or a list of rows, as the tokenizer returns them; it is not changed.
            padding, max_length, pad_to_multiple_of, padding_side, return_attention_mask, verbose: as for a call.
            return_tensors: "pt", "np", or None for the kind given.

        Raises:
            ValueError, TypeError: no rows, or rows with different entries.
        """
        check_tensor_type("return_tensors", return_tensors)
        how = self._strategy(padding, None, max_length, None, verbose)
        options.checked_length("pad_to_multiple_of", pad_to_multiple_of, 1)
        main = self.model_input_names[0]
        values = {
            main: self.pad_token_id or 0,
            "attention_mask": 0,
            "token_type_ids": self.pad_token_type_id,
            "special_tokens_mask": 1,
            "global_attention_mask": 0,
        }
        mask = "attention_mask" in self.model_input_names if return_attention_mask is None else return_attention_mask
        if not mask:
            del values["attention_mask"]
        side = options.checked_side("padding_side", padding_side or self.padding_side)
        filling = _padding.Filling(how.padding, how.max_length, pad_to_multiple_of, side, main, values, mask)
        return _padding.pad(encoded_inputs, filling, return_tensors)

    def num_special_tokens_to_add(self, pair: bool = False) -> int:
        """How many special tokens a text, or a pair, gets."""
        return self.backend_tokenizer.num_special_tokens_to_add(pair)

    @property
    def max_len_single_sentence(self) -> int:
        """Tokens that a text may have besides the special ones."""
        return self.model_max_length - self.num_special_tokens_to_add(False)

    @property
    def max_len_sentences_pair(self) -> int:
        """Tokens that the two texts of a pair may have besides the special ones."""
        return self.model_max_length - self.num_special_tokens_to_add(True)

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(name_or_path={getattr(self, 'name_or_path', '')!r}, vocab_size={self.vocab_size}, "
            f"len={len(self)}, model_max_length={self.model_max_length}, padding_side={self.padding_side!r}, "
            f"truncation_side={self.truncation_side!r}, special_tokens={self.special_tokens_map})"
        )


_TEXTS = ("self", "text", "text_pair", "text_target", "text_pair_target")
