"""The five tasks on top of the encoder, where each puts its global tokens, and collators that make batches for training."""

from longformer_triton.heads.collators import GlobalAttentionCollator, MaskedLanguageCollator
from longformer_triton.heads.masked_lm import LongformerForMaskedLM
from longformer_triton.heads.multiple_choice import LongformerForMultipleChoice
from longformer_triton.heads.question_answering import LongformerForQuestionAnswering
from longformer_triton.heads.sequence_classification import LongformerForSequenceClassification
from longformer_triton.heads.token_classification import LongformerForTokenClassification

__all__ = [
    "GlobalAttentionCollator",
    "LongformerForMaskedLM",
    "LongformerForMultipleChoice",
    "LongformerForQuestionAnswering",
    "LongformerForSequenceClassification",
    "LongformerForTokenClassification",
    "MaskedLanguageCollator",
]
