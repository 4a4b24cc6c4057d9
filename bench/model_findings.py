"""What the rows of a sweep over whole models say: speed-ups, memory, and where linear attention wins."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence

import numpy as np
import pandas as pd
from rich.table import Table

from longformer_triton.bench.model_cells import DIRECTIONS, FULL, MODELS, OURS, PATCHED, PEER, UNABSORBED, ModelCase
from longformer_triton.bench.model_sweep import SHORT, USUAL, comparison_length
from longformer_triton.bench.plot import fitted_exponent
from longformer_triton.bench.record import FILE_NAME, OK, names

MARKDOWN_NAME = "model.md"


def load_models(folder: pathlib.Path) -> pd.DataFrame:
    """The measured cells of a folder, the last row of each.

    Raises:
        ValueError: there is no such file, or it holds no measured cell.
    """
    path = folder / FILE_NAME
    if not path.exists():
        raise ValueError(f"folder: {path} does not exist; run `longformer-triton bench model --out {folder}` first.")
    frame = pd.read_csv(path).drop_duplicates(names(ModelCase), keep="last")
    frame = frame[frame["status"] == OK]
    if frame.empty:
        raise ValueError(f"folder: {path} holds no measured cell, so there is nothing to draw.")
    return frame


def crossover(frame: pd.DataFrame, direction: str, column: str) -> float | None:
    """The length from which ours beats full attention in ``column`` (less is better) for good; None if it does not.

    Between measured lengths the ratio is interpolated on logarithmic axes; where ours wins everywhere, the shortest length.
    """
    rows = frame[frame["direction"] == direction]
    table = rows.pivot_table(index="seq_len", columns="provider", values=column)
    if not {OURS, FULL} <= set(table.columns):
        return None
    table = table[[OURS, FULL]].dropna()
    lengths, ratio = np.log2(table.index.to_numpy(float)), np.log2((table[OURS] / table[FULL]).to_numpy(float))
    if not len(ratio) or ratio[-1] >= 0:
        return None
    losing = np.flatnonzero(ratio >= 0)
    if not len(losing):
        return float(table.index[0])
    before = losing[-1]
    share = ratio[before] / (ratio[before] - ratio[before + 1])
    return float(2 ** (lengths[before] + share * (lengths[before + 1] - lengths[before])))


@dataclasses.dataclass(frozen=True)
class Finding:
    """One line of the summary: a value for each direction that gives one."""

    what: str
    values: dict[str, str]


def findings(frame: pd.DataFrame) -> list[Finding]:
    """What the rows say: speed-ups at one length, short texts, growth with length, crossovers with full attention."""
    directions = [direction for direction in DIRECTIONS if direction in set(frame["direction"])]
    columns = {direction: _of_direction(frame, direction) for direction in directions}
    order = list(dict.fromkeys(what for column in columns.values() for what in column))
    return [
        Finding(what, {direction: column[what] for direction, column in columns.items() if what in column}) for what in order
    ]


def _of_direction(frame: pd.DataFrame, direction: str) -> dict[str, str]:
    cells = frame[frame["direction"] == direction].set_index(["provider", "seq_len"])
    length = comparison_length(sorted(frame["seq_len"].unique()))
    found: dict[str, str] = {}

    def ratio(what: str, above: tuple[str, int], below: tuple[str, int], column: str = "p50_ms") -> None:
        if above in cells.index and below in cells.index:
            found[what] = f"{cells.loc[above, column] / cells.loc[below, column]:.2f}x"

    for other in (PEER, FULL):
        ratio(f"{length} tokens: faster than {MODELS[other].title}", (other, length), (OURS, length))
    for other in (PEER, FULL):
        ratio(f"{length} tokens: memory of {MODELS[other].title}, over ours", (other, length), (OURS, length), "peak_extra_mib")
    ratio(f"{length} tokens: {MODELS[PATCHED].title}: faster than unpatched", (PEER, length), (PATCHED, length))
    what = f"{length} tokens: {MODELS[PATCHED].title}: memory unpatched, over patched"
    ratio(what, (PEER, length), (PATCHED, length), "peak_extra_mib")
    for column, name in (("p50_ms", "time"), ("peak_extra_mib", "memory")):
        what = f"{length} tokens: {name} with global projections of all tokens, over absorbed ones"
        ratio(what, (UNABSORBED, length), (OURS, length), column)
    ratio(f"ours: {SHORT} tokens faster than {USUAL}", (OURS, USUAL), (OURS, SHORT))
    if OURS in cells.index:
        of_ours = cells.loc[[OURS]].reset_index().sort_values("seq_len")
        exponent = fitted_exponent(of_ours["seq_len"].to_numpy(float), of_ours["peak_extra_mib"].to_numpy(float))
        if exponent is not None:
            found["ours: peak memory grows as length to the power of"] = f"{exponent:.2f}"
    if FULL in cells.index:
        for column, name in (("p50_ms", "faster"), ("peak_extra_mib", "smaller")):
            crossed = crossover(frame, direction, column)
            text = "not within these lengths" if crossed is None else f"{crossed:.0f} tokens"
            found[f"{name} than {MODELS[FULL].title}, from"] = text
    return found


def _header(found: Sequence[Finding]) -> list[str]:
    return ["", *(direction for direction in DIRECTIONS if any(direction in finding.values for finding in found))]


def _cells(finding: Finding, header: Sequence[str]) -> list[str]:
    return [finding.what, *(finding.values.get(direction, "") for direction in header[1:])]


def as_table(found: Sequence[Finding]) -> Table:
    """The findings for a terminal."""
    header = _header(found)
    table = Table(*header)
    for finding in found:
        table.add_row(*_cells(finding, header))
    return table


def as_markdown(frame: pd.DataFrame) -> str:
    """The findings for a document, with where they come from."""
    found = findings(frame)
    header = _header(found)
    first = frame.iloc[0]
    threads = "" if pd.isna(first["threads"]) else f", {int(first['threads'])} threads"
    sizes = f"{first['layers']} layers, {first['heads']} heads, head_dim {first['head_dim']}, batch {first['batch']}"
    lines = ["| " + " | ".join(header) + " |", "|---|" + "---:|" * (len(header) - 1)]
    lines += ["| " + " | ".join(_cells(finding, header)) + " |" for finding in found]
    lines += [
        "",
        f"Text classifier of {sizes}, {first['dtype']}, attention_window {int(frame['window'].max())}, the first token global.",
        "A training step is forward with dropout, backward and AdamW. Medians; each implementation has a process of its own,",
        "and calls take turns, of as many as memory holds at once. Memory is the peak beyond parameters, gradients and",
        "optimiser state.",
        f"{first['device']}{threads}, torch {first['torch']}, transformers {first['transformers']}, {str(first['date'])[:10]},",
        f"commit {first['commit']}.",
    ]
    return "\n".join(lines) + "\n"
