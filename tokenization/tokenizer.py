"""Longformer's tokenizer: RoBERTa's byte-level BPE, under the names and with the results of transformers' fast class."""

from __future__ import annotations

import codecs
import os
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, models  # type: ignore[import-untyped]

from longformer_triton.tokenization import backend, files, loading, options, training
from longformer_triton.tokenization.calling import Calling
from longformer_triton.tokenization.special import NAMES, Token, copied

_ADDING = threading.Lock()


class LongformerTokenizer(Calling):
    """Cuts texts into tokens that Longformer and RoBERTa know, and puts ``<s>`` and ``</s>`` around them.

    One text becomes ``<s> A </s>``, a pair ``<s> A </s></s> B </s>``. Spaces belong to the word behind them, so a word at the
    beginning of a text is another token than the same word elsewhere. Several threads may share a tokenizer.

    Args:
        vocab_file, merges_file: paths of vocab.json and merges.txt.
        tokenizer_file: path of tokenizer.json, instead of these two.
        errors: what ``decode`` does with bytes that are no UTF-8, as :meth:`bytes.decode` has it.
        bos_token, eos_token, sep_token, cls_token, unk_token, pad_token, mask_token: the special tokens, or None.
        add_prefix_space: whether a space is put before each text that has none.
        trim_offsets: whether a token's characters leave out the spaces around it.
        tokenizer_object: a tokenizer of the `tokenizers` library, or a BPE model of it, instead of files.
        additional_special_tokens: more special tokens.
        model_max_length: tokens that the model takes; ``truncation=True`` cuts there. None: no limit, the number 1e30.
        padding_side, truncation_side: "right" or "left".
        model_input_names: entries that a call returns if it is not told otherwise.
        clean_up_tokenization_spaces: whether ``decode`` takes out spaces before punctuation.
        split_special_tokens: whether special tokens in texts are cut like any other text.
        added_tokens_decoder: {id: token} of what was added to the vocabulary, as tokenizer_config.json has it.
        name_or_path: where it came from.

    Raises:
        ValueError: no vocabulary, or files that hold none; an unknown side or ``errors``.

    Example:
        tokenizer = LongformerTokenizer.from_pretrained("allenai/longformer-base-4096")
        batch = tokenizer(texts, truncation=True, padding=True, return_tensors="pt", global_attention="first")
        model(**batch)
    """

    def __init__(
        self,
        vocab_file: str | os.PathLike[str] | None = None,
        merges_file: str | os.PathLike[str] | None = None,
        tokenizer_file: str | os.PathLike[str] | None = None,
        errors: str = "replace",
        bos_token: Token | None = "<s>",
        eos_token: Token | None = "</s>",
        sep_token: Token | None = "</s>",
        cls_token: Token | None = "<s>",
        unk_token: Token | None = "<unk>",
        pad_token: Token | None = "<pad>",
        mask_token: Token | None = "<mask>",
        add_prefix_space: bool = False,
        trim_offsets: bool = True,
        *,
        tokenizer_object: Tokenizer | models.BPE | None = None,
        additional_special_tokens: Iterable[Token] = (),
        model_max_length: int | None = None,
        padding_side: str = "right",
        truncation_side: str = "right",
        model_input_names: Sequence[str] = ("input_ids", "attention_mask"),
        clean_up_tokenization_spaces: bool = False,
        split_special_tokens: bool = False,
        added_tokens_decoder: Mapping[int, AddedToken] | None = None,
        name_or_path: str = "",
    ) -> None:
        try:
            codecs.lookup_error(errors)
        except (LookupError, TypeError):
            raise ValueError(
                f"errors: got {errors!r}, expected a handler of bytes.decode: 'replace', 'strict', 'ignore'."
            ) from None
        self.errors, self.add_prefix_space, self.trim_offsets = errors, add_prefix_space, trim_offsets
        self.model_max_length = options.NO_LIMIT if model_max_length is None else model_max_length
        self.padding_side = options.checked_side("padding_side", padding_side)
        self.truncation_side = options.checked_side("truncation_side", truncation_side)
        self.model_input_names = list(model_input_names)
        self.clean_up_tokenization_spaces, self.split_special_tokens = clean_up_tokenization_spaces, split_special_tokens
        self.name_or_path = name_or_path
        self._once, self._kept = options.Once(), dict[str, Any]()
        given = zip(NAMES, (bos_token, eos_token, unk_token, sep_token, pad_token, cls_token, mask_token), strict=True)
        if isinstance(mask_token, str):
            # <mask> stands for a word with the space before it.
            mask_token = AddedToken(mask_token, lstrip=True, rstrip=False, normalized=False)
        self._special, self._additional = {**dict(given), "mask_token": mask_token}, []
        for name, token in self._special.items():
            setattr(self, name, token)
        self.additional_special_tokens = list(additional_special_tokens)

        source: Tokenizer | models.BPE | None = tokenizer_object
        if source is None and tokenizer_file is not None:
            source = backend.from_tokenizer_file(os.fspath(tokenizer_file))
        elif source is None and vocab_file is not None and merges_file is not None:
            source = backend.from_vocabulary(os.fspath(vocab_file), os.fspath(merges_file))
        if source is None:
            raise ValueError(
                "vocab_file, merges_file: got none, expected both, or tokenizer_file; for a directory or a name on the hub "
                "call LongformerTokenizer.from_pretrained."
            )
        self._backend = self._built(source, dict(added_tokens_decoder or {}))

    def _built(self, source: Tokenizer | models.BPE, added: Mapping[int, AddedToken]) -> backend.Backend:
        """The library's pipeline, with the special and added tokens that ``source`` lacks or has with other settings."""
        if isinstance(source, models.BPE):
            base = backend.assemble(source, self.add_prefix_space)
            for name, token in self._special.items():
                if isinstance(token, str):
                    self._special[name] = AddedToken(token, lstrip=False, rstrip=False)
        else:
            backend.check_is_byte_level(source, "tokenizer_object")
            base = backend.sibling(source, {})
            base.pre_tokenizer = backend.rebuilt(base.pre_tokenizer, add_prefix_space=self.add_prefix_space)
        there, before = base.get_added_tokens_decoder(), backend.special_tokens(base)
        known = {repr(token) for token in there.values()}
        tokens: list[Token] = [token for _, token in sorted(added.items()) if repr(token) not in known]
        contents = {token.content for token in there.values()} | {str(getattr(token, "content", token)) for token in tokens}
        tokens += [
            token
            for token in self.all_special_tokens_extended
            if not (token in contents if isinstance(token, str) else token in tokens)
        ]
        specials = set(self.all_special_tokens)
        base.add_tokens(
            [
                AddedToken(token, special=token in specials)
                if isinstance(token, str)
                else copied(token, special=token.special or token.content in specials)
                for token in tokens
            ]
        )
        if isinstance(source, models.BPE):
            ends = [(token, base.token_to_id(token)) for token in (self.sep_token, self.cls_token) if token is not None]
            if len(ends) < 2:
                raise ValueError("sep_token, cls_token: got None, expected both: every row begins and ends with them.")
            base.post_processor = backend.template(
                *ends, add_prefix_space=self.add_prefix_space, trim_offsets=self.trim_offsets
            )
        else:
            changes = {"add_prefix_space": self.add_prefix_space, "trim_offsets": self.trim_offsets}
            base.post_processor = backend.rebuilt(base.post_processor, **changes)
        return backend.Backend(base, before)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        subfolder: str = "",
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        local_files_only: bool = False,
        force_download: bool = False,
        **overrides: Any,
    ) -> LongformerTokenizer:
        """Read a tokenizer from a directory, or from the hub.

        Args:
            pretrained_model_name_or_path: a directory with tokenizer.json, or vocab.json and merges.txt, and what else there
                is; or a name such as "allenai/longformer-base-4096", for which huggingface_hub has to be installed.
            subfolder: of the directory or the repository.
            revision, token, cache_dir, local_files_only, force_download: for the hub.
            overrides: arguments of the class that win over the files.

        Raises:
            ValueError: a file is missing (FileNotFoundError too), damaged, or no byte-level BPE.
            NotImplementedError: an option of transformers that is not here.
        """
        overrides = options.without_absent(overrides, "load a directory of files")
        hub = {"revision": revision, "token": token, "cache_dir": cache_dir}
        hub |= {"local_files_only": local_files_only, "force_download": force_download}
        folder = files.locate(pretrained_model_name_or_path, subfolder, **hub)
        # Arguments of transformers that choose among ways of which there is one here.
        overrides = {name: value for name, value in overrides.items() if name not in ("use_fast", "trust_remote_code")}
        arguments, kept = loading.arguments(folder, overrides)
        tokenizer = cls(**{"name_or_path": str(pretrained_model_name_or_path), **arguments})
        tokenizer._kept = kept
        return tokenizer

    @classmethod
    def train_from_files(
        cls,
        files: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
        vocab_size: int = 50265,
        *,
        min_frequency: int = 2,
        show_progress: bool = True,
        **arguments: Any,
    ) -> LongformerTokenizer:
        """Learn a vocabulary from text files, as RoBERTa's was; ``save_pretrained`` keeps it.

        Args:
            files: a path or several, in UTF-8; lines are texts.
            vocab_size: entries at most, 256 bytes and the special tokens included. The model's embeddings need as many rows.
            min_frequency: how often a pair has to occur to become a token.
            show_progress: whether to show bars on stderr.
            arguments: of the class.

        Raises:
            ValueError: no file, or one that is missing or not UTF-8; a ``vocab_size`` too small.
        """
        space = bool(arguments.get("add_prefix_space", False))
        model = training.train(
            files,
            vocab_size,
            special_tokens=training.special_tokens(arguments),
            min_frequency=min_frequency,
            add_prefix_space=space,
            show_progress=show_progress,
        )
        return cls(tokenizer_object=model, **arguments)

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        legacy_format: bool | None = None,
        filename_prefix: str | None = None,
        **hub: Any,
    ) -> tuple[str, ...]:
        """Write the files that this class and transformers read, all of them or none.

        Args:
            save_directory: made if it is not there.
            legacy_format: True: vocab.json and merges.txt; False: tokenizer.json; None: all of them. Configuration and special
                tokens come along.
            filename_prefix: of the names: "prefix-vocab.json".
            hub: options of transformers about the hub, which ask for nothing here.

        Returns:
            The paths written.

        Raises:
            ValueError: ``save_directory`` is a file.
            NotImplementedError: an option asks for something, ``push_to_hub=True``.
            TypeError: there is no such option.
        """
        others = options.without_absent(hub, "save, and upload with huggingface_hub.upload_folder")
        unknown = [name for name in others if name != "token"]  # which uploads nothing by itself
        if unknown:
            raise TypeError(f"{unknown[0]}: got an unexpected argument.")
        folder = Path(save_directory)
        if folder.is_file():
            raise ValueError(f"save_directory: got {folder}, which is a file, expected a directory.")
        writers, stale = loading.writers(self, self._kept, legacy_format, filename_prefix)
        files.replace(folder, writers, stale)
        return tuple(str(folder / name) for name in writers)

    def save_vocabulary(self, save_directory: str | os.PathLike[str], filename_prefix: str | None = None) -> tuple[str, str]:
        """Write vocab.json and merges.txt alone, and return their paths."""
        start = f"{filename_prefix}-" if filename_prefix else ""
        texts = loading.vocabulary(self)
        files.replace(Path(save_directory), {start + name: files.text_writer(text) for name, text in texts.items()})
        return str(Path(save_directory, start + files.VOCAB)), str(Path(save_directory, start + files.MERGES))

    def add_tokens(self, new_tokens: Token | Sequence[Token], special_tokens: bool = False) -> int:
        """Add tokens that are never cut, at the end of the vocabulary.

        Threads that encode at this moment go on with the vocabulary they began with.

        Args:
            new_tokens: texts, or tokenizers.AddedToken with settings about the spaces around them.
            special_tokens: whether ``decode(skip_special_tokens=True)`` leaves them out.

        Returns:
            How many the library took. The model's embeddings need more rows: ``resize_token_embeddings(len(tokenizer))``.
        """
        tokens = [new_tokens] if isinstance(new_tokens, (str, AddedToken)) else list(new_tokens or ())
        wrong = next((token for token in tokens if not isinstance(token, (str, AddedToken))), None)
        if wrong is not None:
            raise TypeError(f"new_tokens: got {type(wrong).__name__}, expected str or tokenizers.AddedToken.")
        if not tokens:
            return 0
        with _ADDING:
            self._backend, taken = self._backend.with_tokens(tokens, special_tokens)
        return taken


LongformerTokenizerFast = LongformerTokenizer
