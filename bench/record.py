"""Results as data: one CSV a folder, a row a cell, written as cells finish, so that an interruption loses nothing."""

from __future__ import annotations

import csv
import dataclasses
import os
import pathlib
from typing import Any

from longformer_triton.bench.cases import Case
from longformer_triton.bench.measure import Measurement

CASE_COLUMNS = [field.name for field in dataclasses.fields(Case)]
_MEASURED = [field.name for field in dataclasses.fields(Measurement)]
_PROVENANCE = [
    "device",
    "threads",
    "torch",
    "triton",
    "transformers",
    "longformer_triton",
    "python",
    "commit",
    "date",
]
COLUMNS = [*CASE_COLUMNS, "status", "reason", *_MEASURED, *_PROVENANCE]
OK, SKIPPED, OUT_OF_MEMORY, DIED, WRONG, ERROR = "ok", "skipped", "out of memory", "died", "wrong", "error"
FILE_NAME = "results.csv"


def _case_from(row: dict[str, str]) -> Case:
    values: dict[str, Any] = {}
    for field in dataclasses.fields(Case):
        text = row[field.name]
        values[field.name] = text if field.name in ("provider", "direction", "dtype") else int(text) if text else None
    return Case(**values)


class Record:
    """The CSV of one folder: append rows, know which cells are there."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.path = folder / FILE_NAME
        folder.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            self._repair()
        else:
            with self.path.open("w", newline="") as file:
                csv.writer(file).writerow(COLUMNS)

    def _repair(self) -> None:
        """Refuse a foreign file; cut a last line that a crash left unfinished."""
        text = self.path.read_text()
        header = text.split("\n", 1)[0].strip()
        if header != ",".join(COLUMNS):
            raise ValueError(f"out: {self.path} has other columns than this version writes; choose an empty folder.")
        if not text.endswith("\n"):
            self.path.write_text(text[: text.rfind("\n") + 1])

    def append(
        self, case: Case, status: str, provenance: dict[str, str], measurement: Measurement | None = None, reason: str = ""
    ) -> None:
        """Write one row and make sure that it reached the disk."""
        row: dict[str, Any] = {**dataclasses.asdict(case), "status": status, "reason": reason, **provenance}
        if measurement is not None:
            row.update(dataclasses.asdict(measurement))
        with self.path.open("a", newline="") as file:
            csv.DictWriter(file, COLUMNS).writerow({name: "" if value is None else value for name, value in row.items()})
            file.flush()
            os.fsync(file.fileno())

    def rows(self) -> list[dict[str, str]]:
        """The last row of each cell, in the order of first appearance."""
        with self.path.open(newline="") as file:
            latest = {tuple(row[name] for name in CASE_COLUMNS): row for row in csv.DictReader(file)}
        return list(latest.values())

    def finished(self) -> dict[Case, dict[str, str]]:
        """Cells that a rerun leaves alone. Skipped ones are not among them: memory and limits may differ by then."""
        return {_case_from(row): row for row in self.rows() if row["status"] != SKIPPED}
