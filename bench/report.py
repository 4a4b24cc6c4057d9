"""A folder of results as documents: ``report.md``, which a README can include, and ``report.html``, a page that stands alone.

Everything in them comes from the folder: its CSV, its ``environment.json``, its pictures. The page needs no network and runs no
script; all texts are escaped.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import pathlib
from collections.abc import Iterator
from typing import Any

import jinja2

from longformer_triton.bench import core, environment, model_findings
from longformer_triton.bench.cases import Case
from longformer_triton.bench.folder import Results, read
from longformer_triton.bench.model_cells import MODELS, ModelCase
from longformer_triton.bench.providers import PROVIDERS
from longformer_triton.bench.tables import MEMORY, TIME, Table, by_provider, escaped, not_measured, setting

MARKDOWN_NAME, PAGE_NAME = "report.md", "report.html"
_TEMPLATE = pathlib.Path(__file__).with_name("report.html.jinja")
# What a picture shows, for those who do not see it; numbers are in the tables.
_PICTURES = {
    "scaling": "Time and peak extra memory of a call against sequence length, a line for each provider, on logarithmic axes.",
    "windows": "Time of a call against the window, a line for each provider; full attention as a level line.",
    "speedup": "A map over sequence length and window: how many times faster than full attention ours is.",
    "roofline": "Useful operations a second against operations a compulsory byte, a point for each provider and window, under "
    "the ceilings that were measured: the rate of a matrix product and the bandwidth of a copy.",
    "paper": "Time and peak extra memory of a call against sequence length: full attention, chunks, ours; logarithmic axes.",
    "globals": "Time of a call against the number of global tokens, at the start of each text and scattered over it.",
    "short": "Tokens a second of short texts against their length, for several numbers of texts at a time.",
    "memory": "Memory of a call against sequence length, measured and fitted, and where that reaches budgets of memory.",
    "rates": "Useful operations a second against sequence length, a line for each provider.",
    "model": "Tokens a second and peak memory of whole models against text length, a line for each model.",
}
_MIME = {".svg": "image/svg+xml", ".png": "image/png"}


def documents(folder: pathlib.Path) -> dict[str, str]:
    """The Markdown files that a folder's data give, by name.

    Raises:
        ValueError: the folder holds no results.
    """
    results = read(folder)
    made = {MARKDOWN_NAME: as_markdown(results)}
    if results.is_of is ModelCase and results.measured:
        made[model_findings.MARKDOWN_NAME] = model_findings.as_markdown(model_findings.load_models(folder))
    if (folder / core.COMPARISONS_NAME).exists():
        made[core.MARKDOWN_NAME] = core.describe(folder)
    return made


def write_report(folder: pathlib.Path) -> list[pathlib.Path]:
    """Write the Markdown files and the page of a folder; returns them.

    Raises:
        ValueError: the folder holds no results, or another file of it is damaged.
    """
    made = {**documents(folder), PAGE_NAME: as_page(read(folder))}
    written = []
    for name, text in made.items():
        (folder / name).write_text(text)
        written.append(folder / name)
    return written


def as_markdown(results: Results) -> str:
    """Time and memory by provider, what all cells share, and where a provider computes something else."""
    parts = [f"{table.title}:\n\n{table.as_markdown()}" for table in _summaries(results)]
    if not parts:
        parts.append("No cell was measured.\n")
    else:
        parts.append(f"In parentheses: how many times ours. {escaped(_setting(results))}\n")
    notes = [f"- {escaped(name)}: {escaped(note)}\n" for name, note in _notes(results)]
    return "\n".join([*parts, *(["".join(notes)] if notes else [])])


def as_page(results: Results) -> str:
    """The page, as text of one HTML file."""
    # Undefined names raise: a field that a template misspells would otherwise be an empty place nobody notices.
    made = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return made.from_string(_TEMPLATE.read_text()).render(
        name=results.folder.resolve().name,
        setting=_setting(results),
        sessions=[_Session.of(entry) for entry in environment.read(results.folder)],
        tables=[*_extra(results), *_summaries(results)],
        pictures=list(_pictures(results.folder)),
        glossary=list(_glossary(results)),
        missing=not_measured(results),
        rows=_all_rows(results),
        measured=len(results.measured),
        total=len(results.rows),
    )


def _summaries(results: Results) -> list[Table]:
    columns = [TIME, MEMORY] if TIME in results.measurements else list(results.measurements)
    return [table for column in columns if (table := by_provider(results, column)) is not None]


def _extra(results: Results) -> Iterator[Table]:
    """Tables of results that compare more than cell with cell."""
    if results.is_of is ModelCase and results.measured:
        found = model_findings.findings(model_findings.load_models(results.folder))
        directions = list(dict.fromkeys(direction for finding in found for direction in finding.values))
        rows = [(finding.what, *(finding.values.get(direction, "") for direction in directions)) for finding in found]
        yield Table("What the rows say", ("", *directions), tuple(rows))
    if (results.folder / core.COMPARISONS_NAME).exists():
        yield Table(
            "Side by side", core.HEADER, tuple(core.cells(result) for result in core.load_comparisons(results.folder)[0])
        )


def _setting(results: Results) -> str:
    kind = results.is_of
    defaults = {field.name: field.default for field in dataclasses.fields(kind)} if kind is not None else {}
    return setting(results, defaults) if results.rows else "The file holds no rows."


def _providers(results: Results) -> Iterator[tuple[str, Any]]:
    """Providers with a measured cell that this version knows."""
    known: dict[type[Any] | None, dict[str, Any]] = {Case: dict(PROVIDERS), ModelCase: dict(MODELS)}
    for name in dict.fromkeys(row.get("provider", "") for row in results.measured):
        if name in known.get(results.is_of, {}):
            yield name, known[results.is_of][name]


def _notes(results: Results) -> list[tuple[str, str]]:
    return [(name, provider.note) for name, provider in _providers(results) if getattr(provider, "note", "")]


def _glossary(results: Results) -> Iterator[tuple[str, str, str]]:
    """(name, what it is, where it differs) of each provider."""
    for name, provider in _providers(results):
        yield name, provider.title, getattr(provider, "note", "")


def _all_rows(results: Results) -> Table:
    columns = (*results.axes, "status", *results.measurements, *results.origins)
    return Table("Every cell", columns, tuple(tuple(row[name] for name in columns) for row in results.rows), len(results.axes))


@dataclasses.dataclass(frozen=True)
class _Picture:
    name: str
    what: str
    source: str


def _pictures(folder: pathlib.Path) -> Iterator[_Picture]:
    """Every picture of the folder, inside the page; drawings before photographs of the same."""
    found = {path.stem: path for suffix in (".png", ".svg") for path in sorted(folder.glob(f"*{suffix}"))}
    for stem, path in sorted(found.items()):
        encoded = base64.b64encode(path.read_bytes()).decode()
        what = _PICTURES.get(stem, f"The picture {stem} of these results.")
        yield _Picture(stem, what, f"data:{_MIME[path.suffix]};base64,{encoded}")


@dataclasses.dataclass(frozen=True)
class _Session:
    """One command that wrote rows: its line, when, of which commit, and everything else as lines of text."""

    command: str
    dates: str
    commit: str
    details: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, entry: dict[str, Any]) -> _Session:
        own = ("command", "dates", "commit", "uncommitted_changes")
        details = [(name, _as_text(value)) for name, value in entry.items() if name not in own]
        commit = str(entry.get("commit", "")) + (" with uncommitted changes" if entry.get("uncommitted_changes") else "")
        dates = ", ".join(map(str, entry.get("dates", [])))
        return cls(str(entry.get("command", "")), dates, commit, tuple(details))


def _as_text(value: Any) -> str:
    if isinstance(value, dict):
        return "\n".join(f"{name}: {_as_text(inner)}" for name, inner in value.items())
    if isinstance(value, list):
        separator = "\n" if any(isinstance(inner, dict) or " " in str(inner) for inner in value) else " "
        return separator.join(_as_text(inner) for inner in value)
    return value if isinstance(value, str) else json.dumps(value)
