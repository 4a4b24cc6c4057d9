"""Useful operations a second against operations a byte, under what the machine can do (Williams, Waterman, Patterson 2009).

Two ceilings are measured on the machine and kept in ``ceilings.json`` beside the CSV: the rate of a square matrix product in
the cells' dtype, and the bandwidth of a large copy. A cell's intensity is by its *useful* operations and *compulsory* bytes,
whoever computes it: an implementation that stores scores, or computes pairs that nobody sees, appears as low as it deserves.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Iterable, Iterator, Sequence

import matplotlib as mpl
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from longformer_triton.bench.cases import DIRECTIONS, DTYPES, TRAINING, Case, useful_flops
from longformer_triton.bench.folder import Results, case_of, read
from longformer_triton.bench.machine import copy_bandwidth, matmul_rate, provenance
from longformer_triton.bench.plot import SETTINGS, style_of, write
from longformer_triton.bench.providers import PROVIDERS
from longformer_triton.bench.words import counted

FILE_NAME = "ceilings.json"
PICTURE = "roofline"
_LSE_BYTES = 4
# (side of the matrices, bytes of the copy): large enough to be at the ceiling, small enough for a few seconds.
_SIZES = {"cpu": (2048, 512 << 20), "cuda": (8192, 2 << 30)}

_TRIES = 5


def compulsory_bytes(case: Case) -> int:
    """Bytes that any implementation moves between memory and chip at least, each tensor once.

    With D numbers a token and head of s bytes each, forward reads query, key and value and writes the output and a float32
    log-sum-exp: 4 D s + 4. Backward reads these five and the gradient of the output, and writes three gradients: 8 D s + 4.
    Rows of global tokens read keys and values of their own, 2 D s, and backward those again and writes two gradients, 4 D s;
    their queries are few. Grouped heads share keys and values. Masks, scores and copies are not compulsory; padding is.
    """
    tokens = case.batch * case.seq_len
    queries = tokens * case.heads * case.head_dim * case.torch_dtype.itemsize
    keys = tokens * case.real_key_heads * case.head_dim * case.torch_dtype.itemsize
    lse = tokens * case.heads * _LSE_BYTES
    pairs_of_keys = 2 if case.has_global_rows and case.window is not None else 1
    forward = 2 * queries + 2 * keys * pairs_of_keys + lse
    backward = 4 * queries + 4 * keys * pairs_of_keys + lse
    return forward + backward if case.direction == TRAINING else forward


@dataclasses.dataclass(frozen=True)
class Ceiling:
    """What a machine reaches in one dtype: operations a second of a matrix product, bytes a second of a copy."""

    dtype: str
    matmul_flops: float
    copy_bytes: float
    matmul_size: int
    copied_bytes: int
    origin: dict[str, str]

    def at(self, intensity: float) -> float:
        """The most operations a second at so many operations a byte."""
        return min(self.matmul_flops, intensity * self.copy_bytes)

    @property
    def ridge(self) -> float:
        """Operations a byte from which the matrix product is the limit."""
        return self.matmul_flops / self.copy_bytes


@dataclasses.dataclass(frozen=True)
class Point:
    """One measured cell: useful operations a second, and operations a compulsory byte."""

    case: Case
    intensity: float
    rate: float


def points(results: Results) -> list[Point]:
    """Every measured cell of a sweep.

    Raises:
        ValueError: the folder holds results of another kind, or no measured cell.
    """
    if results.is_of is not Case:
        raise ValueError(f"folder: {results.folder} holds no cells of attention, which a roofline is about.")
    found = []
    for row in results.measured:
        case = case_of(row, Case)
        flops = useful_flops(case)
        found.append(Point(case, flops / compulsory_bytes(case), flops / float(row["p50_ms"]) * 1e3))
    if not found:
        raise ValueError(f"folder: {results.folder} holds no measured cell, so there is nothing to draw.")
    return found


def measure_ceilings(folder: pathlib.Path, device: str, threads: int | None = None) -> list[Ceiling]:
    """Measure this machine in every dtype of the folder's cells, and keep that in ``ceilings.json``.

    Raises:
        ValueError: the folder holds no sweep, or rows of another device or number of threads.
    """
    results, place = read(folder), torch.device(device)
    dtypes = dict.fromkeys(point.case.dtype for point in points(results))
    if threads is not None:
        torch.set_num_threads(threads)
    origin = provenance(place)
    for column in ("device", "threads"):
        others = {row[column] for row in results.measured} - {origin[column]}
        if others:
            raise ValueError(
                f"folder: its rows have {column} {', '.join(sorted(others))}, this run {origin[column]}; "
                "ceilings belong to the machine that measured the rows."
            )
    side, size = _SIZES["cuda" if place.type == "cuda" else "cpu"]
    # The best of several medians: whatever else the machine does can only lower them.
    bandwidth = max(copy_bandwidth(place, size, repeats=3) for _ in range(_TRIES))
    rates = {name: max(matmul_rate(place, DTYPES[name], side, repeats=3) for _ in range(_TRIES)) for name in dtypes}
    ceilings = [Ceiling(name, rate, bandwidth, side, size, origin) for name, rate in rates.items()]
    save_ceilings(folder, ceilings)
    return ceilings


def save_ceilings(folder: pathlib.Path, ceilings: Iterable[Ceiling]) -> None:
    """Write ``ceilings.json``."""
    text = json.dumps([dataclasses.asdict(ceiling) for ceiling in ceilings], indent=1)
    (folder / FILE_NAME).write_text(text + "\n")


def load_ceilings(folder: pathlib.Path) -> list[Ceiling]:
    """What ``ceilings.json`` holds.

    Raises:
        ValueError: there is none, or it is not one of ours.
    """
    path = folder / FILE_NAME
    if not path.exists():
        raise ValueError(f"folder: {path} does not exist; run `longformer-triton bench roofline {folder} --measure` first.")
    try:
        return [Ceiling(**entry) for entry in json.loads(path.read_text())]
    except (ValueError, TypeError) as error:
        raise ValueError(f"folder: {path} holds no ceilings ({error}); measure them again with --measure.") from error


def _lengths_of_a_setting(found: Iterable[Point]) -> Iterator[list[Point]]:
    """Points that differ in length alone, short to long."""
    by_setting: dict[Case, list[Point]] = {}
    for point in found:
        by_setting.setdefault(dataclasses.replace(point.case, seq_len=0), []).append(point)
    for line in by_setting.values():
        yield sorted(line, key=lambda point: point.case.seq_len)


def _panel(axes: Axes, found: Sequence[Point], ceiling: Ceiling, unit: float) -> None:
    """The roof, a line of points from short to long texts for each provider and setting, and where windows lie."""
    intensities = [point.intensity for point in found]
    low, high = min(*intensities, ceiling.ridge) / 4, max(*intensities, ceiling.ridge) * 2
    corners = [low, ceiling.ridge, high]
    axes.plot(corners, [ceiling.at(corner) / unit for corner in corners], color="#555555", linewidth=2.5)
    labelled = set()
    for line in _lengths_of_a_setting(found):
        provider = line[0].case.provider
        color, marker = style_of(provider)
        rates = [point.rate / unit for point in line]
        label = "_" if provider in labelled else PROVIDERS[provider].title if provider in PROVIDERS else provider
        labelled.add(provider)
        axes.plot([point.intensity for point in line], rates, color=color, marker=marker, markersize=4, linewidth=1, alpha=0.6)
        axes.plot(line[-1].intensity, rates[-1], color=color, marker=marker, markersize=10, linestyle="none", label=label)
    axes.set_xscale("log")
    axes.set_yscale("log")
    floor, top = (
        min(point.rate for point in found) / unit / 8,
        max(ceiling.matmul_flops, *(point.rate for point in found)) / unit,
    )
    axes.set_ylim(floor, top * (top / floor) ** 0.45)  # room for the legend above the roof
    axes.set_xlim(low, high)
    for window, point in _longest_by_window(found).items():
        axes.axvline(point.intensity, color="#999999", linewidth=0.8, linestyle=":")
        axes.text(point.intensity, floor * 1.15, f"window {window}", rotation=90, ha="right", va="bottom", fontsize=8)
    roof = f"matrix product, {ceiling.matmul_flops / unit:.3g} {'G' if unit == 1e9 else 'T'}FLOP/s"
    axes.text(ceiling.ridge, ceiling.matmul_flops / unit * 1.08, roof, ha="left", va="bottom", fontsize=10)
    axes.text(
        ceiling.ridge / 2, ceiling.at(ceiling.ridge / 4) / unit, f"copy, {ceiling.copy_bytes / 1e9:.3g} GB/s", fontsize=10
    )
    axes.legend(fontsize=9, loc="upper left")
    axes.set_xlabel("useful operations a compulsory byte")


def _longest_by_window(found: Iterable[Point]) -> dict[int, Point]:
    by_window: dict[int, Point] = {}
    for point in sorted(found, key=lambda point: point.case.seq_len):
        if point.case.window is not None:
            by_window[point.case.window] = point
    return by_window


def draw_roofline(found: Sequence[Point], ceilings: Sequence[Ceiling], results: Results) -> Figure:
    """A panel for each direction and dtype; large points are the longest texts.

    Raises:
        ValueError: a dtype of the cells has no ceiling.
    """
    roofs = {ceiling.dtype: ceiling for ceiling in ceilings}
    dtypes = list(dict.fromkeys(point.case.dtype for point in found))
    missing = [dtype for dtype in dtypes if dtype not in roofs]
    if missing:
        raise ValueError(f"folder: {results.folder / FILE_NAME} lacks {', '.join(missing)}; measure again with --measure.")
    unit, name = (1e12, "TFLOP/s") if max(roof.matmul_flops for roof in roofs.values()) > 2e12 else (1e9, "GFLOP/s")
    directions = [direction for direction in DIRECTIONS if any(point.case.direction == direction for point in found)]
    figure = Figure(figsize=(6.6 * len(directions), 0.8 + 5.4 * len(dtypes)), layout="constrained")
    grid = figure.subplots(len(dtypes), len(directions), squeeze=False)
    for row, dtype in zip(grid, dtypes, strict=True):
        for axes, direction in zip(row, directions, strict=True):
            shown = [point for point in found if (point.case.dtype, point.case.direction) == (dtype, direction)]
            if shown:
                _panel(axes, shown, roofs[dtype], unit)
            axes.set_title(f"{direction}, {dtype}")
        row[0].set_ylabel(f"useful {name}")
    figure.suptitle("What of the machine is used; large points: the longest texts", fontsize=15)
    threads = "".join(f", {counted(threads, 'thread')}" for threads in results.values("threads") if threads)
    figure.supxlabel(f"{', '.join(results.values('device'))}{threads}, torch {', '.join(results.values('torch'))}", fontsize=9)
    return figure


def above_the_roof(found: Iterable[Point], ceilings: Iterable[Ceiling]) -> int:
    """How many points the ceilings cannot explain: the machine was busier when those were measured."""
    roofs = {ceiling.dtype: ceiling for ceiling in ceilings}
    return sum(point.rate > roofs[point.case.dtype].at(point.intensity) for point in found if point.case.dtype in roofs)


def draw(folder: pathlib.Path) -> list[pathlib.Path]:
    """Write roofline.png and roofline.svg from a folder's rows and ceilings; returns the files.

    Raises:
        ValueError: rows or ceilings are missing.
    """
    results = read(folder)
    with mpl.rc_context(SETTINGS):
        return write({PICTURE: draw_roofline(points(results), load_ceilings(folder), results)}, folder)
