"""Results as data: one CSV a folder, a row a cell, written as cells finish, so that an interruption loses nothing."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import io
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import filelock

from longformer_triton.bench import environment
from longformer_triton.bench.cases import Case
from longformer_triton.bench.measure import Measurement
from longformer_triton.bench.words import place

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
_LOCK_NAME = ".results.lock"


# How the names of measurements in some unit end.
_UNITS = ("_ms", "_mib", "_tflops", "_per_second")


def names(kind: type[Any]) -> list[str]:
    """The columns that a dataclass fills."""
    return [field.name for field in dataclasses.fields(kind)]


def read_rows(path: pathlib.Path) -> tuple[list[str], list[dict[str, str]]]:
    """The columns of a file of results and its rows; a last line that a crash cut short is left out.

    Raises:
        ValueError: the file is no text or has no header, or a line has too few or too many fields, or no number where one
            belongs; the message says which line.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"folder: {path} is no text ({error.reason}); expected a file that a benchmark wrote.") from None
    reader = csv.reader(io.StringIO(text[: text.rfind("\n") + 1], newline=""))
    header = next(reader, [])
    if not header:
        raise ValueError(f"folder: {path} is empty; expected a file that a benchmark wrote: remove it.")
    rows = []
    for fields in reader:
        if len(fields) != len(header):
            raise _damaged(path, reader.line_num, f"got {len(fields)} fields, expected {len(header)}")
        row = dict(zip(header, fields, strict=True))
        for name, value in row.items():
            if value and name.endswith(_UNITS) and not _is_number(value):
                raise _damaged(path, reader.line_num, f"got {value!r} as {name}, expected a number")
        rows.append(row)
    return header, rows


def _damaged(path: pathlib.Path, line: int, what: str) -> ValueError:
    return ValueError(
        f"folder: {path}, line {line}: {what}. Remove that line; the command that measured its cell does it again."
    )


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


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
        if self.path.exists() and self.path.stat().st_size:
            self._repair()
        else:
            with self.path.open("w", newline="") as file:
                csv.writer(file).writerow(self.columns)

    def _repair(self) -> None:
        """Refuse a foreign or damaged file; cut a last line that a crash left unfinished."""
        header, _ = read_rows(self.path)
        if header != self.columns:
            raise ValueError(f"out: {self.path} has other columns than this version writes; choose an empty folder.")
        content = self.path.read_bytes()
        if not content.endswith(b"\n"):
            self.path.write_bytes(content[: content.rfind(b"\n") + 1])

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other runs out of the folder meanwhile: they would measure the same cells, and disturb each other's times.

        Raises:
            ValueError: another run is there.
        """
        lock = filelock.FileLock(self.path.with_name(_LOCK_NAME), timeout=0)
        # A file system that has no locks keeps nobody out.
        with contextlib.suppress(NotImplementedError):
            try:
                lock.acquire()
            except filelock.Timeout:
                raise ValueError(
                    f"out: another run is writing to {self.path.parent}: wait until it has ended, or choose another folder."
                ) from None
        try:
            yield
        finally:
            lock.release()

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
        """The last row of each cell, in the order of first appearance.

        Raises:
            ValueError: the file is damaged.
        """
        _, rows = read_rows(self.path)
        return list({tuple(row[name] for name in names(self.case_type)): row for row in rows}.values())

    def finished(self, *, retry: bool = False) -> dict[Any, dict[str, str]]:
        """Cells that a rerun leaves alone: those that were measured and, without ``retry``, those that failed.

        Skipped ones are not among them: memory and limits may differ by then.

        Raises:
            ValueError: the file is damaged.
        """
        left = (OK,) if retry else (OK, OUT_OF_MEMORY, DIED, WRONG, ERROR)
        return {self._case(row): row for row in self.rows() if row["status"] in left}

    def others(self, origin: dict[str, str]) -> list[str]:
        """A sentence for each other device, number of threads or PyTorch that cells here were measured with."""
        here = place(origin["device"], origin.get("threads", ""), origin["torch"])
        found = dict.fromkeys(place(row["device"], row["threads"], row["torch"]) for row in self.rows() if row["status"] == OK)
        return [
            f"{self.path.parent} holds cells of {other}, which pictures join with those of now: another --out keeps them apart."
            for other in found
            if other != here
        ]

    def _case(self, row: dict[str, str]) -> Any:
        values: dict[str, Any] = {}
        for field in dataclasses.fields(self.case_type):
            text = row[field.name]
            try:
                values[field.name] = text if field.type == "str" else int(text) if text else None
            except ValueError:
                raise ValueError(
                    f"folder: {self.path}: got {text!r} as {field.name}, expected a whole number: remove that line."
                ) from None
        return self.case_type(**values)
