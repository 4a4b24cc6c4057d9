"""One cell, measured: first call, check against the reference, peak extra memory, then the times."""

from __future__ import annotations

import dataclasses
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from longformer_triton.bench import check
from longformer_triton.bench.cases import TRAINING, Case, Inputs, useful_flops
from longformer_triton.bench.providers import PROVIDERS, Provider, Run

_FEWEST, _MOST = 3, 60
_L2_FLUSH_BYTES = 256 << 20
# How long a GPU spins before a call at first and at most, and what no GPU's clock is faster than.
_LEAD_SECONDS, _LONGEST_LEAD_SECONDS = 2e-3, 2e-2
_CLOCKS_A_SECOND = 2.5e9


@dataclasses.dataclass
class Measurement:
    """What a cell gives: milliseconds, MiB of extra memory at the peak, TFLOP/s at the median, error against float64.

    The rates are of useful operations (``cases.useful_flops``) and, where they are known, of all that tiles computed
    (``tile_flops.py``). A CUDA graph has its memory before it is called, so that there is no peak.
    """

    p20_ms: float
    p50_ms: float
    p80_ms: float
    repeats: int
    first_call_ms: float
    peak_extra_mib: float | None
    useful_tflops: float
    relative_error: float
    tile_tflops: float | None = None


# (output, gradients by name)
Result = tuple[Tensor, dict[str, Tensor]]
Call = Callable[[], Result]
_WARM_UP = 3


def captured(call: Call, device: torch.device) -> Call:
    """``call`` as a CUDA graph: what it launches is recorded once, and a replay costs one launch. Results keep their places.

    Warmed up on the stream of its own that capturing wants, so that nothing is compiled or allocated for the first time in it.
    """
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for _ in range(_WARM_UP):
            call()
    torch.cuda.current_stream(device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = call()

    def replay() -> Result:
        graph.replay()
        return result

    return replay


class Cell:
    """A provider set up for a case; ``call`` is what is timed."""

    def __init__(self, case: Case, device: torch.device) -> None:
        self.case, self.device = case, device
        self.provider: Provider = PROVIDERS[case.provider]
        self.inputs = Inputs.random(case, device)
        self._lead_seconds = _LEAD_SECONDS
        self.leaves = {name: leaf for name, leaf in self.inputs.packed.items() if self._reaches(name)}
        start = time.perf_counter()
        self._run: Run = self.provider.prepare(self.inputs)
        self.call: Call = self._eager
        first = self.call()
        self.synchronize()
        if case.graph:
            self.call = captured(self._eager, device)
            first = self.call()
            self.synchronize()
        self.first_call_ms = (time.perf_counter() - start) * 1e3
        self.error = self._check(*first)

    def _reaches(self, name: str) -> bool:
        has_own_rows = self.provider.is_windowed and not self.provider.shares_projections
        return has_own_rows or not name.endswith("_global")

    def _eager(self) -> Result:
        """Forward alone without gradients, or forward and backward."""
        if self.case.direction != TRAINING:
            with torch.no_grad():
                return self._run(), {}
        out = self._run()
        grads = torch.autograd.grad(out, list(self.leaves.values()), self.inputs.grad_out)
        return out, dict(zip(self.leaves, grads, strict=True))

    def synchronize(self) -> None:
        """Wait for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _check(self, out: Tensor, grads: dict[str, Tensor]) -> float:
        error = check.check_output(self.inputs, out, self.provider)
        if grads:
            error = max(error, check.check_gradients(self.inputs, grads, self.provider))
        return error

    def time_once(self) -> float:
        """Milliseconds of one call; on a GPU by events, with a cold L2 cache.

        The GPU spins first for as long as Python needs to ask for all of the call's work, so that its time is that of the work.
        What Python costs beside it is for cells in CUDA graphs to show, or for whole models, which are timed by the clock.
        """
        if self.device.type == "cuda":
            torch.empty(_L2_FLUSH_BYTES, dtype=torch.int8, device=self.device).zero_()
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            torch.cuda._sleep(int(self._lead_seconds * _CLOCKS_A_SECOND))
            begin.record()
            start = time.perf_counter()
            self.call()
            asked = time.perf_counter() - start
            end.record()
            self.synchronize()
            # A call that waits for the GPU asks for as long as the GPU spins, and is not to be given more and more.
            self._lead_seconds = min(max(self._lead_seconds, 1.5 * asked), _LONGEST_LEAD_SECONDS)
            return begin.elapsed_time(end)
        start = time.perf_counter()
        self.call()
        return (time.perf_counter() - start) * 1e3


def peak_extra_bytes(call: Callable[[], object], device: torch.device) -> int:
    """The most memory that a call holds at once beyond what was there before.

    On a GPU the allocator says so. On a CPU resident size does not show it, since freed memory is reused; the running sum of
    the profiler's allocation events does, to the byte.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    profile: Any = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True)
    with warnings.catch_warnings():
        # torch 2.11 warns that events are those of one cycle. To keep more means to parse all of them, which takes longer than
        # the call.
        warnings.filterwarnings("ignore", "Warning: Profiler clears events")
        profile.start()
    try:
        call()
    finally:
        profile.stop()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    running = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        running += event.nbytes()
        peak = max(peak, running)
    return peak


def percentiles(samples_ms: list[float]) -> tuple[float, float, float]:
    """p20, median and p80; of a single sample, three times that."""
    if len(samples_ms) == 1:
        return samples_ms[0], samples_ms[0], samples_ms[0]
    cuts = statistics.quantiles(samples_ms, n=10, method="inclusive")
    return cuts[1], statistics.median(samples_ms), cuts[7]


def summarise(cell: Cell, samples_ms: list[float], peak_bytes: int | None) -> Measurement:
    """Percentiles of the samples, and the rates that follow."""
    p20, median, p80 = percentiles(samples_ms)
    of_tiles = cell.provider.tile_flops(cell.inputs)
    return Measurement(
        p20_ms=round(p20, 4),
        p50_ms=round(median, 4),
        p80_ms=round(p80, 4),
        repeats=len(samples_ms),
        first_call_ms=round(cell.first_call_ms, 3),
        peak_extra_mib=None if peak_bytes is None else round(peak_bytes / 2**20, 3),
        useful_tflops=float(f"{useful_flops(cell.case) / median / 1e9:.5g}"),
        relative_error=float(f"{cell.error:.2e}"),
        tile_tflops=None if of_tiles is None else float(f"{of_tiles / median / 1e9:.5g}"),
    )


def measure(case: Case, device: torch.device, cell_seconds: float) -> Measurement:
    """Measure one cell; repeats fill ``cell_seconds``, and are three at least.

    Raises:
        check.WrongAnswerError: the provider's numbers are not the reference's.
        torch.OutOfMemoryError: as the device says.
    """
    cell = Cell(case, device)
    peak = None if case.graph else peak_extra_bytes(cell.call, device)
    samples: list[float] = []
    deadline = time.perf_counter() + cell_seconds
    while len(samples) < _FEWEST or (time.perf_counter() < deadline and len(samples) < _MOST):
        samples.append(cell.time_once())
    return summarise(cell, samples, peak)
