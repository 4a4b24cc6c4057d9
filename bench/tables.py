"""Tables of a folder of results, for Markdown and for pages alike: a row for each setting, a column for each provider."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence

from longformer_triton.bench.compare import Spread
from longformer_triton.bench.folder import Results, Row, number
from longformer_triton.bench.record import SKIPPED
from longformer_triton.bench.words import counted

TIME, MEMORY = "p50_ms", "peak_extra_mib"
_TITLES = {TIME: "Milliseconds a call, median", MEMORY: "Peak extra memory, MiB"}
# Whose numbers the others are divided by: the first of these that was measured.
_OURS = ("ours-triton", "ours-torch", "ours")
# Said of every sweep; other axes are said where they are not what they are by default.
_ALWAYS = ("batch", "layers", "heads", "head_dim", "dtype", "window", "num_globals")
_SOFTWARE = ("torch", "triton", "transformers")
_RUN = ("device", "commit", "date")


@dataclasses.dataclass(frozen=True)
class Table:
    """Texts in rows; the first ``keys`` columns say what a row is about."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    keys: int = 1

    def as_markdown(self) -> str:
        """A table of GitHub's Markdown."""
        lines = [_line(self.header), "|" + "---|" * self.keys + "---:|" * (len(self.header) - self.keys)]
        return "\n".join([*lines, *map(_line, self.rows)]) + "\n"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(map(escaped, cells)) + " |"


def escaped(text: str) -> str:
    """Text that Markdown shows as it is, in one line: no markup, no end of a cell, no comment that marks a block."""
    return re.sub(r"([\\`*\[\]<>|])", r"\\\1", " ".join(text.split())).replace("\\<", "&lt;").replace("\\>", "&gt;")


def short(value: float) -> str:
    """Three digits or more, never an exponent."""
    for limit, digits in ((100, 0), (10, 1), (1, 2), (0.1, 3)):
        if abs(value) >= limit:
            return f"{value:.{digits}f}"
    return f"{value:.4f}"


def by_provider(results: Results, column: str) -> Table | None:
    """One measurement of every setting; None where nothing has it.

    Behind another's number stands how many times ours it is, or "no difference" where the times' middle parts overlap, and
    "another run" where the two were not measured by one command. Cells that were skipped are empty; those that failed say how.
    Full attention has no window, so it stands in the rows of all.
    """
    if column not in results.measurements or "provider" not in results.axes:
        return None
    with_value = [row for row in results.measured if row[column]]
    providers = [name for name in results.values("provider") if any(row["provider"] == name for row in with_value)]
    if not providers:
        return None
    axes = row_axes(results)
    settings: dict[tuple[str, ...], dict[str, Row]] = {}
    for row in sorted(results.rows, key=lambda row: _order(row, axes, results)):
        for setting in _settings_of(row, axes, results):
            settings.setdefault(setting, {})[row["provider"]] = row
    ours = next((name for name in _OURS if name in providers), None)
    rows = [
        (*setting, *(_cell(cells.get(name), None if name == ours else cells.get(ours or ""), column) for name in providers))
        for setting, cells in settings.items()
        if any(cells[name][column] for name in providers if name in cells)
    ]
    return Table(_TITLES.get(column, column), (*axes, *providers), tuple(rows), len(axes))


def row_axes(results: Results) -> list[str]:
    """Axes that tell rows apart; a window that all windowed providers share does not."""
    windows = [value for value in results.values("window") if value] if "window" in results.axes else []
    return [axis for axis in results.varying() if axis != "provider" and (axis != "window" or len(windows) > 1)]


def _order(row: Row, axes: Sequence[str], results: Results) -> list[tuple[float, int]]:
    return [
        (number(row[axis]) or 0, 0) if _is_number(row[axis]) else (0, results.values(axis).index(row[axis])) for axis in axes
    ]


def _is_number(text: str) -> bool:
    return bool(re.fullmatch(r"\d+(\.\d+)?", text))


