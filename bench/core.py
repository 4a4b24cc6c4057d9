"""The attention core against its peers, side by side: every variant once a round, so that a noisy machine is unfair to none."""

from __future__ import annotations

import dataclasses
import pathlib
import statistics
from collections.abc import Callable, Sequence

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from longformer_triton.bench.cases import FORWARD, TRAINING, Case, useful_flops
from longformer_triton.bench.machine import matmul_rate, provenance
from longformer_triton.bench.measure import Cell, peak_extra_bytes, summarise
from longformer_triton.bench.providers import PROVIDERS
from longformer_triton.bench.record import OK, SKIPPED, Record

Comparison = tuple[str, Case, Case]


def comparisons(dtype: str, ours: str) -> list[Comparison]:
    """(what is compared, our cell, the peer's cell): base-sized attention, window 512, one global token."""
    base = Case(ours, FORWARD, 4096, 512, dtype=dtype)
    with_global = dataclasses.replace(base, num_globals=1)
    training = dataclasses.replace(with_global, direction=TRAINING)
    longer = dataclasses.replace(with_global, seq_len=16384)
    return [
        ("forward, 4k, against transformers", with_global, dataclasses.replace(with_global, provider="transformers")),
        ("forward + backward, 4k, against transformers", training, dataclasses.replace(training, provider="transformers")),
        ("forward, 4k, against full SDPA", with_global, dataclasses.replace(with_global, provider="sdpa", window=None)),
        ("forward, 16k, against full SDPA", longer, dataclasses.replace(longer, provider="sdpa", window=None)),
    ]


@dataclasses.dataclass
class Result:
    """One comparison: medians over the rounds, and the median of the rounds' ratios."""

    what: str
    ours_ms: float
    peer_ms: float
    speedup: float
    times_floor: float


def run_core(
    folder: pathlib.Path, console: Console, *, dtype: str, device: str, threads: int | None, rounds: int
) -> list[Result]:
    """Measure every comparison and append its cells to ``folder``.

    Besides the peers, each round times a square matrix product: ``times_floor`` is our time over (useful flops / its rate).
    """
    if threads is not None:
        torch.set_num_threads(threads)
    place = torch.device(device)
    record, origin = Record(folder), provenance(place)
    ours = next(
        name for name in ("ours-triton", "ours-torch") if PROVIDERS[name].why_not(Case(name, FORWARD, 1, 2), place) is None
    )
    results = []
    for what, our_case, peer_case in comparisons(dtype, ours):
        reason = PROVIDERS[peer_case.provider].why_not(peer_case, place)
        if reason is not None:
            console.print(f"[yellow]{what}: skipped: {reason}")
            record.append(peer_case, SKIPPED, origin, reason=reason)
            continue
        cells = [Cell(case, place) for case in (our_case, peer_case)]
        samples: list[list[float]] = [[], []]
        rates: list[float] = []
        for _ in track(range(rounds), description=what, console=console):
            for cell, times in zip(cells, samples, strict=True):
                times.append(cell.time_once())
            rates.append(matmul_rate(place, our_case.torch_dtype, repeats=2))
        for cell, times in zip(cells, samples, strict=True):
            record.append(cell.case, OK, origin, summarise(cell, times, peak_extra_bytes(cell.call, place)))
        results.append(_result(what, our_case, samples, rates))
    return results


def _result(what: str, case: Case, samples: Sequence[Sequence[float]], rates: Sequence[float]) -> Result:
    median: Callable[[Sequence[float]], float] = statistics.median
    ours, peer = samples
    floors = [useful_flops(case) / rate * 1e3 for rate in rates]
    return Result(
        what,
        median(ours),
        median(peer),
        median([theirs / mine for mine, theirs in zip(ours, peer, strict=True)]),
        median([mine / floor for mine, floor in zip(ours, floors, strict=True)]),
    )


def as_table(results: Sequence[Result]) -> Table:
    """The results for a terminal."""
    table = Table("comparison", "ours ms", "peer ms", "speed-up", "time / (useful flops / matrix rate)")
    for result in results:
        table.add_row(
            result.what,
            f"{result.ours_ms:.1f}",
            f"{result.peer_ms:.1f}",
            f"{result.speedup:.2f}x",
            f"{result.times_floor:.2f}",
        )
    return table
