"""Results as data: one CSV a folder, a row a cell, written as cells finish, so that an interruption loses nothing."""

from __future__ import annotations

import csv
import dataclasses
import os
import pathlib
from typing import Any

from longformer_triton.bench import environment
from longformer_triton.bench.cases import Case
from longformer_triton.bench.measure import Measurement

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
OK, SKIPPED, OUT_OF_MEMORY, DIED, WRONG, ERROR = "ok", "skipped", "out of memory", "died", "wrong", "error"
FILE_NAME = "results.csv"


def names(kind: type[Any]) -> list[str]:
    """The columns that a dataclass fills."""
    return [field.name for field in dataclasses.fields(kind)]


class Record:
    """The CSV of one folder: append rows, know which cells are there.

    ``case_type`` is the dataclass of a cell's axes (texts where its fields are annotated so, else whole numbers or None), and
    ``measurement_type`` that of what is measured in it.
    """

    def __init__(self, folder: pathlib.Path, case_type: type[Any] = Case, measurement_type: type[Any] = Measurement) -> None:
        self.case_type = case_type
        self.columns = [*names(case_type), "status", "reason", *names(measurement_type), *_PROVENANCE]
        self.path = folder / FILE_NAME
        self._noted = False
        environment.read(folder)  # refuses a foreign file before anything is written
        folder.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            self._repair()
        else:
            with self.path.open("w", newline="") as file:
                csv.writer(file).writerow(self.columns)

    def _repair(self) -> None:
        """Refuse a foreign file; cut a last line that a crash left unfinished."""
        text = self.path.read_text()
        header = text.split("\n", 1)[0].strip()
        if header != ",".join(self.columns):
            raise ValueError(f"out: {self.path} has other columns than this version writes; choose an empty folder.")
        if not text.endswith("\n"):
            self.path.write_text(text[: text.rfind("\n") + 1])

    def append(self, case: Any, status: str, provenance: dict[str, str], measurement: Any = None, reason: str = "") -> None:
        """Write one row and make sure that it reached the disk."""
        row: dict[str, Any] = {**dataclasses.asdict(case), "status": status, "reason": reason, **provenance}
        if measurement is not None:
            row.update(dataclasses.asdict(measurement))
        if not self._noted:
            environment.note(self.path.parent, provenance)
            self._noted = True
        with self.path.open("a", newline="") as file:
            csv.DictWriter(file, self.columns).writerow({name: "" if value is None else value for name, value in row.items()})
            file.flush()
            os.fsync(file.fileno())

    def rows(self) -> list[dict[str, str]]:
        """The last row of each cell, in the order of first appearance."""
        with self.path.open(newline="") as file:
            latest = {tuple(row[name] for name in names(self.case_type)): row for row in csv.DictReader(file)}
        return list(latest.values())

    def finished(self) -> dict[Any, dict[str, str]]:
        """Cells that a rerun leaves alone. Skipped ones are not among them: memory and limits may differ by then."""
        return {self._case(row): row for row in self.rows() if row["status"] != SKIPPED}

    def _case(self, row: dict[str, str]) -> Any:
        values: dict[str, Any] = {}
        for field in dataclasses.fields(self.case_type):
            text = row[field.name]
            values[field.name] = text if field.type == "str" else int(text) if text else None
        return self.case_type(**values)
