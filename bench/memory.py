"""The longest text whose attention fits into a memory: by extrapolating measured peaks, or on a GPU by trying.

Memory is deterministic, so the peaks of a few lengths fix a + b N + c N^2; what the inputs and the gradient of the output take
is added. The longest length that was measured is predicted from the others, which says how good the fit is.
"""

from __future__ import annotations

import dataclasses
import gc
import math
import pathlib

import numpy as np
import pandas as pd
import torch
from rich.console import Console

from longformer_triton.bench.cases import DTYPES, TRAINING, Case
from longformer_triton.bench.longest import longest
from longformer_triton.bench.machine import provenance
from longformer_triton.bench.measure import Cell
from longformer_triton.bench.plot import one_window, setting, usual
from longformer_triton.bench.providers import PROVIDERS
from longformer_triton.bench.record import OK, SKIPPED, Record
from longformer_triton.bench.sweep import Plan, label

BUDGETS_GIB = (8, 80)
MARKDOWN_NAME = "memory.md"
_FEWEST = 3
# Below this share of the peak a quadratic term is rounding: allocations come in steps.
_NEGLIGIBLE = 1e-3


@dataclasses.dataclass(frozen=True)
class Fit:
    """Bytes of one call, inputs included: ``constant`` + ``linear`` N + ``quadratic`` N^2; ``off`` at the length left out."""

    provider: str
    direction: str
    constant: float
    linear: float
    quadratic: float
    off: float

    def at(self, length: float) -> float:
        """Bytes at a length."""
        return self.constant + self.linear * length + self.quadratic * length**2

    def longest(self, budget: float) -> int:
        """The most tokens that ``budget`` bytes hold."""
        left = max(0.0, budget - self.constant)
        if not self.quadratic:
            return int(left / self.linear)
        root = math.sqrt(self.linear**2 + 4 * self.quadratic * left)
        return int(2 * left / (self.linear + root))


def fits(frame: pd.DataFrame) -> list[Fit]:
    """A fit for each provider and direction of which at least three lengths were measured.

    Raises:
        ValueError: there is none.
    """
    found = []
    measured = frame.dropna(subset=["peak_extra_mib"])
    for (provider, direction), rows in measured.groupby(["provider", "direction"], sort=False):
        if len(rows) < _FEWEST:
            continue
        lengths, measured_peaks = peaks(rows)
        kept = slice(None) if len(rows) == _FEWEST else slice(0, -1)
        off = abs(_polynomial(lengths[kept], measured_peaks[kept]) @ _powers(lengths[-1:])[0] / measured_peaks[-1] - 1)
        constant, linear, quadratic = map(float, _polynomial(lengths, measured_peaks))
        found.append(Fit(str(provider), str(direction), constant, linear, quadratic, float(off)))
    if not found:
        raise ValueError("folder: no provider was measured at three lengths or more, so there is nothing to extrapolate.")
    return found


def peaks(rows: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """(lengths, ascending; measured bytes of one call at each, inputs and the gradient of the output included)."""
    rows = rows.sort_values("seq_len")
    states = rows["direction"].map(lambda name: 4 if name == TRAINING else 3) * rows["batch"] * rows["heads"] * rows["head_dim"]
    inputs = states * rows["dtype"].map(lambda name: DTYPES[name].itemsize) * rows["seq_len"]
    return rows["seq_len"].to_numpy(float), (rows["peak_extra_mib"] * 2**20 + inputs).to_numpy(float)


def _powers(lengths: np.ndarray) -> np.ndarray:
    return np.stack([np.ones_like(lengths), lengths, lengths**2], 1)


def _polynomial(lengths: np.ndarray, peaks: np.ndarray) -> np.ndarray:
    """Constant, linear and quadratic coefficient; no quadratic one where it explains nothing."""
    coefficients = np.linalg.lstsq(_powers(lengths), peaks, rcond=None)[0]
    if abs(coefficients[2]) * lengths[-1] ** 2 > _NEGLIGIBLE * peaks[-1] and coefficients[2] > 0:
        return coefficients
    return np.append(np.linalg.lstsq(_powers(lengths)[:, :2], peaks, rcond=None)[0], 0.0)


def as_markdown(frame: pd.DataFrame) -> str:
    """The table of :func:`fits`, with where it comes from; of one window, where the folder has several."""
    frame, window = one_window(usual(frame))
    first = frame.iloc[0]
    budgets = "".join(f" tokens in {budget} GiB |" for budget in BUDGETS_GIB)
    lines = [
        f"| provider | direction | bytes a token | bytes a token^2 |{budgets} fit is off by |",
        "|---|---|---:|---:|" + "---:|" * len(BUDGETS_GIB) + "---:|",
    ]
    for fit in fits(frame):
        cells = "".join(f" {rounded(fit.longest(budget * 2**30)):,} |" for budget in BUDGETS_GIB)
        title = PROVIDERS[fit.provider].title
        lines.append(f"| {title} | {fit.direction} | {fit.linear:,.0f} | {fit.quadratic:,.1f} |{cells} {fit.off:.1%} |")
    commits = ", ".join(dict.fromkeys(frame["commit"].astype(str)))
    lines += [
        "",
        f"Attention, {setting(frame).partition(';')[0]}{'' if window is None else f', window {window}'}.",
        f"Peaks were measured at {', '.join(str(length) for length in sorted(frame['seq_len'].unique()))} tokens, inputs",
        "included; longer texts are extrapolated. The last column is the error at the longest, predicted from the others.",
        f"{first['device']}, torch {first['torch']}, {first['date'][:10]}, commit {commits}.",
    ]
    return "\n".join(lines) + "\n"


def rounded(tokens: int) -> int:
    """Two significant digits: the fit claims no more."""
    digits = max(0, len(str(tokens)) - 2)
    return tokens // 10**digits * 10**digits


@dataclasses.dataclass
class Longest:
    """Tokens of the longest text for which a call fitted."""

    seq_len: int


@dataclasses.dataclass(frozen=True)
class LongestCase:
    """Whose attention, in which direction, of which size; one text."""

    provider: str
    direction: str
    window: int | None
    heads: int
    head_dim: int
    dtype: str


def _runs(case: Case, device: torch.device) -> bool:
    """Whether a cell, checked as always, finds room."""
    gc.collect()
    torch.cuda.empty_cache()
    try:
        Cell(case, device)
    except torch.OutOfMemoryError:
        return False
    return True


def run_longest_attention(plan: Plan, folder: pathlib.Path, console: Console) -> None:
    """On a GPU: try lengths till memory ends, for every provider of ``plan``; rows that are there are left alone."""
    device = torch.device(plan.device)
    record, origin = Record(folder, LongestCase, Longest), provenance(device)
    done = record.finished()
    for case in dict.fromkeys(dataclasses.replace(case, seq_len=min(plan.lengths)) for case in plan.cases()):
        row = LongestCase(case.provider, case.direction, case.window, case.heads, case.head_dim, case.dtype)
        if row in done:
            continue
        reason = PROVIDERS[case.provider].why_not(case, device)
        if reason is not None:
            record.append(row, SKIPPED, origin, reason=reason)
            continue
        with console.status(label(case)):
            found = longest(lambda seq_len, case=case: _runs(dataclasses.replace(case, seq_len=seq_len), device))  # type: ignore[misc]
        record.append(row, OK, origin, Longest(found))
        console.print(f"{label(case)}: {found} tokens")
