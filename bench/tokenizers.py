"""The tokenizer against transformers' fast one, side by side on the same texts."""

from __future__ import annotations

import dataclasses
import importlib.util
import pathlib
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from longformer_triton.bench.machine import provenance
from longformer_triton.bench.measure import percentiles
from longformer_triton.bench.record import OK, Record

# Ways of calling a tokenizer, by what they are for.
CALLS: dict[str, dict[str, Any]] = {
    "lists": {},
    "model inputs": {"truncation": True, "padding": True, "return_tensors": "pt"},
    "all that there is": {
        "truncation": True, "padding": True, "return_tensors": "pt",
        "return_offsets_mapping": True, "return_special_tokens_mask": True,
    },
    "windows of 512": {
        "truncation": True, "max_length": 512, "stride": 64, "return_overflowing_tokens": True,
        "padding": True, "return_tensors": "np",
    },
}  # fmt: skip
OURS, PEER = "ours", "transformers"


@dataclasses.dataclass(frozen=True)
class TokenizerCase:
    """Whose tokenizer, called how, on how many texts of how many characters together."""

    provider: str
    call: str
    texts: int
    characters: int


@dataclasses.dataclass
class TokenizerTimes:
    """Milliseconds a batch."""

    p20_ms: float
    p50_ms: float
    p80_ms: float
    repeats: int


def run_tokenizers(
    vocabulary: pathlib.Path, texts: Sequence[str], folder: pathlib.Path, console: Console, rounds: int = 13
) -> Table:
    """Time every way of calling, each tokenizer once a round, append rows to ``folder``, and return them as a table.

    Raises:
        ValueError: there are no texts, transformers is not installed, or the two tokenizers disagree.
    """
    if not texts:
        raise ValueError("files: got no text, expected one at least.")
    if importlib.util.find_spec("transformers") is None:
        raise ValueError("transformers: not installed, expected it to compare with: pip install transformers.")
    from transformers import LongformerTokenizerFast

    from longformer_triton.tokenization import LongformerTokenizer

    made = {
        OURS: LongformerTokenizer.from_pretrained(vocabulary, model_max_length=4096),
        PEER: LongformerTokenizerFast.from_pretrained(vocabulary, model_max_length=4096),
    }
    record, origin = Record(folder, TokenizerCase, TokenizerTimes), provenance(torch.device("cpu"))
    table = Table("call", "ours, ms", "transformers, ms", "times as fast")
    batch, characters = list(texts), sum(map(len, texts))
    if made[OURS](batch)["input_ids"] != made[PEER](batch)["input_ids"]:
        raise ValueError(f"vocabulary: the two tokenizers of {vocabulary} disagree about these texts.")
    for call, options in CALLS.items():
        samples: dict[str, list[float]] = {name: [] for name in made}
        for _ in track(range(rounds), description=call, console=console):
            for name, tokenizer in made.items():
                samples[name].append(_milliseconds(lambda: tokenizer(batch, **options)))  # noqa: B023 - called at once
        for name, times in samples.items():
            p20, p50, p80 = (round(cut, 3) for cut in percentiles(times))
            measured = TokenizerTimes(p20, p50, p80, rounds)
            record.append(TokenizerCase(name, call, len(batch), characters), OK, origin, measured)
        ours, peer = (statistics.median(samples[name]) for name in (OURS, PEER))
        ratios = [theirs / mine for mine, theirs in zip(samples[OURS], samples[PEER], strict=True)]
        table.add_row(call, f"{ours:.1f}", f"{peer:.1f}", f"{statistics.median(ratios):.2f}x")
    return table


def _milliseconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return (time.perf_counter() - start) * 1e3
