"""Room of the tokenizer, on the `tokenizers` library, which is imported on first use. Imports no other room of this package."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from longformer_triton.tokenization import global_attention
    from longformer_triton.tokenization.encoding import BatchEncoding, CharSpan, TokenSpan
    from longformer_triton.tokenization.files import MissingTokenizerFileError, TokenizerFileError
    from longformer_triton.tokenization.tokenizer import LongformerTokenizer, LongformerTokenizerFast

_HOME_OF = {
    "BatchEncoding": "encoding",
    "CharSpan": "encoding",
    "LongformerTokenizer": "tokenizer",
    "LongformerTokenizerFast": "tokenizer",
    "MissingTokenizerFileError": "files",
    "TokenSpan": "encoding",
    "TokenizerFileError": "files",
}
__all__ = [
    "BatchEncoding",
    "CharSpan",
    "LongformerTokenizer",
    "LongformerTokenizerFast",
    "MissingTokenizerFileError",
    "TokenSpan",
    "TokenizerFileError",
    "global_attention",
]


def __getattr__(name: str) -> Any:
    if name == "global_attention":
        return importlib.import_module("longformer_triton.tokenization.global_attention")
    if name in _HOME_OF:
        return getattr(importlib.import_module(f"longformer_triton.tokenization.{_HOME_OF[name]}"), name)
    raise AttributeError(f"module 'longformer_triton.tokenization' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
