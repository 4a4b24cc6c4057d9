"""Vocabularies of one's own: byte-level BPE from text files, in the layout that Longformer expects."""

from __future__ import annotations

import numbers
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import pre_tokenizers, trainers  # type: ignore[import-untyped]

from longformer_triton.tokenization import backend

if TYPE_CHECKING:
    from tokenizers import models

# The order of RoBERTa's first ids, which model configurations rely on: pad_token_id 1, sep_token_id 2.
_ORDER = ("bos_token", "cls_token", "pad_token", "eos_token", "sep_token", "unk_token", "mask_token")
_USUAL = ("<s>", "<s>", "<pad>", "</s>", "</s>", "<unk>", "<mask>")
_BYTES = 256


def special_tokens(arguments: Mapping[str, Any]) -> list[str]:
    """The special tokens that arguments of the class ask for, each once: those with a role first, then additional ones."""
    given = [arguments.get(name, usual) for name, usual in zip(_ORDER, _USUAL, strict=True)]
    tokens = [*given, *arguments.get("additional_special_tokens", ())]
    return list(dict.fromkeys(getattr(token, "content", token) for token in tokens if token is not None))


def train(
    files: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    vocab_size: int,
    *,
    special_tokens: Sequence[str],
    min_frequency: int,
    add_prefix_space: bool,
    show_progress: bool,
) -> models.BPE:
    """Learn merges from files; arguments as :meth:`LongformerTokenizer.train_from_files`.

    Raises:
        ValueError: no file, one that is missing, empty or not UTF-8, or a size that the bytes alone fill.
        TypeError: a size that is no whole number.
    """
    if isinstance(files, (str, os.PathLike)):
        files = [files]
    paths = [Path(file) for file in files]
    if not paths:
        raise ValueError("files: got none, expected paths of text files.")
    for path in paths:
        if not path.is_file():
            raise ValueError(f"files: got {path}, which is no file, expected paths of text files in UTF-8.")
    least = _BYTES + len(special_tokens)
    for name, number in (("vocab_size", vocab_size), ("min_frequency", min_frequency)):
        if isinstance(number, bool) or not isinstance(number, numbers.Integral):
            raise TypeError(f"{name}: got {number!r}, expected a whole number.")
    if vocab_size < least:
        raise ValueError(
            f"vocab_size: got {vocab_size}, expected at least {least}: {_BYTES} bytes and {len(special_tokens)} special "
            "tokens, with which any text can be written. RoBERTa has 50265."
        )
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        special_tokens=list(special_tokens),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=show_progress,
    )
    base = backend.assemble(backend.empty_model(), add_prefix_space)
    try:
        base.train([str(path) for path in paths], trainer)
    except Exception as error:
        raise ValueError(
            f"files: training failed ({error}); expected text files in UTF-8: {', '.join(map(str, paths[:5]))}."
        ) from error
    return base.model
