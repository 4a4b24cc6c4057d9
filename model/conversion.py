"""RoBERTa, XLM-RoBERTa, CamemBERT and BERT checkpoints in Longformer's terms: which task, which configuration, which names.

All four are one encoder under several names; BERT's differs in where positions begin and in what its heads are called. What
cannot become a Longformer that computes the same is refused here, by name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from longformer_triton.kernels.backends import LARGEST_HEAD_DIM
from longformer_triton.model import settings
from longformer_triton.model.config import LongformerConfig
from longformer_triton.model.files import CONFIG_NAME, CheckpointError, read_json
from longformer_triton.model.loading import modern_name

ENCODER = "LongformerModel"
# What each kind's configuration class takes for what config.json leaves out, where Longformer's would take something else.
# RoBERTa's tokenizers end parts of a text with </s>, so that eos_token_id separates; BERT's [SEP] is in its vocabulary alone.
KINDS: dict[str, dict[str, Any]] = {
    "roberta": {"vocab_size": 50265},
    "xlm-roberta": {},
    "camembert": {},
    "bert": {"pad_token_id": 0, "bos_token_id": None, "eos_token_id": None},
}
# {class: {prefix of a head's tensors in the source: prefix here}}.
_ROBERTA_HEADS = {
    "LongformerForMaskedLM": {"lm_head.": "lm_head."},
    "LongformerForSequenceClassification": {"classifier.": "classifier."},
    "LongformerForMultipleChoice": {"classifier.": "classifier."},
    "LongformerForTokenClassification": {"classifier.": "classifier."},
    "LongformerForQuestionAnswering": {"qa_outputs.": "qa_outputs."},
}
# BERT classifies texts by its pooler and a projection, which are the two layers of Longformer's classification head.
_BERT_HEADS = {
    **_ROBERTA_HEADS,
    "LongformerForMaskedLM": {
        "cls.predictions.transform.dense.": "lm_head.dense.",
        "cls.predictions.transform.LayerNorm.": "lm_head.layer_norm.",
        "cls.predictions.decoder.": "lm_head.decoder.",
        "cls.predictions.bias": "lm_head.bias",
    },
    "LongformerForSequenceClassification": {"classifier.": "classifier.out_proj."},
}
_ARCHITECTURE = re.compile(r"(?:XLMRoberta|Roberta|Camembert|Bert)(For\w+)")
_POSITIONS = "embeddings.position_embeddings.weight"
POOLER = "pooler.dense."
# Entries that speak of the source's class or file, or that mean nothing to a Longformer.
_DROPPED = (
    "_name_or_path", "add_cross_attention", "architectures", "classifier_dropout", "is_decoder", "model_type",
    "position_embedding_type", "transformers_version", "use_cache",
)  # fmt: skip
# Buffers that older versions stored.
_BUFFERS = ("embeddings.position_ids", "embeddings.token_type_ids")


def read_source(folder: Path) -> dict[str, Any]:
    """config.json of a checkpoint that can be converted.

    Raises:
        CheckpointError: it is missing, or of a kind that cannot be.
        NotImplementedError: the kind can be, but not with what this one says: a decoder, relative positions.
    """
    path = folder / CONFIG_NAME
    entries = read_json(path)
    kind = entries.get("model_type")
    if kind == LongformerConfig.model_type:
        raise CheckpointError(
            f"{path}: is a Longformer already: from_pretrained loads it, and resize_position_embeddings(n) makes it longer."
        )
    if kind not in KINDS:
        raise CheckpointError(
            f"{path}: got model_type {kind!r}, expected one of {', '.join(KINDS)}: other encoders compute something else than "
            "Longformer's layers do."
        )
    settings.check_is_encoder(entries, path)
    return entries


def class_of(entries: Mapping[str, Any], names: Iterable[str], wanted: str | None) -> str:
    """The class here that has the source's task; the encoder's, if Longformer has no such task.

    Args:
        entries: of the source's config.json, whose ``architectures`` say.
        names: of its tensors, some of which only one task has; asked where nothing else says.
        wanted: the class that is to come out, which is believed where ``architectures`` are missing.
    """
    architectures = entries.get("architectures") or ()
    if architectures:
        found = _ARCHITECTURE.fullmatch(str(architectures[0]))
        # BERT's own training is on masked words, and on whether two sentences follow each other.
        task = found[1].replace("ForPreTraining", "ForMaskedLM") if found else ""
        return f"Longformer{task}" if f"Longformer{task}" in _ROBERTA_HEADS else ENCODER
    if wanted is not None:
        return wanted
    starts = {name.split(".")[0] for name in names}
    if starts & {"lm_head", "cls"}:
        return "LongformerForMaskedLM"
    return "LongformerForQuestionAnswering" if "qa_outputs" in starts else ENCODER


def configuration(entries: Mapping[str, Any], attention_window: int | list[int], sep_token_id: int | None) -> LongformerConfig:
    """The Longformer's configuration, as yet with no more positions than the source.

    Args:
        entries: of the source's config.json.
        attention_window: of the result.
        sep_token_id: of the result; None if unknown.

    Raises:
        ValueError, TypeError: a field does not fit, with its name.
    """
    kind = entries["model_type"]
    kept = {name: value for name, value in entries.items() if name not in _DROPPED}
    given = {"attention_window": attention_window, "sep_token_id": sep_token_id}
    config = LongformerConfig.from_dict({**KINDS[kind], **kept, **given})
    if kind == "bert":
        # Its positions begin at 0, Longformer's after those of padding.
        config.max_position_embeddings += config.pad_token_id + 1
    head_dim = config.hidden_size // config.num_attention_heads
    if head_dim > LARGEST_HEAD_DIM:
        raise ValueError(
            f"num_attention_heads: got {config.num_attention_heads} of {head_dim} dimensions each, expected at most "
            f"{LARGEST_HEAD_DIM}, the most that the kernels take."
        )
    return config


def check_head(entries: Mapping[str, Any], head: str) -> None:
    """Refuse a head that would compute something else here.

    Raises:
        NotImplementedError: the activation of a BERT's masked language model is not the one that Longformer's head has.
    """
    activation = entries.get("hidden_act", "gelu")
    if entries["model_type"] == "bert" and head == "LongformerForMaskedLM" and activation != "gelu":
        raise NotImplementedError(
            f"hidden_act: got {activation!r} in the head of a BERT that predicts words, expected 'gelu', which Longformer's "
            f"head always has: architecture={ENCODER!r} converts the encoder alone."
        )


def check_positions(max_positions: int, config: LongformerConfig) -> None:
    """Refuse a position table that would be shorter than the source's.

    Raises:
        ValueError, TypeError: so it would be, or ``max_positions`` is no number.
    """
    if not isinstance(max_positions, int) or isinstance(max_positions, bool):
        raise TypeError(f"max_positions: got {max_positions!r}, expected an int, rows of the position table.")
    if max_positions < config.max_position_embeddings:
        first = config.pad_token_id + 1
        raise ValueError(
            f"max_positions: got {max_positions}, expected at least {config.max_position_embeddings}: {first} rows of padding "
            f"and the {config.max_position_embeddings - first} positions that the source has learned."
        )


def renamed(tensors: Mapping[str, Tensor], kind: str, head: str, first: int) -> tuple[dict[str, Tensor], list[str]]:
    """({name in a Longformer: tensor}, names of those that it has no place for).

    Encoder and pooler go without a prefix, as in a bare encoder.

    Args:
        tensors: of the source.
        kind: its model_type.
        head: the class whose head it has and is to keep, or the encoder's.
        first: the position of the first token of a Longformer.
    """
    heads = (_BERT_HEADS if kind == "bert" else _ROBERTA_HEADS).get(head, {})
    found: dict[str, Tensor] = {}
    left_out = []
    for name, tensor in tensors.items():
        bare = modern_name(name).removeprefix("bert.").removeprefix("roberta.")
        if bare in _BUFFERS:
            continue
        start = next((start for start in heads if bare.startswith(start)), None)
        if bare.split(".")[0] in ("embeddings", "encoder", "pooler"):
            found[bare] = tensor
        elif start is not None:
            found[heads[start] + bare.removeprefix(start)] = tensor
        else:
            left_out.append(name)
    if kind == "bert":
        _as_roberta(found, head, first)
    return found, left_out


def _as_roberta(found: dict[str, Tensor], head: str, first: int) -> None:
    """What BERT computes otherwise: positions that begin at 0, and the pooler as the first layer of a classification head.

    The rows in front are zeros, as that of padding is in a new table; no real token reads them.
    """
    positions = found.get(_POSITIONS)
    if positions is not None:
        found[_POSITIONS] = torch.cat((positions.new_zeros(first, *positions.shape[1:]), positions))
    if head == "LongformerForSequenceClassification":
        pooler = {name: tensor for name, tensor in found.items() if name.startswith(POOLER)}
        found.update({name.replace(POOLER, "classifier.dense."): tensor for name, tensor in pooler.items()})
