"""``bench gpu``: everything that a GPU is wanted for, in the order of its worth, in slices that a later call goes on from.

First whether the kernels are right: ``doctor``, the tests marked ``gpu`` where this is a checkout, NVIDIA's compute-sanitizer
where it is installed. None of these needs transformers or test assets. Then the sweeps against every peer, whole models, and
the longest text that fits. Last the tuning of launch configurations, whose table is for the caller to put in force.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from rich.console import Console

from longformer_triton.bench.longest import run_longest
from longformer_triton.bench.model_plot import draw_and_describe
from longformer_triton.bench.model_sweep import ModelPlan, run_models
from longformer_triton.bench.plot_suites import draw_suite
from longformer_triton.bench.suites import gpu_plans, note_suite
from longformer_triton.bench.sweep import Plan, run_sweep

_STATE = "steps.json"
# One folder, in which every cell names its axes: `bench sweep --suite gpu --out` goes on in it too.
_SWEEP = "sweep"
_TUNED = "tuned.csv"
_COMMAND = (sys.executable, "-m", "longformer_triton.cli")
_MODEL_LENGTHS = tuple(2**power for power in range(9, 17))
# What the sanitizer watches: every kind of problem once, small, because it slows everything down a hundred times.
_TINY = """
import dataclasses, torch
from longformer_triton.bench import kernel_checks
for check in kernel_checks.CHECKS:
    sides = tuple(side // 5 for side in check.window)
    tiny = dataclasses.replace(check, seq_len=check.seq_len // 5, window=sides, num_globals=min(check.num_globals, 5))
    print(kernel_checks.run_check(tiny, "float16", 32, torch.device("cuda")))
"""

# Returns whether all is well; None when the time was not enough.
Step = Callable[[pathlib.Path, Console, float | None], bool | None]


def _command(name: str, command: list[str], share: float = 1.0, **environment: str) -> Step:
    """A step that runs a command and keeps what it prints; in a process of its own, since a fault of a GPU spoils a process.

    It gets a ``share`` of the seconds that are left, so that what comes after it has its turn too.
    """

    def step(folder: pathlib.Path, console: Console, left: float | None) -> bool | None:
        log = folder / f"{name}.txt"
        with log.open("w") as file:
            process = subprocess.Popen(
                command, stdout=file, stderr=subprocess.STDOUT, cwd=folder, env={**os.environ, **environment},
                start_new_session=True,
            )  # fmt: skip
            try:
                status = process.wait(None if left is None else share * left)
            except subprocess.TimeoutExpired:
                # With those that it started: the next step is to have the GPU to itself.
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                return None
        console.print(f"{name}: exit status {status}, {log}")
        return status == 0

    return step


def _sweep(plans: Sequence[Plan]) -> Step:
    def step(folder: pathlib.Path, console: Console, left: float | None) -> bool | None:
        note_suite("gpu", folder / _SWEEP)
        finished = run_sweep([dataclasses.replace(plan, time_limit=left) for plan in plans], folder / _SWEEP, console)
        return True if finished else None

    return step


def _draw(folder: pathlib.Path, console: Console, left: float | None) -> bool:  # noqa: ARG001 - every step has these
    try:
        draw_suite(folder / _SWEEP)
    except ValueError as error:
        console.print(f"[yellow]{error}")
        return False
    return True


def _models(dtype: str) -> Step:
    def step(folder: pathlib.Path, console: Console, left: float | None) -> bool | None:
        plan = ModelPlan(lengths=_MODEL_LENGTHS, dtype=dtype, device="cuda", cell_seconds=1.0, time_limit=left)
        finished = run_models(plan, folder / f"model-{dtype}", console)
        if not finished:
            return None
        draw_and_describe(folder / f"model-{dtype}")
        return True

    return step


def _longest(folder: pathlib.Path, console: Console, left: float | None) -> bool | None:
    return True if run_longest(folder / "longest", console, "cuda", time_limit=left) else None


def _say(text: str) -> Step:
    """A step that cannot run here, and says so."""

    def step(folder: pathlib.Path, console: Console, left: float | None) -> bool:  # noqa: ARG001 - every step has these
        console.print(f"[yellow]{text}")
        return True

    return step


def steps(done: Mapping[str, bool]) -> Iterator[tuple[str, Step]]:
    """Every step by name, in the order they run; ``done`` are those that are, and whether all was well."""
    yield "doctor", _command("doctor", [*_COMMAND, "doctor"], share=0.7)
    tests = pathlib.Path(__file__).resolve().parent.parent / "tests" / "gpu"
    if tests.is_dir():
        command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", str(tests)]
        # What a doctor that is content has done already, in processes side by side
        known = ["-k", "not shipped_configurations"] if done.get("doctor") else []
        yield "tests", _command("tests", [*command, *known], share=0.5)
    sanitizer = shutil.which("compute-sanitizer")
    if sanitizer is None:
        yield (
            "sanitizer",
            _say("compute-sanitizer is not on the PATH: no memcheck and no racecheck (it comes with the CUDA toolkit)"),
        )
    else:
        for tool in ("memcheck", "racecheck"):
            command = [sanitizer, "--tool", tool, "--error-exitcode", "1", sys.executable, "-c", _TINY]
            # PyTorch's allocator hands out parts of large blocks, within which nothing is out of bounds.
            yield tool, _command(tool, command, share=0.25, PYTORCH_NO_CUDA_MEMORY_CACHING="1")
    for name, plans in gpu_plans():
        yield name, _sweep(plans)
    yield "pictures of the sweeps", _draw
    for dtype in ("bfloat16", "float32"):
        yield f"model, {dtype}", _models(dtype)
    yield "longest", _longest
    for dtype in ("float16", "tf32"):
        # Begun again, it goes on after the rows that the table holds.
        options = ["--dtype", dtype, "--head-dim", "64,128", "--save", _TUNED]
        yield f"tuning, {dtype}", _command(f"tuning-{dtype}", [*_COMMAND, "bench", "tune", *options])


def default_folder() -> pathlib.Path:
    """results/ and the name of the GPU; run_gpu says so where there is none."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "gpu"
    return pathlib.Path("results") / re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def run_gpu(folder: pathlib.Path, console: Console, time_limit: float | None) -> bool:
    """Run the steps that ``folder`` does not hold yet; whether all that ran went well.

    Raises:
        ValueError: there is no GPU.
    """
    if not torch.cuda.is_available():
        raise ValueError("device: there is no GPU here; `longformer-triton doctor` says what can be checked without one.")
    folder.mkdir(parents=True, exist_ok=True)
    state = folder / _STATE
    done: dict[str, bool] = json.loads(state.read_text()) if state.exists() else {}
    deadline = None if time_limit is None else time.monotonic() + time_limit
    for name, step in steps(done):
        if name in done:
            continue
        left = None if deadline is None else deadline - time.monotonic()
        if left is not None and left <= 0:
            console.print(f"time is up before: {name}; run the same command again to go on")
            break
        outcome = step(folder, console, left)
        if outcome is None:
            console.print(f"time is up within: {name}; the same command tries again")
            continue
        done[name] = outcome
        state.write_text(json.dumps(done, indent=1))
    wrong = [name for name, well in done.items() if not well]
    if wrong:
        console.print(f"[red]not well: {', '.join(wrong)}")
    return not wrong
