"""Longformer's attention as fused kernels, and everything around them. The public names load on first use."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from longformer_triton.heads import (
        GlobalAttentionCollator,
        LongformerForMaskedLM,
        LongformerForMultipleChoice,
        LongformerForQuestionAnswering,
        LongformerForSequenceClassification,
        LongformerForTokenClassification,
        MaskedLanguageCollator,
    )
    from longformer_triton.heads.conversion import convert_to_longformer
    from longformer_triton.heads.pipelines import pipeline
    from longformer_triton.kernels import (
        AttentionPattern,
        absorbed_global_attention,
        attention_probabilities,
        available_backends,
        longformer_attention,
        merge_attention,
        sliding_window_attention,
    )
    from longformer_triton.model import (
        LongformerBaseModelOutput,
        LongformerBaseModelOutputWithPooling,
        LongformerConfig,
        LongformerMaskedLMOutput,
        LongformerModel,
        LongformerMultipleChoiceModelOutput,
        LongformerQuestionAnsweringModelOutput,
        LongformerSequenceClassifierOutput,
        LongformerTokenClassifierOutput,
    )
    from longformer_triton.model.memory import MemoryEstimate, estimate_memory
    from longformer_triton.model.patching import patch_transformers, unpatch_transformers
    from longformer_triton.tokenization import LongformerTokenizer, LongformerTokenizerFast

    __version__: str

_ROOMS = {
    "longformer_triton.heads": (
        "GlobalAttentionCollator",
        "LongformerForMaskedLM",
        "LongformerForMultipleChoice",
        "LongformerForQuestionAnswering",
        "LongformerForSequenceClassification",
        "LongformerForTokenClassification",
        "MaskedLanguageCollator",
    ),
    "longformer_triton.heads.conversion": ("convert_to_longformer",),
    "longformer_triton.heads.pipelines": ("pipeline",),
    "longformer_triton.kernels": (
        "AttentionPattern",
        "absorbed_global_attention",
        "attention_probabilities",
        "available_backends",
        "longformer_attention",
        "merge_attention",
        "sliding_window_attention",
    ),
    "longformer_triton.model": (
        "LongformerBaseModelOutput",
        "LongformerBaseModelOutputWithPooling",
        "LongformerConfig",
        "LongformerMaskedLMOutput",
        "LongformerModel",
        "LongformerMultipleChoiceModelOutput",
        "LongformerQuestionAnsweringModelOutput",
        "LongformerSequenceClassifierOutput",
        "LongformerTokenClassifierOutput",
    ),
    "longformer_triton.model.memory": ("MemoryEstimate", "estimate_memory"),
    "longformer_triton.model.patching": ("patch_transformers", "unpatch_transformers"),
    "longformer_triton.tokenization": ("LongformerTokenizer", "LongformerTokenizerFast"),
}
_HOME_OF = {name: room for room, names in _ROOMS.items() for name in names}
__all__ = [
    "AttentionPattern",
    "GlobalAttentionCollator",
    "LongformerBaseModelOutput",
    "LongformerBaseModelOutputWithPooling",
    "LongformerConfig",
    "LongformerForMaskedLM",
    "LongformerForMultipleChoice",
    "LongformerForQuestionAnswering",
    "LongformerForSequenceClassification",
    "LongformerForTokenClassification",
    "LongformerMaskedLMOutput",
    "LongformerModel",
    "LongformerMultipleChoiceModelOutput",
    "LongformerQuestionAnsweringModelOutput",
    "LongformerSequenceClassifierOutput",
    "LongformerTokenClassifierOutput",
    "LongformerTokenizer",
    "LongformerTokenizerFast",
    "MaskedLanguageCollator",
    "MemoryEstimate",
    "absorbed_global_attention",
    "attention_probabilities",
    "available_backends",
    "convert_to_longformer",
    "estimate_memory",
    "longformer_attention",
    "merge_attention",
    "patch_transformers",
    "pipeline",
    "sliding_window_attention",
    "unpatch_transformers",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return importlib.import_module("importlib.metadata").version("longformer-triton")
    if name in _HOME_OF:
        return getattr(importlib.import_module(_HOME_OF[name]), name)
    raise AttributeError(f"module 'longformer_triton' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME_OF, "__version__"])
