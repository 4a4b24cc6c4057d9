"""Models of transformers to patch, Longformers and LEDs, tiny and filled with random weights, and batches for them."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from hypothesis import strategies as st
from model_cases import MODELS, SEPARATOR, TINY, VOCABULARY, Texts, texts, theirs
from torch import Tensor

LEDS = ("LEDModel", "LEDForConditionalGeneration", "LEDForSequenceClassification", "LEDForQuestionAnswering")
ALL = (*MODELS, *LEDS)
_TINY_LED: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "d_model": TINY["hidden_size"],
    "encoder_layers": 2,
    "decoder_layers": 1,
    "encoder_attention_heads": 3,
    "decoder_attention_heads": 3,
    "encoder_ffn_dim": 20,
    "decoder_ffn_dim": 20,
    "attention_window": [4, 8],
    "max_encoder_position_embeddings": 120,
    "max_decoder_position_embeddings": 60,
    "init_std": 0.3,
    "dropout": 0.0,
    "attention_dropout": 0.0,
    "use_cache": False,
    "num_labels": 2,
}
_DECODED = 9


def takes_head_masks() -> bool:
    """Whether the installed transformers still has head masks: before version 5."""
    import transformers

    return "head_mask" in inspect.signature(transformers.LongformerModel.forward).parameters


def original(name: str, **options: Any) -> Any:
    """A tiny model of transformers in evaluation mode; every parameter is random, those that begin at 0 or 1 too."""
    import transformers

    if not hasattr(transformers, name):
        pytest.skip(f"transformers {transformers.__version__} has no {name}")
    if name in MODELS:
        model = theirs(name, **options)
    else:
        model = getattr(transformers, name)(transformers.LEDConfig(**{**_TINY_LED, **options})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    return model


def batch_for(name: str, batch: Texts) -> dict[str, Any]:
    """Keyword arguments of a forward pass of ``name``, labels included where it takes some."""
    if name in MODELS:
        inputs: dict[str, Any] = batch.inputs(name)
    else:
        inputs = batch.inputs("LongformerModel")
        for absent in ("token_type_ids", "position_ids"):
            inputs.pop(absent, None)
        inputs |= _decoded(name, batch)
        if name == "LEDForSequenceClassification":
            # It wants as many separators in each text, and reads the state at the last.
            inputs["decoder_input_ids"] = inputs["input_ids"]
            inputs["input_ids"][:, 0] = SEPARATOR
    if not takes_head_masks():
        inputs.pop("head_mask", None)
    return inputs


def _decoded(name: str, batch: Texts) -> dict[str, Tensor]:
    """What goes into the decoder, and labels."""
    generator = torch.Generator().manual_seed(batch.seed)

    def draw(high: int, *shape: int) -> Tensor:
        return torch.randint(0, high, shape, generator=generator)

    inputs = {"decoder_input_ids": draw(VOCABULARY, batch.batch, _DECODED)}
    if name == "LEDForConditionalGeneration":
        inputs["labels"] = draw(VOCABULARY, batch.batch, _DECODED)
    elif name == "LEDForSequenceClassification":
        inputs["labels"] = draw(2, batch.batch)
    elif name == "LEDForQuestionAnswering":
        inputs |= {key: draw(_DECODED, batch.batch) for key in ("start_positions", "end_positions")}
    return inputs


@st.composite
def problems(draw: st.DrawFn, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """(options of the configuration, a batch) that transformers can compute."""
    heads = draw(st.sampled_from([1, 3]))
    options: dict[str, Any] = {
        # transformers pads to the largest window, which the others have to divide.
        "attention_window": draw(st.sampled_from([4, 6, 32, [4, 8], [12, 4], [6, 12], [32, 4]])),
    }
    batch = draw(texts(name if name in MODELS else "LongformerModel"))
    if "head_mask" in batch.extras:
        heads = 3
    if name == "LEDForSequenceClassification" and "embeds" in batch.extras:
        batch = Texts(batch.batch, batch.seq_len, batch.padding, batch.globals_, batch.seed)
    options["num_attention_heads" if name in MODELS else "encoder_attention_heads"] = heads
    return options, batch_for(name, batch)
