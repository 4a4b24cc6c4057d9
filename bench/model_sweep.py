"""The sweep over whole models: length x direction, implementations side by side, resumable at any point."""

from __future__ import annotations

import dataclasses
import math
import pathlib
import time
from collections.abc import Iterator, Sequence

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from longformer_triton.bench.cases import DTYPES
from longformer_triton.bench.machine import free_bytes, provenance
from longformer_triton.bench.model_cells import (
    DIRECTIONS,
    MODELS,
    UNABSORBED,
    ModelCase,
    ModelMeasurement,
    ModelSession,
)
from longformer_triton.bench.model_rounds import Logits, measure_in_turns, needed_bytes, that_fit
from longformer_triton.bench.record import DIED, OK, OUT_OF_MEMORY, SKIPPED, Record
from longformer_triton.bench.sweep import MEMORY_SHARE
from longformer_triton.bench.worker import Worker

# The length at which implementations are compared, and the absorbed projections with those of all tokens.
COMPARED_AT = 4096
SHORT, USUAL = 64, 512


@dataclasses.dataclass(frozen=True)
class ModelPlan:
    """The axes of a sweep and its limits; the model is base-sized unless said. Times are in seconds.

    ``retry``: whether to measure again what died, went wrong or ran out of memory.
    """

    lengths: Sequence[int] = (SHORT, USUAL, 1024, 2048, COMPARED_AT, 8192)
    window: int = 512
    directions: Sequence[str] = DIRECTIONS
    batch: int = 1
    layers: int = 12
    heads: int = 12
    head_dim: int = 64
    dtype: str = "float32"
    device: str = "cpu"
    threads: int | None = None
    cell_seconds: float = 10.0
    max_call_seconds: float = 90.0
    retry: bool = False
    time_limit: float | None = None

    def validate(self) -> None:
        """Raise ValueError for axes that cannot be."""
        unknown = [direction for direction in self.directions if direction not in DIRECTIONS]
        if unknown:
            raise ValueError(f"direction: got {', '.join(unknown)}, expected one of {', '.join(DIRECTIONS)}.")
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype: got {self.dtype}, expected one of {', '.join(DTYPES)}.")
        if not self.lengths or min(self.lengths) < 1:
            raise ValueError(f"lengths: got {list(self.lengths)}, expected at least one number, each >= 1.")
        if self.window < 2 or self.window % 2:
            raise ValueError(f"window: got {self.window}, expected an even total of both sides, as attention_window.")

    def groups(self) -> Iterator[list[ModelCase]]:
        """Cells that run side by side: short texts before long ones, so that long ones can be predicted."""
        compared = comparison_length(self.lengths)
        for length in sorted(self.lengths):
            for direction in self.directions:
                yield [
                    ModelCase(
                        name, direction, length, self.window if provider.is_windowed else None,
                        self.batch, self.layers, self.heads, self.head_dim, self.dtype,
                    )
                    for name, provider in MODELS.items()
                    if name != UNABSORBED or length == compared
                ]  # fmt: skip


def comparison_length(lengths: Sequence[int]) -> int:
    """4096, or the longest if that was not measured."""
    return COMPARED_AT if COMPARED_AT in lengths else max(lengths)


def why_skip(case: ModelCase, plan: ModelPlan, done: dict[ModelCase, dict[str, str]]) -> str | None:
    """The reason not to run a cell, or None; time and memory are foreseen from the longest shorter text."""
    reason = MODELS[case.provider].why_not()
    if reason is not None:
        return reason
    nearest = next(iter(_shorter(case, done)), None)
    if nearest is None:
        return None
    growth = case.seq_len / nearest.seq_len
    seconds = float(done[nearest]["p50_ms"]) / 1e3 * growth ** (1 if case.window else 2)
    if seconds > plan.max_call_seconds:
        return f"about {seconds:.0f} s a call, more than --max-call-seconds {plan.max_call_seconds:g}"
    device = torch.device(plan.device)
    needed, free = needed_bytes([case], {case: _active_bytes(case, done)}, device.type), free_bytes(device)
    if needed > MEMORY_SHARE * free:
        return f"needs about {needed / 2**30:.1f} GiB, more than {MEMORY_SHARE:.0%} of the {free / 2**30:.1f} GiB that are free"
    return None


def _shorter(case: ModelCase, done: dict[ModelCase, dict[str, str]]) -> list[ModelCase]:
    """The finished cells that are like this one but for a shorter text, the longest first."""
    shorter = [
        other
        for other, row in done.items()
        if row["status"] == OK and dataclasses.replace(other, seq_len=case.seq_len) == case and other.seq_len < case.seq_len
    ]
    return sorted(shorter, key=lambda other: -other.seq_len)