def _settings_of(row: Row, axes: Sequence[str], results: Results) -> list[tuple[str, ...]]:
    if "window" not in axes or row["window"]:
        return [tuple(row[axis] for axis in axes)]
    windows = [value for value in results.values("window") if value]
    return [tuple(window if axis == "window" else row[axis] for axis in axes) for window in windows]


def _cell(row: Row | None, ours: Row | None, column: str) -> str:
    if row is None or row["status"] == SKIPPED:
        return ""
    if not row[column]:
        return row["status"]
    value = float(row[column])
    reference = number(ours[column]) if ours is not None else None
    if column not in (TIME, MEMORY) or not reference:
        return short(value)
    assert ours is not None, "a reference is of a row"
    mark = "" if run_of(row) == run_of(ours) else ", another run"
    if column == TIME and _spread(row).overlaps(_spread(ours)):
        return f"{short(value)} (no difference{mark})"
    times = value / reference
    # Two decimals of a thousandth would say that it takes no time.
    factor = f"{times:.{2 if times < 10 else 0}f}" if times >= 0.1 else short(times)
    return f"{short(value)} ({factor}x{mark})"


def _spread(row: Row) -> Spread:
    return Spread(*(float(row[f"p{share}_ms"]) for share in (20, 50, 80)))


def setting(results: Results, defaults: Mapping[str, object]) -> str:
    """What all cells share, where and when they were measured: three sentences."""
    shared = []
    for axis in results.axes:
        values = [value for value in results.values(axis) if value]
        usual = axis in defaults and values == [str(defaults[axis])]
        if len(values) == 1 and axis not in ("provider", "direction") and (axis in _ALWAYS or not usual):
            shared.append(f"{axis} {values[0]}" if axis != "dtype" else values[0])
    return f"All: {', '.join(shared)}. {where(results.rows)}. {when(results.rows)}."


def where(rows: Sequence[Mapping[str, str]], software: Sequence[str] = _SOFTWARE) -> str:
    """The machines that rows were measured on, and their versions of ``software``."""
    threads = [counted(value, "thread") for value in [_all(rows, "threads")] if value]
    versions = [f"{name} {value}" for name in software if (value := _all(rows, name))]
    return ", ".join([_all(rows, "device"), *threads, *versions])


def when(rows: Sequence[Mapping[str, str]]) -> str:
    """The days on which rows were measured, in how many runs if in several, and every commit."""
    days = sorted({row["date"][:10] for row in rows})
    runs = len({run_of(row) for row in rows})
    several = f", {runs} runs" if runs > 1 else ""
    commits = _all(rows, "commit")
    return " to ".join(dict.fromkeys((days[0], days[-1]))) + several + (f", commit {commits}" if commits else "")


def run_of(row: Mapping[str, str]) -> tuple[str, ...]:
    """What rows have in common that one command wrote: the device, the commit, and the second at which the command began."""
    return tuple(row.get(column, "") for column in _RUN)


def _all(rows: Sequence[Mapping[str, str]], column: str) -> str:
    return " and ".join(dict.fromkeys(row[column] for row in rows if row.get(column)))


def not_measured(results: Results) -> Table | None:
    """Cells without measurements, by provider and reason; None where there are none."""
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in results.unmeasured:
        groups.setdefault((row.get("provider", ""), row["status"], row["reason"]), []).append(row)
    axes = [axis for axis in results.varying() if axis != "provider"]
    rows = [
        (provider, status, reason, str(len(rows)), _extent(rows, axes)) for (provider, status, reason), rows in groups.items()
    ]
    return Table("Not measured", ("provider", "status", "reason", "cells", "where"), tuple(rows), keys=5) if rows else None


def _extent(rows: Sequence[Row], axes: Sequence[str]) -> str:
    parts = []
    for axis in axes:
        values = list(dict.fromkeys(row[axis] for row in rows if row[axis]))
        if values:
            parts.append(f"{axis} {', '.join(values)}")
    return "; ".join(parts)
