"""The sweep: every axis of a cell x provider x direction, one child process, one row a cell, resumable at any point."""

from __future__ import annotations

import dataclasses
import pathlib
import time
from collections.abc import Iterator, Sequence

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from longformer_triton.bench.cases import DIRECTIONS, DTYPES, PLACES, PREFIX, Case
from longformer_triton.bench.machine import free_bytes, provenance
from longformer_triton.bench.measure import measure
from longformer_triton.bench.providers import PROVIDERS
from longformer_triton.bench.record import OK, SKIPPED, Record
from longformer_triton.bench.worker import Worker

# A cell may take this share of the memory that is free.
MEMORY_SHARE = 0.8
_MOST_PERCENT = 99


@dataclasses.dataclass(frozen=True)
class Plan:
    """The axes of a sweep and its limits. Times are in seconds; the axes are those of :class:`~.cases.Case`.

    ``peer_windows`` are the windows at which other implementations run; None means all. ``retry``: whether to measure again
    what died, went wrong or ran out of memory.
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
    globals_at: str = PREFIX
    padding: int = 0
    dropout: int = 0
    is_causal: int = 0
    dilation: int = 1
    key_heads: int | None = None
    graph: int = 0
    device: str = "cpu"
    threads: int | None = None
    cell_seconds: float = 3.0
    max_call_seconds: float = 60.0
    retry: bool = False
    peer_windows: Sequence[int] | None = None
    time_limit: float | None = None

    def validate(self) -> None:
        """Raise ValueError for axes that cannot be."""
        for name, given, allowed in (("providers", self.providers, PROVIDERS), ("direction", self.directions, DIRECTIONS)):
            unknown = [value for value in given if value not in allowed]
            if unknown:
                raise ValueError(f"{name}: got {', '.join(map(repr, unknown))}, expected some of {', '.join(allowed)}.")
        for name, expected in (("dtype", DTYPES), ("globals_at", PLACES)):
            if getattr(self, name) not in expected:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected one of {', '.join(expected)}.")
        for name in ("lengths", "windows"):
            values = getattr(self, name)
            if not values or any(value < 1 for value in values):
                raise ValueError(f"{name}: got {list(values)}, expected at least one number, each >= 1.")
        odd = [window for window in self.windows if window % 2]
        if odd:
            raise ValueError(f"windows: got {odd}, expected even totals of both sides, as Hugging Face's attention_window.")
        for name in ("padding", "dropout"):
            if not 0 <= getattr(self, name) <= _MOST_PERCENT:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected percent, 0 to {_MOST_PERCENT}.")
        if self.dilation < 1:
            raise ValueError(f"dilation: got {self.dilation}, expected at least 1, the distance between neighbouring keys.")
        if self.key_heads is not None and (self.key_heads < 1 or self.heads % self.key_heads):
            raise ValueError(f"key_heads: got {self.key_heads}, expected a divisor of {self.heads}, the number of heads.")
        shortest = Case("", "", min(self.lengths), None, padding=self.padding).real_len
        if self.num_globals > shortest:
            raise ValueError(
                f"num_globals: got {self.num_globals}, expected at most the tokens of the shortest text, {shortest}."
            )

    def _windows_of(self, provider: str) -> Sequence[int | None]:
        if not PROVIDERS[provider].is_windowed:
            return [None]
        if self.peer_windows is None or provider.startswith("ours-"):
            return sorted(self.windows)
        return [window for window in sorted(self.windows) if window in self.peer_windows]

    def cases(self) -> Iterator[Case]:
        """Cells in the order they run: short before long, so that long ones can be predicted; peers side by side.

        Full attention is one cell whatever the window and the global tokens, which it ignores.
        """
        shared = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(Case)
            if field.name not in ("provider", "direction", "seq_len", "window")
        }
        if not self.num_globals:
            shared["globals_at"] = PREFIX
        ignored = {**shared, "num_globals": 0, "globals_at": PREFIX, "dilation": 1}
        for length in sorted(self.lengths):
            for direction in self.directions:
                for name in self.providers:
                    for window in self._windows_of(name):
                        yield Case(name, direction, length, window, **(ignored if window is None else shared))


def _predicted_seconds(case: Case, done: dict[Case, dict[str, str]]) -> float | None:
    """What one call will take, from the same provider at the longest shorter length: linear with a window, else quadratic.

    The batch may differ between the two; time is taken to grow with it. A cell that has no predecessor is not predicted.
    """
    shorter = [
        other
        for other, row in done.items()
        if row["status"] == OK
        and other.seq_len < case.seq_len
        and dataclasses.replace(other, seq_len=case.seq_len, batch=case.batch) == case
    ]
    if not shorter:
        return None
    nearest = max(shorter, key=lambda other: (other.seq_len, other.batch))
    power = 2 if case.window is None or case.provider == "reference" else 1
    growth = (case.seq_len / nearest.seq_len) ** power * case.batch / nearest.batch
    return float(done[nearest]["p50_ms"]) / 1e3 * growth


def why_skip(case: Case, plan: Plan, done: dict[Case, dict[str, str]]) -> str | None:
    """The reason not to run a cell, or None."""
    device = torch.device(plan.device)
    provider = PROVIDERS[case.provider]
    reason = provider.why_not(case, device)
    if reason is not None:
        return reason
    needed, free = provider.peak_bytes(case, device), free_bytes(device)
    if needed > MEMORY_SHARE * free:
        return f"needs about {needed / 2**30:.1f} GiB, more than {MEMORY_SHARE:.0%} of the {free / 2**30:.1f} GiB that are free"
    predicted = _predicted_seconds(case, done)
    if predicted is not None and predicted > plan.max_call_seconds:
        return f"about {predicted:.1f} s a call, more than --max-call-seconds {plan.max_call_seconds:g}"
    return None


def run_sweep(plan: Plan | Sequence[Plan], folder: pathlib.Path, console: Console) -> bool:
    """Measure every cell of one plan, or of several in turn, that ``folder`` does not hold yet.

    Several plans share a device, a number of threads, a time limit and ``retry``, those of the first.

    Returns:
        Whether the plans were finished; False when the time limit came first.

    Raises:
        ValueError: a plan or the folder does not fit.
        KeyboardInterrupt: the user stopped it; every finished row is on disk.
    """
    plans = [plan] if isinstance(plan, Plan) else list(plan)
    for each in plans:
        each.validate()
    first = plans[0]
    record = Record(folder)
    done = record.finished(retry=first.retry)
    origin = provenance(torch.device(first.device))
    if first.threads is not None:
        origin["threads"] = str(first.threads)
    for warning in record.others(origin):
        console.print(f"[yellow]{warning}")
    # The first plan that names a cell decides its limits.
    cells = {case: each for each in reversed(plans) for case in each.cases()}
    cases = list(dict.fromkeys(case for each in plans for case in each.cases()))
    deadline = None if first.time_limit is None else time.monotonic() + first.time_limit
    worker = Worker(first.device, first.threads, measure)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    failed = sum(row["status"] != OK for case, row in done.items() if case in cells)
    again = f" ({failed} of them failed; --retry measures these again)" if failed else ""
    console.print(
        f"{len(cases)} cells on {origin['device']}, {sum(case in done for case in cases)} done before{again}: {record.path}"
    )
    try:
        with record.alone(), Progress(*columns, console=console) as progress:
            task = progress.add_task("", total=len(cases))
            for case in cases:
                progress.update(task, description=label(case))
                if case not in done and not _run_cell(case, cells[case], record, done, worker, origin, deadline, console):
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
        # Why a provider cannot run at all was said before.
        if PROVIDERS[case.provider].why_not(case, torch.device(plan.device)) is None:
            console.print(f"{label(case)}: skipped: {reason}")
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
        console.print(f"[yellow]{label(case)}: {status}: {reason}")
    return True


def label(case: Case) -> str:
    """A cell in a line: what it is always, and what is not usual of it."""
    words = [case.provider, case.direction, str(case.seq_len), "full" if case.window is None else f"window {case.window}"]
    if case.batch > 1:
        words.append(f"batch {case.batch}")
    if case.num_globals:
        words.append(f"{case.num_globals} globals" + ("" if case.globals_at == PREFIX else f" {case.globals_at}"))
    for name in ("padding", "dropout"):
        if getattr(case, name):
            words.append(f"{name} {getattr(case, name)} %")
    if case.is_causal:
        words.append("causal")
    if case.step > 1:
        words.append(f"dilation {case.dilation}")
    return " ".join([*words, "in a graph"] if case.graph else words)


def _runnable(plans: Plan | Sequence[Plan]) -> tuple[dict[str, str], set[str]]:
    """(first reason of each provider that some cell does not suit, providers that can run some cell)."""
    reasons: dict[str, str] = {}
    runs: set[str] = set()
    for plan in [plans] if isinstance(plans, Plan) else plans:
        plan.validate()
        for case in plan.cases():
            reason = PROVIDERS[case.provider].why_not(case, torch.device(plan.device))
            if reason is None:
                runs.add(case.provider)
            else:
                reasons.setdefault(case.provider, reason)
    return reasons, runs


def unavailable(plans: Plan | Sequence[Plan]) -> dict[str, str]:
    """Providers that can run none of the cells that name them, each with its first reason."""
    reasons, runs = _runnable(plans)
    return {name: reason for name, reason in reasons.items() if name not in runs}


def notes(plans: Plan | Sequence[Plan]) -> dict[str, str]:
    """What the providers that run compute otherwise than the rest."""
    _, runs = _runnable(plans)
    return {name: PROVIDERS[name].note for name in PROVIDERS if name in runs and PROVIDERS[name].note}
