"""The longest text that a whole model can be trained on, one step at a time, on one GPU."""

from __future__ import annotations

import dataclasses
import gc
import pathlib
import time
from collections.abc import Callable

import torch
from rich.console import Console

from longformer_triton.bench.cases import DTYPES
from longformer_triton.bench.machine import provenance
from longformer_triton.bench.model_cells import FULL, MODELS, OURS, PEER, TRAINING, ModelCase, ModelCell
from longformer_triton.bench.record import OK, SKIPPED, Record

_FIRST = 4096
# Lengths are found to an eighth of the power of two below them.
_STEPS = 3


class _TimeIsUpError(Exception):
    """Between two lengths."""


@dataclasses.dataclass(frozen=True)
class LongestCase:
    """Whose model, of which size; ``checkpointing`` is 1 where each layer computes its activations again in backward."""

    provider: str
    checkpointing: int
    window: int | None
    layers: int = 12
    heads: int = 12
    head_dim: int = 64
    dtype: str = "bfloat16"


@dataclasses.dataclass
class Longest:
    """Tokens of the longest text for which a training step fitted, batch 1."""

    seq_len: int


def longest(fits: Callable[[int], bool], first: int = _FIRST) -> int:
    """The greatest length that ``fits``, by doubling and then halving the interval; 0 if ``first`` does not.

    The answer is exact to an eighth of the power of two below it, if all lengths below one that fits do.
    """
    if not fits(first):
        return 0
    length = first
    while fits(2 * length):
        length *= 2
    step = length
    for _ in range(_STEPS):
        step //= 2
        if fits(length + step):
            length += step
    return length


def _fits(case: LongestCase, seq_len: int, device: torch.device) -> bool:
    """Whether a training step, the optimiser's state included, finds room."""
    # The model before this one goes first; the exception that ended it may have held it till now.
    gc.collect()
    torch.cuda.empty_cache()
    sizes = (case.window, 1, case.layers, case.heads, case.head_dim, case.dtype)
    try:
        cell = ModelCell(ModelCase(case.provider, TRAINING, seq_len, *sizes), device, None, bool(case.checkpointing))
        cell.call()
        torch.cuda.synchronize(device)
    except torch.OutOfMemoryError:
        return False
    return True


def run_longest(
    folder: pathlib.Path,
    console: Console,
    device: str,
    dtype: str = "bfloat16",
    window: int = 512,
    time_limit: float | None = None,
) -> bool:
    """Find the longest text for each implementation, with checkpointing and without; rows that are there are left alone.

    Returns:
        Whether all are found; False when ``time_limit`` seconds came first.

    Raises:
        ValueError: ``dtype`` is none that a benchmark has, ``device`` is no GPU, or the folder holds other results.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype: got {dtype}, expected one of {', '.join(DTYPES)}.")
    place = torch.device(device)
    if place.type != "cuda":
        raise ValueError(f"device: got {device}, expected a GPU, which says that memory is short; a CPU swaps, or kills.")
    record, origin = Record(folder, LongestCase, Longest), provenance(place)
    done = record.finished()
    deadline = None if time_limit is None else time.monotonic() + time_limit
    for name in (OURS, PEER, FULL):
        for checkpointing in (0, 1):
            case = LongestCase(name, checkpointing, window if MODELS[name].is_windowed else None, dtype=dtype)
            if case in done:
                continue
            reason = MODELS[name].why_not()
            if reason is not None:
                record.append(case, SKIPPED, origin, reason=reason)
                continue
            label = f"{MODELS[name].title}, {'with' if checkpointing else 'without'} checkpointing"

            def fits(seq_len: int, case: LongestCase = case) -> bool:
                if deadline is not None and time.monotonic() > deadline:
                    raise _TimeIsUpError
                return _fits(case, seq_len, place)

            try:
                with console.status(label):
                    found = longest(fits)
            except _TimeIsUpError:
                return False
            record.append(case, OK, origin, Longest(found))
            console.print(f"{label}: {found} tokens")
    return True
