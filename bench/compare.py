"""Two folders of results, cell by cell: faster, slower, or no difference that the spread of the times would let one claim."""

from __future__ import annotations

import dataclasses
import math
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

from longformer_triton.bench import environment
from longformer_triton.bench.cases import Case
from longformer_triton.bench.folder import Results, Row, number, read
from longformer_triton.bench.model_cells import ModelCase
from longformer_triton.bench.words import counted

FASTER, SLOWER, NO_DIFFERENCE = "faster", "slower", "no difference"
# Columns that differ where the machine does, and where only its software does.
_MACHINE, _SOFTWARE = ("device", "threads"), ("torch", "triton", "transformers", "python")

# Cells of one folder alone that are listed one by one.
_FEW = 4

Lines = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Spread:
    """Milliseconds of one cell: what 20, 50 and 80 % of its calls stayed below."""

    p20: float
    p50: float
    p80: float

    def overlaps(self, other: Spread) -> bool:
        """Whether the middle parts meet, p20 to p80 of each; touching counts."""
        return self.p20 <= other.p80 and other.p20 <= self.p80


@dataclasses.dataclass(frozen=True)
class Pair:
    """One cell in both folders; ``memory`` is its peak in the second over that in the first, None where either has none."""

    cell: dict[str, str]
    first: Spread
    second: Spread
    memory: float | None = None

    @property
    def ratio(self) -> float:
        """The second median over the first."""
        return self.second.p50 / self.first.p50

    @property
    def interval(self) -> tuple[float, float]:
        """The least and the greatest ratio between the middle parts of the two."""
        return self.second.p20 / self.first.p80, self.second.p80 / self.first.p20

    @property
    def verdict(self) -> str:
        """What the second is against the first."""
        if self.first.overlaps(self.second):
            return NO_DIFFERENCE
        return SLOWER if self.second.p20 > self.first.p80 else FASTER


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What two folders share, what only one of them measured, and what else differs between them."""

    axes: tuple[str, ...]
    pairs: tuple[Pair, ...]
    only_first: tuple[dict[str, str], ...]
    only_second: tuple[dict[str, str], ...]
    other_machine: Lines
    other_software: Lines

    def count(self, verdict: str) -> int:
        """Cells of one verdict."""
        return sum(pair.verdict == verdict for pair in self.pairs)

    @property
    def geometric_mean(self) -> float | None:
        """Of the ratios that the spreads let one claim; None where there is none."""
        logarithms = [math.log(pair.ratio) for pair in self.pairs if pair.verdict != NO_DIFFERENCE]
        return math.exp(sum(logarithms) / len(logarithms)) if logarithms else None

    @property
    def summary(self) -> str:
        """One line that says how many cells differ, and by how much together."""
        counts = ", ".join(f"{self.count(verdict)} {verdict}" for verdict in (FASTER, SLOWER, NO_DIFFERENCE))
        mean = self.geometric_mean
        claim = "" if mean is None else f"; geometric mean of the {self.count(FASTER) + self.count(SLOWER)} ratios {mean:.3f}"
        return f"{counted(len(self.pairs), 'cell')}, second against first: {counts}{claim}"

    @property
    def caveats(self) -> Iterator[str]:
        """What a reader has to know before believing a ratio."""
        if self.other_machine:
            yield f"different machines, so ratios compare them and not the code alone: {'; '.join(self.other_machine)}"
        if self.other_software:
            yield f"different software: {'; '.join(self.other_software)}"
        for which, cells in (("first", self.only_first), ("second", self.only_second)):
            if cells:
                yield f"measured in the {which} folder only: {self._listed(cells)}"

    def _listed(self, cells: Sequence[dict[str, str]]) -> str:
        """Few cells one by one, many by the values that they take on the axes that vary in either folder."""
        if len(cells) <= _FEW:
            return "; ".join(label(cell) for cell in cells)
        everything = [*(pair.cell for pair in self.pairs), *self.only_first, *self.only_second]
        varying = [axis for axis in self.axes if len({cell[axis] for cell in everything}) > 1]
        values = [" ".join([axis, ", ".join(dict.fromkeys(cell[axis] or "full" for cell in cells))]) for axis in varying]
        return f"{counted(len(cells), 'cell')} ({'; '.join(values)})"


def compare(first: pathlib.Path, second: pathlib.Path) -> Comparison:
    """The measured cells of two folders side by side; ratios are second over first.

    An axis that only one of them has, because the other was written by an older version, has its default value there.

    Raises:
        ValueError: a folder holds no results or no times, they are of different kinds, or they share no measured cell.
    """
    sides = [read(folder) for folder in (first, second)]
    for side in sides:
        if "p50_ms" not in side.measurements:
            raise ValueError(f"folders: {side.folder} holds no times of calls, so there is nothing to compare.")
    axes = tuple(dict.fromkeys([*sides[0].axes, *sides[1].axes]))
    cells = [{_key(side, row, axes): row for row in side.measured} for side in sides]
    shared = [key for key in cells[0] if key in cells[1]]
    if not shared:
        raise ValueError(f"folders: {first} and {second} share no measured cell; measure the same axes in both.")
    pairs = [_pair(dict(zip(axes, key, strict=True)), cells[0][key], cells[1][key]) for key in shared]
    only_first, only_second = (
        tuple(dict(zip(axes, key, strict=True)) for key in own if key not in other)
        for own, other in (cells, reversed(cells))
    )  # fmt: skip
    machine = _differences(sides, _MACHINE, _more_machine)
    software = _differences(sides, _SOFTWARE, _more_software)
    return Comparison(axes, tuple(pairs), only_first, only_second, machine, software)


def _key(side: Results, row: Row, axes: Sequence[str]) -> tuple[str, ...]:
    kinds = [kind for kind in (Case, ModelCase) if side.is_of is kind]
    defaults = {field.name: field.default for kind in kinds for field in dataclasses.fields(kind)}
    missing = [axis for axis in axes if axis not in row and defaults.get(axis, dataclasses.MISSING) is dataclasses.MISSING]
    if missing:
        raise ValueError(
            f"folders: {side.folder} has no axis {', '.join(missing)}; both have to hold the same kind of results."
        )
    return tuple(row[axis] if axis in row else _as_text(defaults[axis]) for axis in axes)


def _as_text(value: object) -> str:
    return "" if value is None else str(value)


def _pair(cell: dict[str, str], first: Row, second: Row) -> Pair:
    before, after = (Spread(*(float(row[f"p{share}_ms"]) for share in (20, 50, 80))) for row in (first, second))
    peaks = [number(row.get("peak_extra_mib", "")) for row in (first, second)]
    return Pair(cell, before, after, peaks[1] / peaks[0] if peaks[0] and peaks[1] else None)


def _differences(sides: Sequence[Results], columns: Sequence[str], more: Callable[[dict[str, Any]], dict[str, str]]) -> Lines:
    """What differs between the sides, with both values: columns of the rows, and ``more`` of each folder's last session."""
    described = []
    for side in sides:
        values = {column: " and ".join(side.values(column)) for column in columns if column in side.origins}
        sessions = environment.read(side.folder)
        described.append(values | (more(sessions[-1]) if sessions else {}))
    first, second = described
    return tuple(
        f"{name}: {first[name] or 'none'} against {second[name] or 'none'}"
        for name in first
        if name in second and first[name] != second[name]
    )


