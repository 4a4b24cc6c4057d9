"""A folder of results as whoever wrote it left it: any axes, any measurements, the last row of each cell.

The columns say what they are by where they stand: axes before ``status``, measurements between ``reason`` and ``device``, where
a row comes from after that. So reports and comparisons read the sweeps of attention, of whole models and of the tokenizer
alike, and sweeps with axes that are yet to be invented.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any, TypeVar

from longformer_triton.bench.cases import Case
from longformer_triton.bench.model_cells import ModelCase
from longformer_triton.bench.record import FILE_NAME, OK, names, read_rows

Row = dict[str, str]
_Case = TypeVar("_Case")


@dataclasses.dataclass(frozen=True)
class Results:
    """The cells of one folder, as texts; an empty one was not measured or does not apply."""

    folder: pathlib.Path
    axes: tuple[str, ...]
    measurements: tuple[str, ...]
    origins: tuple[str, ...]
    rows: tuple[Row, ...]

    @property
    def measured(self) -> list[Row]:
        """Rows that hold measurements."""
        return [row for row in self.rows if row["status"] == OK]

    @property
    def unmeasured(self) -> list[Row]:
        """Rows of cells that were skipped or went wrong; each has its reason."""
        return [row for row in self.rows if row["status"] != OK]

    def cell(self, row: Row) -> tuple[str, ...]:
        """What identifies the row's cell."""
        return tuple(row[axis] for axis in self.axes)

    def varying(self) -> list[str]:
        """Axes on which cells differ."""
        return [axis for axis in self.axes if len(set(self.values(axis))) > 1]

    def values(self, column: str) -> list[str]:
        """Every value of a column, once, in the order of appearance."""
        return list(dict.fromkeys(row[column] for row in self.rows))

    @property
    def is_of(self) -> type[Any] | None:
        """Which kind of cells these are: of attention, of whole models, or None for another kind."""
        for kind in (Case, ModelCase):
            required = {field.name for field in dataclasses.fields(kind) if field.default is dataclasses.MISSING}
            if required <= set(self.axes) <= set(names(kind)):
                return kind
        return None


def read(folder: pathlib.Path) -> Results:
    """The results of a folder.

    Raises:
        ValueError: there is no such file, it was not written by :class:`~longformer_triton.bench.record.Record`, or it is
            damaged.
    """
    path = folder / FILE_NAME
    if not path.exists():
        raise ValueError(f"folder: {path} does not exist; run `longformer-triton bench sweep --out {folder}` first.")
    columns, rows = read_rows(path)
    missing = [name for name in ("status", "reason", "device", "date") if name not in columns]
    if missing:
        raise ValueError(f"folder: {path} has no column {', '.join(missing)}; expected a file that a benchmark wrote.")
    status, device = columns.index("status"), columns.index("device")
    axes = tuple(columns[:status])
    latest = {tuple(row[axis] for axis in axes): row for row in rows}
    return Results(folder, axes, tuple(columns[status + 2 : device]), tuple(columns[device:]), tuple(latest.values()))


def case_of(row: Mapping[str, str], kind: type[_Case]) -> _Case:
    """The cell of a row as a dataclass; axes that the file is too old to have take their defaults.

    Raises:
        ValueError: a field is no number where one is expected.
    """
    values: dict[str, Any] = {}
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        if field.name in row:
            values[field.name] = _value(row[field.name], str(field.type))
    return kind(**values)


def _value(text: str, annotation: str) -> Any:
    if not text and "None" in annotation:
        return None
    for name, convert in (("str", str), ("bool", lambda word: word == "True"), ("float", float), ("int", int)):
        if name in annotation:
            return convert(text)
    return text


def number(text: str) -> float | None:
    """A measurement, or None for an empty field."""
    return float(text) if text else None
