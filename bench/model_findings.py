"""What the rows of a sweep over whole models say: speed-ups, memory, and where linear attention wins."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence

import numpy as np
import pandas as pd
from rich.table import Table

from longformer_triton.bench.model_cells import DIRECTIONS, FULL, MODELS, OURS, PATCHED, PEER, UNABSORBED, ModelCase
from longformer_triton.bench.model_sweep import SHORT, USUAL, ModelPlan, comparison_length
from longformer_triton.bench.plot import fitted_exponent
from longformer_triton.bench.record import FILE_NAME, OK, names, read_rows
from longformer_triton.bench.tables import MEMORY, TIME, run_of, when, where

MARKDOWN_NAME = "model.md"
SOFTWARE = ("torch", "transformers")
# Stands for a ratio of times, and beside one of memory, whose rows were not measured by one command.
TWO_RUNS, SEVERAL_RUNS = "two runs", "several runs"
# The window comes last: full attention has none, and must not be all that is left of a size.
_SIZES = (*(axis for axis in names(ModelCase) if axis not in ("provider", "direction", "seq_len", "window")), "window")


def load_models(folder: pathlib.Path) -> pd.DataFrame:
    """The measured cells of a folder, the last row of each; where a row comes from is text, as it was written.

    Raises:
        ValueError: there is no such file, it is damaged, or it holds no measured cell.
    """
    path = folder / FILE_NAME
    if not path.exists():
        raise ValueError(f"folder: {path} does not exist; run `longformer-triton bench model --out {folder}` first.")
    columns, _ = read_rows(path)  # says which line is damaged
    # As numbers, version 2.10 would be 2.1, and a commit of digits would lose its zeros.
    origins = columns[columns.index("device") :]
    frame = pd.read_csv(path, dtype=dict.fromkeys(origins, str)).drop_duplicates(names(ModelCase), keep="last")
    frame = frame[frame["status"] == OK].fillna(dict.fromkeys(origins, ""))
    if frame.empty:
        raise ValueError(f"folder: {path} holds no measured cell, so there is nothing to draw.")
    return frame


def one_size(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of one size of model: each axis at its usual value or, where no row has that, as in the row measured last.

    Full attention has no window and is kept with any.
    """
    for axis in _SIZES:
        present = frame[axis].dropna()
        if present.nunique() > 1:
            usual = getattr(ModelPlan, axis)
            kept = usual if (present == usual).any() else present.iloc[-1]
            frame = frame[frame[axis].isna() | (frame[axis] == kept)]
    return frame


def size(frame: pd.DataFrame) -> str:
    """The size of model that all rows have, in words."""
    first, windows = frame.iloc[0], frame["window"].dropna()
    window = "" if windows.empty else f", attention_window {int(windows.iloc[0])}"
    sizes = f"{first['layers']} layers, {first['heads']} heads, head_dim {first['head_dim']}, batch {first['batch']}"
    return f"{sizes}, {first['dtype']}{window}"


def origins(frame: pd.DataFrame) -> list[dict[str, str]]:
    """The columns of each row that say where it comes from."""
    return [{str(name): value for name, value in row.items()} for row in frame.loc[:, "device":].to_dict("records")]


def _is_one_run(frame: pd.DataFrame) -> bool:
    return len({run_of(row) for row in origins(frame)}) == 1


def crossover(frame: pd.DataFrame, direction: str, column: str) -> float | None:
    """The length from which ours beats full attention in ``column`` (less is better) for good; None if it does not.

    Only lengths count at which both were measured in one run. Between them the ratio is interpolated on logarithmic axes;
    where ours wins everywhere, the shortest of them.
    """
    table = _against_full(frame, direction, column)
    lengths, ratio = np.log2(table.index.to_numpy(float)), np.log2((table[OURS] / table[FULL]).to_numpy(float))
    if not len(ratio) or ratio[-1] >= 0:
        return None
    losing = np.flatnonzero(ratio >= 0)
    if not len(losing):
        return float(table.index[0])
    before = losing[-1]
    share = ratio[before] / (ratio[before] - ratio[before + 1])
    return float(2 ** (lengths[before] + share * (lengths[before + 1] - lengths[before])))


def _against_full(frame: pd.DataFrame, direction: str, column: str) -> pd.DataFrame:
    """Ours and full attention in columns, at each length at which one run measured both."""
    rows = frame[(frame["direction"] == direction) & frame["provider"].isin((OURS, FULL))]
    rows = rows.groupby("seq_len").filter(lambda pair: len(pair) == 2 and _is_one_run(pair))
    return rows.pivot(index="seq_len", columns="provider", values=column).reindex(columns=[OURS, FULL])


@dataclasses.dataclass(frozen=True)
class Finding:
    """One line of the summary: a value for each direction that gives one."""

    what: str
    values: dict[str, str]


