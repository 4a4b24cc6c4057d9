"""The encoder: configuration, embeddings, layers, outputs, checkpoints. Imports `kernels` and nothing else of this package."""

from longformer_triton.model.config import LongformerConfig
from longformer_triton.model.files import CheckpointError
from longformer_triton.model.longformer import LongformerModel
from longformer_triton.model.outputs import (
    LongformerBaseModelOutput,
    LongformerBaseModelOutputWithPooling,
    LongformerMaskedLMOutput,
    LongformerMultipleChoiceModelOutput,
    LongformerQuestionAnsweringModelOutput,
    LongformerSequenceClassifierOutput,
    LongformerTokenClassifierOutput,
)

__all__ = [
    "CheckpointError",
    "LongformerBaseModelOutput",
    "LongformerBaseModelOutputWithPooling",
    "LongformerConfig",
    "LongformerMaskedLMOutput",
    "LongformerModel",
    "LongformerMultipleChoiceModelOutput",
    "LongformerQuestionAnsweringModelOutput",
    "LongformerSequenceClassifierOutput",
    "LongformerTokenClassifierOutput",
]
