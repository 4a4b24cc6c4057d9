"""Exact sliding-window and global attention: imports torch and, when its kernels run, triton; nothing else of this package."""

if __name__ == "kernels":
    raise ImportError("import longformer_triton.kernels instead: `kernels` alone is another package's name")

from longformer_triton.kernels.functional import (
    absorbed_global_attention,
    attention_probabilities,
    available_backends,
    longformer_attention,
    sliding_window_attention,
)
from longformer_triton.kernels.merge import merge_attention
from longformer_triton.kernels.pattern import AttentionPattern

__all__ = [
    "AttentionPattern",
    "absorbed_global_attention",
    "attention_probabilities",
    "available_backends",
    "longformer_attention",
    "merge_attention",
    "sliding_window_attention",
]
