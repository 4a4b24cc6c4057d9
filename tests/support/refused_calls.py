"""Calls of the public functions that are accepted as they are; tests of refusals change one argument each."""

import pytest
import torch

from longformer_triton.kernels import (
    AttentionPattern,
    absorbed_global_attention,
    attention_probabilities,
    longformer_attention,
    ops,
    reference,
    sliding_window_attention,
)

BATCH, HEADS, TOKENS, CHANNELS, HIDDEN = 2, 4, 6, 3, 5
META = {"device": "meta"}


def states(*shape: int, **options) -> torch.Tensor:
    return torch.zeros(shape or (BATCH, HEADS, TOKENS, CHANNELS), **options)


def marks(*rows: list[int]) -> torch.Tensor:
    return torch.tensor(rows or [[1, 0, 0, 0, 0, 0], [0, 1, 1, 0, 0, 0]])


def pattern(**changes) -> AttentionPattern:
    options = {"attention_mask": None, "global_attention_mask": marks(), "window": 1, **changes}
    return AttentionPattern.from_masks(options.pop("attention_mask"), options.pop("global_attention_mask"), **options)


def window_call(**changes):
    return sliding_window_attention(
        **{"query": states(), "key": states(), "value": states(), "window": None if "pattern" in changes else 1, **changes}
    )


def rows_call(**changes):
    inputs = {name: states() for name in ("query", "key", "value", "key_global", "value_global")}
    return longformer_attention(
        **{**inputs, "query_global": states(BATCH, HEADS, 2, CHANNELS), "pattern": pattern(), **changes}
    )


def absorbed_call(**changes):
    given = {
        "hidden_states": states(BATCH, TOKENS, HIDDEN),
        "query_global": states(BATCH, HEADS, 2, CHANNELS),
        "key_weight": states(HEADS * CHANNELS, HIDDEN),
        "value_weight": states(HEADS * CHANNELS, HIDDEN),
        "value_bias": states(HEADS * CHANNELS),
        "pattern": pattern(),
    }
    return absorbed_global_attention(**{**given, **changes})


def maps_call(**changes):
    return attention_probabilities(**{"query": states(), "key": states(), "pattern": pattern(), **changes})


def masks_call(**changes):
    return AttentionPattern.from_masks(**{"window": 1, **changes})


def fail_when_work_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refusals come before any work."""

    def fail(*_):
        raise AssertionError("work began before the arguments were checked")

    for module in (ops, reference):
        monkeypatch.setattr(module, "attention", fail)
        monkeypatch.setattr(module, "global_rows", fail)
