"""A tokenizer with a small vocabulary of its own, in which given words are one token each."""

from __future__ import annotations

import pathlib
from collections.abc import Iterable

from tokenizers import ByteLevelBPETokenizer

from longformer_triton.tokenization import LongformerTokenizer

SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]


def tokenizer_of(words: Iterable[str], folder: pathlib.Path) -> LongformerTokenizer:
    """Train a vocabulary on ``words``, long enough for each (with a space before it) to become one token, and load it."""
    trainer = ByteLevelBPETokenizer()
    trainer.train_from_iterator([f" {word}" for word in words for _ in range(3)], vocab_size=2000, special_tokens=SPECIAL)
    folder.mkdir(parents=True, exist_ok=True)
    trainer.save_model(str(folder))
    return LongformerTokenizer.from_pretrained(folder)
