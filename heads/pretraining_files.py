"""The files of a run: checkpoints that are whole or not there, a log with one line for each step, and its picture."""

from __future__ import annotations

import contextlib
import csv
import logging
import math
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from longformer_triton.model.atomic import flush

_STEP = "step-"
LOG, CURVE = "log.csv", "loss.png"
COLUMNS = (
    "step", "loss", "validation_loss", "validation_bits", "learning_rate", "gradient_norm", "tokens", "tokens_per_second",
)  # fmt: skip
# Losses of single steps scatter: a mean over so many shows where they go.
_SMOOTHED = 20


def last_checkpoint(folder: Path) -> tuple[Path, int] | None:
    """The newest complete checkpoint and its step."""
    found = sorted(folder.glob(f"{_STEP}*"))
    return (found[-1], int(found[-1].name.removeprefix(_STEP))) if found else None


def save_checkpoint(accelerator: Any, folder: Path, step: int, keep: int) -> None:
    """Write the state of all processes, and take older checkpoints away.

    Its files lie under another name until all of them are complete and flushed: what has its name is whole. All processes have
    to call this, and see the same ``folder``.
    """
    final = folder / f"{_STEP}{step:09}"
    draft = folder / f".{final.name}.new"
    if accelerator.is_main_process:
        draft.mkdir(parents=True)
    accelerator.wait_for_everyone()
    with _without_a_warning():
        accelerator.save_state(str(draft))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        for path in (*draft.rglob("*"), draft):
            flush(path)
        draft.replace(final)
        flush(folder)
        for old in sorted(folder.glob(f"{_STEP}*"))[:-keep]:
            # Half removed it would still have its name.
            doomed = folder / f".{old.name}.old"
            old.replace(doomed)
            shutil.rmtree(doomed)
    accelerator.wait_for_everyone()


@contextlib.contextmanager
def _without_a_warning() -> Iterator[None]:
    """accelerate warns that tied parameters are written once, each time; they are, and loading ties them again."""
    log = logging.getLogger("accelerate.utils.other")
    hide = lambda record: "Removed shared tensor" not in record.getMessage()  # noqa: E731 - a filter
    log.addFilter(hide)
    try:
        yield
    finally:
        log.removeFilter(hide)


def clean(folder: Path) -> None:
    """Remove what a process that died left of checkpoints."""
    for path in folder.glob(f".{_STEP}*"):
        shutil.rmtree(path)


class TrainingLog:
    """``log.csv`` in the folder of a run: :data:`COLUMNS`, a line a step, each on its way to the disk before the next step.

    Args:
        folder: of the run.
        step: lines of later steps, from before a kill, are cut off: those steps come again.
    """

    def __init__(self, folder: Path, step: int) -> None:
        self.path = folder / LOG
        kept = [row for row in read_log(folder) if int(row["step"]) <= step]
        draft = folder / f".{LOG}.new"
        with draft.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(kept)
        draft.replace(self.path)

    def append(self, row: Mapping[str, float | int | None]) -> None:
        """Add the line of a step; None stays empty."""
        with self.path.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, COLUMNS, lineterminator="\n").writerow(row)


def read_log(folder: Path) -> list[dict[str, str]]:
    """The lines of ``log.csv``, without one that was cut off."""
    path = folder / LOG
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    return list(csv.DictReader(text[: text.rfind("\n") + 1].splitlines()))


def draw_curve(folder: Path) -> Path | None:
    """Draw ``loss.png`` from ``log.csv``: loss in nats and bits for each masked token, in training and on held-out text."""
    rows = read_log(folder)
    if not rows:
        return None
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    steps, losses = [int(row["step"]) for row in rows], [float(row["loss"]) for row in rows]
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(steps, losses, color="0.75", linewidth=1, label="training, each step", marker="." if len(rows) == 1 else None)
    if len(rows) > _SMOOTHED:
        means = [sum(losses[end - _SMOOTHED : end]) / _SMOOTHED for end in range(_SMOOTHED, len(losses) + 1)]
        axes.plot(steps[_SMOOTHED - 1 :], means, color="C0", label=f"training, mean of {_SMOOTHED} steps")
    measured = [(int(row["step"]), float(row["validation_loss"])) for row in rows if row["validation_loss"]]
    if measured:
        axes.plot(*zip(*measured, strict=True), "o-", color="C1", markersize=4, label="held-out text")
    axes.set_xlabel("step")
    axes.set_ylabel("loss, nats for each masked token")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    bits = axes.secondary_yaxis("right", functions=(_to_bits, _to_nats))
    bits.set_ylabel("bits for each masked token")
    axes.grid(alpha=0.3)
    axes.spines[["top"]].set_visible(False)
    axes.legend(frameon=False)
    draft = folder / f".{CURVE}"
    figure.savefig(draft, dpi=150, format="png")
    draft.replace(folder / CURVE)
    return folder / CURVE


def _to_bits(nats: Any) -> Any:
    return nats / math.log(2)


def _to_nats(bits: Any) -> Any:
    return bits * math.log(2)
