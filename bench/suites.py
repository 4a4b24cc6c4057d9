"""Named suites: which cells answer which question. Each may be stopped and goes on where it was; each has its pictures.

On CPUs heads are few and limits short, so that all of them together end within half an hour on two cores; shares and exponents
do not depend on the number of heads, absolute times do. On a GPU ``gpu`` is the one to run.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from rich.console import Console

from longformer_triton.bench.cases import PREFIX, SCATTERED, TRAINING
from longformer_triton.bench.model_cells import ModelCase, ModelMeasurement
from longformer_triton.bench.model_sweep import ModelPlan, run_models
from longformer_triton.bench.providers import PROVIDERS
from longformer_triton.bench.record import Record
from longformer_triton.bench.sweep import Plan, run_sweep

MODEL, MEMORY = "model", "memory"
# Written beside the CSV, a suite a line, so that its pictures can be drawn again.
SUITE_NAME = "suite.txt"
_OURS = ("ours-triton", "ours-torch")
_K = 1024


def quick(device: str) -> list[Plan]:
    """How do time and memory grow with length and window, against every peer? Three minutes on two cores."""
    # Two more that hold all scores would say nothing that the reference does not, and the paper's chunks have a suite.
    providers = tuple(name for name in PROVIDERS if name not in ("sdpa-math", "chunks"))
    return [
        Plan(
            lengths=(_K, 2 * _K, 4 * _K, 8 * _K, 16 * _K), providers=providers, heads=4, device=device,
            cell_seconds=0.3, max_call_seconds=1.5, peer_windows=(512,), time_limit=160.0,
        )
    ]  # fmt: skip


def paper(device: str) -> list[Plan]:
    """Figure 1 of arXiv 2004.05150: time and memory against length for full attention, chunks and ours; 3 minutes.

    Full attention as in the paper, with all scores in memory, and as PyTorch fuses it today. Forward and backward.
    """
    return [
        Plan(
            lengths=(512, _K, 2 * _K, 4 * _K, 8 * _K, 16 * _K), windows=(512,), directions=(TRAINING,), heads=4, device=device,
            providers=("sdpa-math", "sdpa", "chunks", *_OURS), cell_seconds=0.5, max_call_seconds=8.0,
        )
    ]  # fmt: skip


def windows(device: str) -> list[Plan]:
    """What does a wider window cost, and where does full attention take over? At 8192 tokens; 4 minutes on two cores."""
    return [
        Plan(
            lengths=(8 * _K,), windows=tuple(2**power for power in range(6, 14)), heads=4, device=device,
            providers=("sdpa", "flex", "chunks", "transformers", *_OURS), peer_windows=(128, 512, 2048),
            cell_seconds=0.3, max_call_seconds=5.0,
        )
    ]  # fmt: skip


def global_tokens(device: str) -> list[Plan]:
    """What do global tokens cost, by their number and by where they are? At 16384 tokens; 6 minutes on two cores."""
    plan = Plan(
        lengths=(16 * _K,), windows=(512,), heads=4, device=device, providers=("sdpa", "flex", "transformers", *_OURS),
        cell_seconds=0.5, max_call_seconds=8.0,
    )  # fmt: skip
    return [
        dataclasses.replace(plan, num_globals=count, globals_at=place)
        for count in (0, 1, 16, 64)
        for place in ((PREFIX, SCATTERED) if count else (PREFIX,))
    ]


def short(device: str) -> list[Plan]:
    """Are texts shorter than the window as cheap as they should be, alone and 32 at a time? 3 minutes on two cores."""
    plan = Plan(
        lengths=(64, 128, 256, 512), windows=(512,), heads=4, num_globals=1, device=device,
        providers=("sdpa", "transformers", *_OURS), cell_seconds=0.5, max_call_seconds=8.0,
    )  # fmt: skip
    return [dataclasses.replace(plan, batch=batch) for batch in (1, 32)]


def memory(device: str) -> list[Plan]:
    """How long a text fits into a memory of a given size? 2 minutes on two cores.

    A CPU that runs out of memory kills, so there the peaks of short texts are measured, which is exact, and extrapolated. On a
    GPU the longest text is found by trying (``bench.memory``), besides.
    """
    return [
        Plan(
            lengths=(_K, 2 * _K, 3 * _K, 4 * _K), windows=(512,), device=device, cell_seconds=0.0, max_call_seconds=20.0,
            providers=("sdpa-math", "sdpa", "chunks", "transformers", *_OURS),
        )
    ]  # fmt: skip


def model(device: str) -> ModelPlan:
    """What is left of it in a whole model? That of ``bench model``, with fewer lengths; 8 minutes on two cores."""
    return ModelPlan(lengths=(64, 512, _K, 2 * _K, 4 * _K), device=device, cell_seconds=4.0)


# A GPU's cells hold at least this many tokens, batch included, so that short texts fill the machine too.
GPU_TOKENS = 65_536
GPU_LENGTHS = tuple(2**power for power in range(10, 21))
_GPU_PLACES = ((0, PREFIX), (1, PREFIX), (64, PREFIX), (64, SCATTERED))
_TARGETS = (4 * _K, 16 * _K, 64 * _K)
_SLOW_TO_COMPILE = "flex-tuned"
_ON_CPUS = ("ours-torch", "reference", "sdpa-math", "chunks")


def gpu_plans(device: str = "cuda") -> Iterator[tuple[str, list[Plan]]]:
    """The cells of ``bench gpu`` in steps, by name, in the order of their worth.

    First graphs, and what the targets speak of; then all lengths, windows and globals, cheap ones first, and dropout after all
    without it. What takes minutes to compile, flex_attention tuned by max-autotune, comes after the others of its kind.
    """
    peers = tuple(name for name in PROVIDERS if name not in (*_ON_CPUS, _SLOW_TO_COMPILE))
    plan = Plan(
        windows=(512,), providers=peers, dtype="bfloat16", device=device, cell_seconds=0.5, max_call_seconds=5.0,
    )  # fmt: skip

    def at(lengths: Sequence[int], **axes: Any) -> list[Plan]:
        return [dataclasses.replace(plan, lengths=(length,), batch=max(1, GPU_TOKENS // length), **axes) for length in lengths]

    for count, place in _GPU_PLACES[:2]:
        axes: dict[str, Any] = {"num_globals": count, "globals_at": place}
        yield (
            f"graph, {_named(count, place)}",
            [dataclasses.replace(plan, lengths=(4 * _K,), providers=("ours-triton",), graph=1, **axes)],
        )
    for count, place in _GPU_PLACES[:2]:
        yield f"targets, {_named(count, place)}", at(_TARGETS, num_globals=count, globals_at=place)
    yield "targets, tuned flex_attention", at(_TARGETS, providers=(_SLOW_TO_COMPILE,))
    for dropout in (0, 10):
        for count, place in _GPU_PLACES:
            axes = {"num_globals": count, "globals_at": place, "dropout": dropout, "windows": (128, 512, 2048)}
            name = f"sweep, {_named(count, place)}" + (f", dropout {dropout} %" if dropout else "")
            yield name, at(GPU_LENGTHS, **axes)
    for count, place in _GPU_PLACES:
        axes = {"num_globals": count, "globals_at": place, "windows": (128, 512, 2048), "providers": (_SLOW_TO_COMPILE,)}
        yield f"sweep of tuned flex_attention, {_named(count, place)}", at(GPU_LENGTHS, **axes)


def _named(count: int, place: str) -> str:
    return f"{count} {'scattered ' if place == SCATTERED else ''}globals"


def gpu(device: str) -> list[Plan]:
    """Everything that ``bench gpu`` sweeps, in one folder: lengths to a million, globals, dropout, graphs. Hours on a GPU."""
    return [plan for _, plans in gpu_plans(device) for plan in plans]


def all_axes(device: str) -> list[Plan]:
    """Lengths to 32k and three windows at 12 heads, against everything that runs; as long as it takes."""
    return [Plan(device=device)]


SUITES: dict[str, Callable[[str], Any]] = {
    "all": all_axes,
    "quick": quick,
    "paper": paper,
    "windows": windows,
    "globals": global_tokens,
    "short": short,
    MODEL: model,
    MEMORY: memory,
    "gpu": gpu,
}


def plans_of(name: str, device: str, given: dict[str, Any]) -> Any:
    """The plans of a suite with some of their fields replaced: a list of them, or the plan of ``model``.

    Raises:
        ValueError: there is no such suite, or its plans have no such field.
    """
    if name not in SUITES:
        raise ValueError(f"suite: got {name}, expected one of {', '.join(SUITES)}.")
    made = SUITES[name](device)
    plans = [made] if isinstance(made, ModelPlan) else made
    fields = {field.name for field in dataclasses.fields(plans[0])}
    unknown = sorted(set(given) - fields)
    if unknown:
        raise ValueError(f"{unknown[0]}: the suite {name} has no such axis; leave the option out.")
    plans = [dataclasses.replace(plan, **given) for plan in plans]
    return plans[0] if isinstance(made, ModelPlan) else plans


def run_suite(name: str, plans: Plan | Sequence[Plan] | ModelPlan, folder: pathlib.Path, console: Console) -> bool:
    """Measure what of a suite ``folder`` does not hold yet; whether it was finished.

    Raises:
        ValueError: a plan or the folder does not fit.
        KeyboardInterrupt: the user stopped it; every finished row is on disk.
    """
    each = [plans] if isinstance(plans, (Plan, ModelPlan)) else list(plans)
    for plan in each:
        plan.validate()
    # Refuses a folder of other results before anything is written there.
    Record(folder, *((ModelCase, ModelMeasurement) if isinstance(plans, ModelPlan) else ()))
    note_suite(name, folder)
    finished = run_models(plans, folder, console) if isinstance(plans, ModelPlan) else run_sweep(plans, folder, console)
    first = each[0]
    if finished and name == MEMORY and first.device.startswith("cuda"):
        from longformer_triton.bench.memory import run_longest_attention

        assert isinstance(first, Plan)
        run_longest_attention(first, folder / "longest", console)
    return finished


def note_suite(name: str, folder: pathlib.Path) -> None:
    """Note in a folder, made if it is not there, that it is measured for a suite, before anything is: a run may be killed."""
    folder.mkdir(parents=True, exist_ok=True)
    noted = [*_noted(folder), name]
    (folder / SUITE_NAME).write_text("".join(f"{one}\n" for one in dict.fromkeys(noted)))


def suites_of(folder: pathlib.Path) -> list[str]:
    """The suites that a folder was measured for, in the order of their first runs; ``all`` where none was noted."""
    return _noted(folder) or ["all"]


def _noted(folder: pathlib.Path) -> list[str]:
    path = folder / SUITE_NAME
    return [name for name in path.read_text().split() if name in SUITES] if path.exists() else []
