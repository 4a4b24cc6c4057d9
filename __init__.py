"""Longformer's attention as fused kernels, and everything around them. The public names load on first use."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from longformer_triton.kernels import (
        AttentionPattern,
        absorbed_global_attention,
        attention_probabilities,
        available_backends,
        longformer_attention,
        merge_attention,
        sliding_window_attention,
    )

    __version__: str

__all__ = [
    "AttentionPattern",
    "absorbed_global_attention",
    "attention_probabilities",
    "available_backends",
    "longformer_attention",
    "merge_attention",
    "sliding_window_attention",
]
_HOME_OF = dict.fromkeys(__all__, "longformer_triton.kernels")


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return importlib.import_module("importlib.metadata").version("longformer-triton")
    if name in _HOME_OF:
        return getattr(importlib.import_module(_HOME_OF[name]), name)
    raise AttributeError(f"module 'longformer_triton' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME_OF, "__version__"])