def findings(frame: pd.DataFrame) -> list[Finding]:
    """What the rows of one size say: speed-ups at one length, short texts, growth with length, crossovers with full attention.

    Times are compared within a run alone. Memory is compared between runs too, and marked. If there are rows of other sizes,
    the first line says which size this is.
    """
    shown = one_size(frame)
    directions = [direction for direction in DIRECTIONS if direction in set(shown["direction"])]
    columns = {direction: _of_direction(shown, direction) for direction in directions}
    order = list(dict.fromkeys(what for column in columns.values() for what in column))
    found = [
        Finding(what, {direction: column[what] for direction, column in columns.items() if what in column}) for what in order
    ]
    return found if len(shown) == len(frame) else [Finding(f"of several sizes, this one: {size(shown)}", {}), *found]


def _of_direction(frame: pd.DataFrame, direction: str) -> dict[str, str]:
    rows = frame[frame["direction"] == direction]
    length = comparison_length(sorted(frame["seq_len"].unique()))
    found: dict[str, str] = {}

    def ratio(what: str, above: tuple[str, int], below: tuple[str, int], column: str = TIME) -> None:
        one, other = (rows[(rows["provider"] == name) & (rows["seq_len"] == tokens)] for name, tokens in (above, below))
        if one.empty or other.empty:
            return
        value = f"{one[column].item() / other[column].item():.2f}x"
        if not _is_one_run(pd.concat([one, other])):
            # On a shared machine an hour apart is another machine; its allocations are the same.
            value = TWO_RUNS if column == TIME else f"{value} ({TWO_RUNS})"
        found[what] = value

    for name in (PEER, FULL):
        ratio(f"{length} tokens: faster than {MODELS[name].title}", (name, length), (OURS, length))
    for name in (PEER, FULL):
        ratio(f"{length} tokens: memory of {MODELS[name].title}, over ours", (name, length), (OURS, length), MEMORY)
    ratio(f"{length} tokens: {MODELS[PATCHED].title}: faster than unpatched", (PEER, length), (PATCHED, length))
    what = f"{length} tokens: {MODELS[PATCHED].title}: memory unpatched, over patched"
    ratio(what, (PEER, length), (PATCHED, length), MEMORY)
    for column, name in ((TIME, "time"), (MEMORY, "memory")):
        what = f"{length} tokens: {name} with global projections of all tokens, over absorbed ones"
        ratio(what, (UNABSORBED, length), (OURS, length), column)
    ratio(f"ours: {SHORT} tokens faster than {USUAL}", (OURS, USUAL), (OURS, SHORT))
    of_ours = rows[rows["provider"] == OURS].sort_values("seq_len")
    exponent = fitted_exponent(of_ours["seq_len"].to_numpy(float), of_ours[MEMORY].to_numpy(float))
    if exponent is not None:
        mark = "" if _is_one_run(of_ours) else f" ({SEVERAL_RUNS})"
        found["ours: peak memory grows as length to the power of"] = f"{exponent:.2f}{mark}"
    if set(of_ours["seq_len"]) & set(rows[rows["provider"] == FULL]["seq_len"]):
        for column, name in ((TIME, "faster"), (MEMORY, "smaller")):
            crossed = crossover(rows, direction, column)
            nowhere = TWO_RUNS if _against_full(rows, direction, column).empty else "not within these lengths"
            found[f"{name} than {MODELS[FULL].title}, from"] = nowhere if crossed is None else f"{crossed:.0f} tokens"
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


_OF_RUNS = (
    "The rows are of several runs. Times are compared within one alone:",
    f'"{TWO_RUNS}" stands for a ratio that none gives, and a crossover counts the lengths at which one run measured both.',
    "Memory, which a busy machine does not change but another commit may, is compared between runs too, and marked.",
)


def as_markdown(frame: pd.DataFrame) -> str:
    """The findings for a document, with where they come from."""
    found = findings(frame)
    header = _header(found)
    shown = one_size(frame)
    measured = origins(shown)
    lines = ["| " + " | ".join(header) + " |", "|---|" + "---:|" * (len(header) - 1)]
    lines += ["| " + " | ".join(_cells(finding, header)) + " |" for finding in found]
    lines += [
        "",
        f"Text classifier of {size(shown)}, the first token global.",
        "A training step is forward with dropout, backward and AdamW. Medians; each implementation has a process of its own,",
        "and calls take turns, of as many as memory holds at once. Memory is the peak beyond parameters, gradients and",
        "optimiser state.",
        *([] if _is_one_run(shown) else _OF_RUNS),
        f"{where(measured, SOFTWARE)}.",
        f"{when(measured)}.",
    ]
    return "\n".join(lines) + "\n"
