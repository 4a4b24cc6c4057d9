"""The sweep: length x window x provider x direction, one child process, one row a cell, resumable at any point."""

from __future__ import annotations

import dataclasses
import pathlib
import time
from collections.abc import Iterator, Sequence

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from longformer_triton.bench.cases import DIRECTIONS, DTYPES, Case
from longformer_triton.bench.machine import free_bytes, provenance
from longformer_triton.bench.measure import measure
from longformer_triton.bench.providers import PROVIDERS
from longformer_triton.bench.record import OK, SKIPPED, Record
from longformer_triton.bench.worker import Worker

# A cell may take this share of the memory that is free.
MEMORY_SHARE = 0.8


@dataclasses.dataclass(frozen=True)
class Plan:
    """The axes of a sweep and its limits. Times are in seconds; ``windows`` are totals of both sides.

    ``peer_windows`` are the windows at which other implementations run; None means all.
    """

    lengths: Sequence[int] = (512, 1024, 2048, 4096, 8192, 16384, 32768)
    windows: Sequence[int] = (128, 512, 2048)
    providers: Sequence[str] = tuple(PROVIDERS)
    directions: Sequence[str] = DIRECTIONS
    batch: int = 1
    heads: int = 12
    head_dim: int = 64
    dtype: str = "float32"
    num_globals: int = 0
    device: str = "cpu"
    threads: int | None = None
    cell_seconds: float = 3.0
    max_call_seconds: float = 60.0
    peer_windows: Sequence[int] | None = None
    time_limit: float | None = None

    @classmethod
    def quick(cls, device: str) -> Plan:
        """Ends within three minutes on two cores: four heads, five lengths, and no call longer than a few seconds."""
        return cls(
            lengths=(1024, 2048, 4096, 8192, 16384),
            heads=4,
            device=device,
            cell_seconds=0.3,
            max_call_seconds=1.5,
            peer_windows=(512,),
            time_limit=160.0,
        )

    def validate(self) -> None:
        """Raise ValueError for axes that cannot be."""
        for name, allowed in (("providers", PROVIDERS), ("directions", DIRECTIONS)):
            unknown = [value for value in getattr(self, name) if value not in allowed]
            if unknown:
                raise ValueError(f"{name}: got {', '.join(unknown)}, expected some of {', '.join(allowed)}.")
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype: got {self.dtype}, expected one of {', '.join(DTYPES)}.")
        for name in ("lengths", "windows"):
            values = getattr(self, name)
            if not values or any(value < 1 for value in values):
                raise ValueError(f"{name}: got {list(values)}, expected at least one number, each >= 1.")
        odd = [window for window in self.windows if window % 2]
        if odd:
            raise ValueError(f"windows: got {odd}, expected even totals of both sides, as Hugging Face's attention_window.")
        if self.num_globals > min(self.lengths):
            raise ValueError(f"num_globals: got {self.num_globals}, expected at most the shortest length, {min(self.lengths)}.")

    def _windows_of(self, provider: str) -> Sequence[int | None]:
        if not PROVIDERS[provider].is_windowed:
            return [None]
        if self.peer_windows is None or provider.startswith("ours-"):
            return sorted(self.windows)
        return [window for window in sorted(self.windows) if window in self.peer_windows]

    def cases(self) -> Iterator[Case]:
        """Cells in the order they run: short before long, so that long ones can be predicted; peers side by side."""
        for length in sorted(self.lengths):
            for direction in self.directions:
                for name in self.providers:
                    for window in self._windows_of(name):
                        yield Case(
                            name, direction, length, window, self.batch, self.heads, self.head_dim, self.dtype, self.num_globals
                        )


def _predicted_seconds(case: Case, done: dict[Case, dict[str, str]]) -> float | None:
    """What one call will take, from the same provider at the longest shorter length: linear with a window, else quadratic.

    A training cell that has no predecessor is not predicted.
    """
    shorter = [
        other
        for other, row in done.items()
        if row["status"] == OK and other.seq_len < case.seq_len and dataclasses.replace(other, seq_len=case.seq_len) == case
    ]
    if not shorter:
        return None
    nearest = max(shorter, key=lambda other: other.seq_len)
    power = 2 if case.window is None or case.provider == "reference" else 1
    return float(done[nearest]["p50_ms"]) / 1e3 * (case.seq_len / nearest.seq_len) ** power


def why_skip(case: Case, plan: Plan, done: dict[Case, dict[str, str]]) -> str | None:
    """The reason not to run a cell, or None."""
    device = torch.device(plan.device)
    provider = PROVIDERS[case.provider]
    reason = provider.why_not(case, device)
    if reason is not None:
        return reason
    needed, free = provider.peak_bytes(case), free_bytes(device)
    if needed > MEMORY_SHARE * free:
        return f"needs about {needed / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free"
    predicted = _predicted_seconds(case, done)
    if predicted is not None and predicted > plan.max_call_seconds:
        return f"about {predicted:.1f} s a call, more than --max-call-seconds {plan.max_call_seconds:g}"
    return None


def run_sweep(plan: Plan, folder: pathlib.Path, console: Console) -> bool:
    """Measure every cell of the plan that ``folder`` does not hold yet.

    Returns:
        Whether the plan was finished; False when the time limit came first.

    Raises:
        ValueError: the plan or the folder does not fit.
        KeyboardInterrupt: the user stopped it; every finished row is on disk.
    """
    plan.validate()
    record = Record(folder)
    done = record.finished()
    origin = provenance(torch.device(plan.device))
    if plan.threads is not None:
        origin["threads"] = str(plan.threads)
    cases = list(plan.cases())
    deadline = None if plan.time_limit is None else time.monotonic() + plan.time_limit
    worker = Worker(plan.device, plan.threads, measure)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    console.print(f"{len(cases)} cells on {origin['device']}, {sum(case in done for case in cases)} done before: {record.path}")
    try:
        with Progress(*columns, console=console) as progress:
            task = progress.add_task("", total=len(cases))
            for case in cases:
                progress.update(task, description=_label(case))
                if case not in done and not _run_cell(case, plan, record, done, worker, origin, deadline, console):
                    return False
                progress.advance(task)
    finally:
        worker.stop()
    return True


def _run_cell(
    case: Case,
    plan: Plan,
    record: Record,
    done: dict[Case, dict[str, str]],
    worker: Worker,
    origin: dict[str, str],
    deadline: float | None,
    console: Console,
) -> bool:
    """Measure or skip one cell and write its row; False when the deadline came first."""
    reason = why_skip(case, plan, done)
    if reason is not None:
        record.append(case, SKIPPED, origin, reason=reason)
        return True
    if deadline is not None and time.monotonic() > deadline:
        return False
    outcome = worker.run(case, plan.cell_seconds, deadline)
    if outcome is None:
        return False
    status, reason, measurement = outcome
    record.append(case, status, origin, measurement, reason)
    done[case] = {"status": status, "p50_ms": "" if measurement is None else str(measurement.p50_ms)}
    if status != OK:
        console.print(f"[yellow]{_label(case)}: {status}: {reason}")
    return True


def _label(case: Case) -> str:
    window = "full" if case.window is None else f"window {case.window}"
    return f"{case.provider} {case.direction} {case.seq_len} {window}"


def unavailable(plan: Plan) -> dict[str, str]:
    """Providers of the plan that can run none of its cells, each with its reason."""
    reasons: dict[str, str] = {}
    for name in plan.providers:
        found = [PROVIDERS[name].why_not(case, torch.device(plan.device)) for case in plan.cases() if case.provider == name]
        if found and all(reason is not None for reason in found):
            reasons[name] = str(found[0])
    return reasons
