"""The attention core against its peers, side by side: every variant once a round, so that a noisy machine is unfair to none."""

from __future__ import annotations

import csv
import dataclasses
import pathlib
import statistics
from collections.abc import Callable, Sequence

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from longformer_triton.bench.cases import DTYPES as CASE_DTYPES
from longformer_triton.bench.cases import FORWARD, TRAINING, Case, useful_flops
from longformer_triton.bench.machine import matmul_rate, provenance
from longformer_triton.bench.measure import Cell, peak_extra_bytes, summarise
from longformer_triton.bench.providers import PROVIDERS
from longformer_triton.bench.record import OK, SKIPPED, Record
from longformer_triton.bench.words import counted

MARKDOWN_NAME, COMPARISONS_NAME = "core.md", "comparisons.csv"
# Not float64: transformers computes its softmax in float32.
DTYPES = tuple(name for name in CASE_DTYPES if name != "float64")

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
    The comparisons go to ``comparisons.csv`` there, and as a table to ``core.md``, which the README repeats.

    Raises:
        ValueError: ``dtype`` is none of ``DTYPES``, or the folder holds other results.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype: got {dtype}, expected one of {', '.join(DTYPES)}.")
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
            # A product that keeps a GPU busy for longer than it takes to ask for it
            size = 8192 if place.type == "cuda" else 2048
            rates.append(matmul_rate(place, our_case.torch_dtype, size, repeats=2))
        for cell, times in zip(cells, samples, strict=True):
            record.append(cell.case, OK, origin, summarise(cell, times, peak_extra_bytes(cell.call, place)))
        results.append(_result(what, our_case, samples, rates))
    save_comparisons(folder, results, dtype, rounds, origin)
    (folder / MARKDOWN_NAME).write_text(describe(folder))
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


HEADER = ("comparison", "ours, ms", "peer, ms", "speed-up", "ours / floor")


def cells(result: Result) -> tuple[str, ...]:
    """One comparison as texts, in the order of ``HEADER``."""
    return (
        result.what,
        f"{result.ours_ms:.0f}",
        f"{result.peer_ms:.0f}",
        f"{result.speedup:.1f}x",
        f"{result.times_floor:.2f}",
    )


def as_table(results: Sequence[Result]) -> Table:
    """The results for a terminal."""
    table = Table(*HEADER)
    for result in results:
        table.add_row(*cells(result))
    return table


def save_comparisons(folder: pathlib.Path, results: Sequence[Result], dtype: str, rounds: int, origin: dict[str, str]) -> None:
    """Write ``comparisons.csv``: ratios within a round cannot be told from the medians of the cells."""
    shared = {"dtype": dtype, "rounds": rounds, **origin}
    with (folder / COMPARISONS_NAME).open("w", newline="") as file:
        writer = csv.DictWriter(file, [*(field.name for field in dataclasses.fields(Result)), *shared])
        writer.writeheader()
        writer.writerows({**dataclasses.asdict(result), **shared} for result in results)


def load_comparisons(folder: pathlib.Path) -> tuple[list[Result], dict[str, str]]:
    """The comparisons of a folder, and what they share: dtype, rounds and provenance.

    Raises:
        ValueError: the file holds none, or other columns.
    """
    path = folder / COMPARISONS_NAME
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    try:
        results = [
            Result(row["what"], *(float(row[name]) for name in ("ours_ms", "peer_ms", "speedup", "times_floor")))
            for row in rows
        ]
    except (KeyError, ValueError) as error:
        raise ValueError(f"folder: {path} is not what `longformer-triton bench core` writes ({error!r}).") from error
    if not results:
        raise ValueError(f"folder: {path} holds no comparison; run `longformer-triton bench core` again.")
    return results, rows[0]


def describe(folder: pathlib.Path) -> str:
    """``core.md`` from ``comparisons.csv``.

    Raises:
        ValueError: the file holds no comparison.
    """
    results, shared = load_comparisons(folder)
    return as_markdown(results, shared["dtype"], int(shared["rounds"]), shared)


def as_markdown(results: Sequence[Result], dtype: str, rounds: int, origin: dict[str, str]) -> str:
    """The results for a document, with where they come from."""
    lines = ["| " + " | ".join(HEADER) + " |", "|---|" + "---:|" * (len(HEADER) - 1)]
    lines += ["| " + " | ".join(cells(result)) + " |" for result in results]
    threads = f", {counted(origin['threads'], 'thread')}" if origin["threads"] else ""
    lines += [
        "",
        f"Attention core, batch 1, 12 heads, head_dim 64, window 512, one global token, {dtype}, the pattern's cost included.",
        f"Medians of {rounds} rounds side by side; floor = useful operations / the rate of a matrix product in the same round.",
        f"{origin['device']}{threads}, torch {origin['torch']}, transformers {origin['transformers']}, {origin['date'][:10]},",
        f"commit {origin['commit']}.",
    ]
    return "\n".join(lines) + "\n"