def _more_machine(session: dict[str, Any]) -> dict[str, str]:
    cpu = session.get("cpu", {})
    return {"instruction sets": " ".join(cpu.get("flags", [])), "usable cores": str(cpu.get("usable_cores", ""))}


def _more_software(session: dict[str, Any]) -> dict[str, str]:
    return {"variables": " ".join(f"{name}={value}" for name, value in session.get("variables", {}).items())}


def label(cell: dict[str, str]) -> str:
    """A cell in words: its values, empty ones left out."""
    return " ".join(f"{axis} {value}" if value.replace(".", "").isdigit() else value for axis, value in cell.items() if value)


def as_table(comparison: Comparison) -> Table:
    """The pairs for a terminal: axes that vary, both medians, the ratio with its interval, the verdict."""
    varying = [axis for axis in comparison.axes if len({pair.cell[axis] for pair in comparison.pairs}) > 1]
    fixed = {axis: value for axis, value in comparison.pairs[0].cell.items() if axis not in varying}
    table = Table(*varying, "first, ms", "second, ms", "second / first", "memory", "", caption=escape(f"All: {label(fixed)}"))
    for pair in comparison.pairs:
        low, high = pair.interval
        table.add_row(
            *(escape(pair.cell[axis] or "full") for axis in varying),
            f"{pair.first.p50:.2f}",
            f"{pair.second.p50:.2f}",
            f"{pair.ratio:.3f} ({low:.3f} to {high:.3f})",
            "" if pair.memory is None else f"{pair.memory:.3f}",
            pair.verdict,
        )
    return table
