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

MARKDOWN_NAME = "core.md"

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
    The table also goes to ``core.md`` there, which the README repeats.
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
    (folder / MARKDOWN_NAME).write_text(as_markdown(results, dtype, rounds, origin))
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


_HEADER = ("comparison", "ours, ms", "peer, ms", "speed-up", "ours / floor")


def _cells(result: Result) -> tuple[str, ...]:
    return (
        result.what,
        f"{result.ours_ms:.0f}",
        f"{result.peer_ms:.0f}",
        f"{result.speedup:.1f}x",
        f"{result.times_floor:.2f}",
    )


def as_table(results: Sequence[Result]) -> Table:
    """The results for a terminal."""
    table = Table(*_HEADER)
    for result in results:
        table.add_row(*_cells(result))
    return table


def as_markdown(results: Sequence[Result], dtype: str, rounds: int, origin: dict[str, str]) -> str:
    """The results for a document, with where they come from."""
    lines = ["| " + " | ".join(_HEADER) + " |", "|---|" + "---:|" * (len(_HEADER) - 1)]
    lines += ["| " + " | ".join(_cells(result)) + " |" for result in results]
    threads = f", {origin['threads']} threads" if origin["threads"] else ""
    lines += [
        "",
        f"Attention core, batch 1, 12 heads, head_dim 64, window 512, one global token, {dtype}, the pattern's cost included.",
        f"Medians of {rounds} rounds side by side; floor = useful operations / the rate of a matrix product in the same round.",
        f"{origin['device']}{threads}, torch {origin['torch']}, transformers {origin['transformers']}, {origin['date'][:10]},",
        f"commit {origin['commit']}.",
    ]
    return "\n".join(lines) + "\n"
