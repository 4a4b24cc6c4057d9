"""A small model with its tokenizer, texts for them, and runs of pretraining."""

from __future__ import annotations

import pathlib
import random
from typing import Any

import torch
from model_cases import ours
from rich.console import Console
from text_cases import tokenizer_of

import longformer_triton
from longformer_triton.heads import pretraining
from longformer_triton.heads import pretraining_files as files
from longformer_triton.heads.pretraining_options import PretrainingOptions

WORDS = ("river", "fox", "dog", "quick", "lazy", "crossed", "the", "a", "and", "then", "jumped", "over")


def make_model(folder: pathlib.Path, **options: Any) -> pathlib.Path:
    """A directory with a tiny model and its tokenizer; dropout is on."""
    tokenizer = tokenizer_of(WORDS, folder)
    torch.manual_seed(8)
    dropout = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
    model = ours("LongformerForMaskedLM", **{"vocab_size": len(tokenizer), "initializer_range": 0.05, **dropout, **options})
    for layer in model.longformer.encoder.layer:
        projections = layer.attention.self
        for name in ("query", "key", "value"):
            getattr(projections, f"{name}_global").load_state_dict(getattr(projections, name).state_dict())
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_texts(folder: pathlib.Path, count: int = 3, words: int = 200) -> list[pathlib.Path]:
    """Files of random words."""
    draw = random.Random(4)
    folder.mkdir(exist_ok=True)
    paths = [folder / f"{number}.txt" for number in range(count)]
    for path in paths:
        path.write_text(" ".join(draw.choices(WORDS, k=words)) + ".\n", encoding="utf-8")
    return paths


def options_of(model: pathlib.Path, files: list[pathlib.Path], out: pathlib.Path, **changes: Any) -> PretrainingOptions:
    """Twelve short steps with a checkpoint every four."""
    usual: dict[str, Any] = {"seq_len": 34, "batch_size": 2, "max_steps": 12, "save_every": 4, "learning_rate": 1e-2}
    return PretrainingOptions(model=model, files=files, out=out, cpu=True, **{**usual, "validation_share": 0.2, **changes})


def run(options: PretrainingOptions, **how: Any) -> pathlib.Path | None:
    """Pretrain silently, as if it were the first run of the process."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    return pretraining.pretrain(options, Console(quiet=True), **how)


def curve(folder: pathlib.Path) -> list[dict[str, str]]:
    """The log without what depends on the clock."""
    return [{name: value for name, value in row.items() if name != "tokens_per_second"} for row in files.read_log(folder)]


def weights(folder: pathlib.Path) -> dict[str, torch.Tensor]:
    """Of the model that a run has saved."""
    return longformer_triton.LongformerForMaskedLM.from_pretrained(folder / "model").state_dict()


def assert_same_run(folder: pathlib.Path, whole: pathlib.Path) -> None:
    """To the bit: the curve, step by step, and the model."""
    assert curve(folder) == curve(whole)
    got, expected = weights(folder), weights(whole)
    assert all(torch.equal(got[name], expected[name]) for name in expected)