def _active_bytes(case: ModelCase, done: dict[ModelCase, dict[str, str]]) -> float:
    """The memory that one call will take beyond the model, growing as it did between two shorter texts; 0 if nothing is known.

    From one text alone growth is taken to be linear, and from two never less than that.
    """
    found = [(other.seq_len, float(done[other]["peak_extra_mib"]) * 2**20) for other in _shorter(case, done)[:2]]
    if not found:
        return 0.0
    (length, size), (before, size_before) = found[0], found[-1]
    power = max(1.0, math.log(size / size_before) / math.log(length / before)) if length > before else 1.0
    return size * (case.seq_len / length) ** power


def run_models(plan: ModelPlan, folder: pathlib.Path, console: Console) -> bool:
    """Measure every cell of the plan that ``folder`` does not hold yet.

    Returns:
        Whether the plan was finished; False when the time limit came first.

    Raises:
        ValueError: the plan or the folder does not fit.
        KeyboardInterrupt: the user stopped it; every finished row is on disk.
    """
    plan.validate()
    sweep = _Sweep(plan, folder, console)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    groups = list(plan.groups())
    before = sum(case in sweep.done for group in groups for case in group)
    console.print(f"{sum(map(len, groups))} cells on {sweep.origin['device']}, {before} done before: {sweep.record.path}")
    for warning in sweep.record.others(sweep.origin):
        console.print(f"[yellow]{warning}")
    try:
        with sweep.record.alone(), Progress(*columns, console=console) as progress:
            task = progress.add_task("", total=len(groups))
            for group in groups:
                progress.update(task, description=f"{group[0].direction}, {group[0].seq_len} tokens")
                if not sweep.run_group(group):
                    return False
                progress.advance(task)
    finally:
        sweep.stop()
    return True


class _Sweep:
    def __init__(self, plan: ModelPlan, folder: pathlib.Path, console: Console) -> None:
        self.plan, self.console = plan, console
        self.record = Record(folder, ModelCase, ModelMeasurement)
        self.done: dict[ModelCase, dict[str, str]] = self.record.finished(retry=plan.retry)
        self.origin = provenance(torch.device(plan.device))
        if plan.threads is not None:
            self.origin["threads"] = str(plan.threads)
        self.workers: dict[ModelCase, Worker] = {}
        self.deadline = None if plan.time_limit is None else time.monotonic() + plan.time_limit

    def run_group(self, group: Sequence[ModelCase]) -> bool:
        """Measure what of the group is not there yet; False when the deadline came first."""
        runnable = []
        for case in group:
            reason = None if case in self.done else why_skip(case, self.plan, self.done)
            if reason is not None:
                self.record.append(case, SKIPPED, self.origin, reason=reason)
                self.console.print(f"[yellow]{case.provider}, {case.direction}, {case.seq_len} tokens: skipped: {reason}")
            elif case not in self.done:
                runnable.append(case)
        active = {case: _active_bytes(case, self.done) for case in runnable}
        device = torch.device(self.plan.device)
        logits: dict[str, Logits] = {}
        sets = that_fit(runnable, active, device.type, MEMORY_SHARE * free_bytes(device))
        return all(self._measure(cases, logits) for cases in sets)

    def _measure(self, cases: Sequence[ModelCase], logits: dict[str, Logits]) -> bool:
        self.workers = {case: Worker(self.plan.device, self.plan.threads, ModelSession()) for case in cases}
        outcomes = measure_in_turns(self.workers, self.plan.cell_seconds, self.deadline, logits)
        self.stop()
        if outcomes is None:
            return False
        alone: list[ModelCase] = []
        for case in cases:
            status, reason, measured = outcomes[case]
            if len(cases) > 1 and status in (DIED, OUT_OF_MEMORY):
                # The others' models may have taken what this one needed.
                self.console.print(f"[yellow]{case.provider}, {case.seq_len} tokens: {status}: {reason}; again, alone")
                alone.append(case)
                continue
            self.record.append(case, status, self.origin, measured, reason)
            if status != OK:
                self.console.print(f"[yellow]{case.provider}, {case.direction}, {case.seq_len} tokens: {status}: {reason}")
        self.done = self.record.finished()
        return all(self._measure([case], logits) for case in alone)

    def stop(self) -> None:
        """End the processes of the cells that are being measured."""
        for worker in self.workers.values():
            worker.stop()
