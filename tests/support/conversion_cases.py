"""Tiny checkpoints of the kinds that become Longformers, made by transformers, and texts that source and result compute."""

from __future__ import annotations

import copy
import pathlib
from typing import Any

import torch
from model_cases import filled
from torch import Tensor

KINDS = {"roberta": "Roberta", "xlm-roberta": "XLMRoberta", "camembert": "Camembert", "bert": "Bert"}
TASKS = (
    "Model",
    "ForMaskedLM",
    "ForSequenceClassification",
    "ForMultipleChoice",
    "ForTokenClassification",
    "ForQuestionAnswering",
)
# Positions that a source has learned, and a window that covers every text it can read.
LEARNED, WINDOW = 24, 64
SEPARATOR = 2
SIZES: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 20,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-5,
}


def source(kind: str, task: str = "Model", learned: int = LEARNED, **options: Any) -> Any:
    """A model of transformers with random weights, in evaluation mode; ``learned`` positions besides rows of padding."""
    import transformers

    first = 0 if kind == "bert" else options.get("pad_token_id", 1) + 1
    config = getattr(transformers, f"{KINDS[kind]}Config")(**{**SIZES, "max_position_embeddings": learned + first, **options})
    return filled(getattr(transformers, f"{KINDS[kind]}{task}")(config)).eval()


def saved(folder: pathlib.Path, kind: str, task: str = "Model", **options: Any) -> Any:
    """:func:`source`, written to ``folder`` by transformers."""
    model = source(kind, task, **options)
    model.save_pretrained(folder)
    return model


def texts(model: Any, seq_len: int = LEARNED - 4, *, types: bool = True) -> dict[str, Tensor]:
    """Arguments of a forward pass: two texts of three separators each, one padded on the right, with token types."""
    padding = model.config.pad_token_id
    ids = torch.randint(max(3, padding + 1), model.config.vocab_size, (2, seq_len))
    ids[:, [3, 4, seq_len // 2]] = SEPARATOR
    real = torch.ones_like(ids)
    ids[1, seq_len // 2 + 1 :], real[1, seq_len // 2 + 1 :] = padding, 0
    arguments = {"input_ids": ids, "attention_mask": real}
    if types:
        arguments["token_type_ids"] = torch.randint(0, model.config.type_vocab_size, ids.shape) * real
    is_choice = type(model).__name__.endswith("ForMultipleChoice")
    return {name: value[None] if is_choice else value for name, value in arguments.items()}


@torch.no_grad()
def results(model: Any, arguments: dict[str, Tensor]) -> dict[str, Tensor]:
    """What the model says in float64, {name: tensor}; of what it says about each token, that about real ones.

    Random weights amplify rounding: only in float64 does it stay apart from a small mistake.
    """
    real = arguments["attention_mask"]
    arguments = {name: value.double() if value.is_floating_point() else value for name, value in arguments.items()}
    found = {name: value for name, value in copy.deepcopy(model).double()(**arguments).items() if isinstance(value, Tensor)}
    return {
        name: value[real == 1] if value.shape[: real.dim()] == real.shape else value
        for name, value in found.items()
        if name in ("last_hidden_state", "pooler_output", "logits", "start_logits", "end_logits")
    }


def assert_same(got: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 1e-9) -> None:
    """Equal to the rounding of float64, or to that of float32 where transformers' Longformer computes its softmax so."""
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(
            got[name], value, rtol=tolerance, atol=tolerance, msg=lambda why, name=name: f"{name}: {why}"
        )


def assert_computes_the_same(got: Any, expected: Any, seq_len: int = LEARNED - 4) -> None:
    """:func:`assert_same` of two models on the same texts, which are drawn for the second."""
    arguments = texts(expected, seq_len)
    assert_same(results(got, arguments), results(expected, arguments))
