"""The five tasks on top of the encoder, and where each puts its global tokens."""

from longformer_triton.heads.masked_lm import LongformerForMaskedLM
from longformer_triton.heads.multiple_choice import LongformerForMultipleChoice
from longformer_triton.heads.question_answering import LongformerForQuestionAnswering
from longformer_triton.heads.sequence_classification import LongformerForSequenceClassification
from longformer_triton.heads.token_classification import LongformerForTokenClassification

__all__ = [
    "LongformerForMaskedLM",
    "LongformerForMultipleChoice",
    "LongformerForQuestionAnswering",
    "LongformerForSequenceClassification",
    "LongformerForTokenClassification",
]
