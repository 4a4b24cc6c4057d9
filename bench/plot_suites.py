"""The pictures of each suite: the paper's first figure, global tokens, short texts, what fits into a memory, rates on a GPU."""

from __future__ import annotations

import math
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from longformer_triton.bench import memory, plot
from longformer_triton.bench.cases import DIRECTIONS, PREFIX, SCATTERED
from longformer_triton.bench.plot import (
    SETTINGS,
    lines,
    log_axes,
    one_window,
    plain_numbers,
    room_for_legend,
    setting,
    short,
    style_of,
    title_of,
    usual,
    write,
)
from longformer_triton.bench.suites import MEMORY, MODEL, suites_of

_TITLE, _SMALL = 15, 9
_MOST_IN_A_PANEL = 7


def _directions(frame: pd.DataFrame) -> list[str]:
    return [direction for direction in DIRECTIONS if direction in set(frame["direction"])]


def _legend(figure: Figure, panels: Sequence[Axes], described: str, **options: Any) -> None:
    """A legend in each panel, above its lines, or one below all of them where it has too many entries; what was measured."""
    handles = {label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    if len(handles) > _MOST_IN_A_PANEL:
        figure.set_figheight(figure.get_figheight() + 0.08 * len(handles))
        options.update(title=described, title_fontsize=_SMALL, fontsize=_SMALL, frameon=False, ncols=3)
        figure.legend(handles.values(), handles, loc="outside lower center", **options)
        return
    figure.supxlabel(described, fontsize=_SMALL)
    for axes in panels:
        room_for_legend(axes)
        axes.legend(fontsize=9, loc="upper left", **options)


def draw_paper(frame: pd.DataFrame) -> Figure:
    """Figure 1 of arXiv 2004.05150, measured here: time and memory against length, with fitted exponents."""
    frame, window = one_window(usual(frame))
    direction = _directions(frame)[-1]
    frame = frame[frame["direction"] == direction]
    figure = Figure(figsize=(12.4, 5.8), layout="constrained")
    panels = figure.subplots(1, 2)
    ticks = sorted(frame["seq_len"].unique())
    for axes, column, label in (
        (panels[0], "p50_ms", f"milliseconds, {direction} (median, p20 to p80)"),
        (panels[1], "peak_extra_mib", "peak memory beyond inputs, MiB"),
    ):
        lines(axes, frame, column, "seq_len", with_exponent=True)
        log_axes(axes, ticks, "sequence length N, tokens", label)
        plain_numbers(axes)
        room_for_legend(axes)
        axes.legend(fontsize=10, loc="upper left")
    whose = "full attention" if window is None else f"full attention, chunks and ours, window {window}"
    figure.suptitle(f"Figure 1 of arXiv 2004.05150 again: {whose}", fontsize=_TITLE)
    figure.supxlabel(setting(frame), fontsize=_SMALL)
    return figure


def draw_globals(frame: pd.DataFrame) -> Figure | None:
    """Time against the number of global tokens: at the start (solid) and scattered (dashed); full attention as a level line.

    None where nothing has a window.
    """
    frame, window = one_window(usual(frame, "num_globals", "globals_at"))
    if window is None:
        return None
    frame = frame[frame["window"].notna() | (frame["provider"] == "sdpa")]
    cells_at = frame.groupby("seq_len").size()
    length = int(cells_at[cells_at == cells_at.max()].index.max())  # the longest at which most could follow
    frame = frame[frame["seq_len"] == length]
    directions = _directions(frame)
    figure = Figure(figsize=(6.2 * len(directions), 5.8), layout="constrained")
    counts = sorted(frame[frame["window"].notna()]["num_globals"].unique())
    panels = figure.subplots(1, len(directions), squeeze=False)[0]
    for axes, direction in zip(panels, directions, strict=True):
        rows = frame[frame["direction"] == direction]
        for provider, cells in rows.groupby("provider", sort=False):
            color, marker = style_of(str(provider))
            if cells["window"].isna().all():
                axes.axhline(cells["p50_ms"].iloc[0], color=color, linestyle=":", linewidth=2, label=title_of(str(provider)))
                continue
            for place, dashes in ((PREFIX, "-"), (SCATTERED, "--")):
                # No global token is a beginning of both lines.
                line = cells[(cells["globals_at"] == place) | (cells["num_globals"] == 0)].sort_values("num_globals")
                if (line["num_globals"] > 0).any():
                    at = [counts.index(count) for count in line["num_globals"]]
                    label = f"{title_of(str(provider))}, {'at the start' if place == PREFIX else place}"
                    axes.plot(at, line["p50_ms"], dashes, color=color, marker=marker, linewidth=2, label=label)
                    axes.fill_between(at, line["p20_ms"], line["p80_ms"], color=color, alpha=0.15, linewidth=0)
        axes.set_yscale("log")
        axes.set_xticks(range(len(counts)), [str(count) for count in counts])
        axes.minorticks_off()
        plain_numbers(axes)
        axes.set_xlabel("global tokens")
        axes.set_ylabel("milliseconds a call (median, p20 to p80)")
        axes.set_title(direction)
    described = setting(frame).replace(f"{counts[-1]} global tokens", "global tokens as drawn")
    _legend(figure, panels, described, handlelength=4)
    figure.suptitle(f"Cost of global tokens, N = {short(length)}, window {window}", fontsize=_TITLE)
    return figure


def draw_short(frame: pd.DataFrame) -> Figure:
    """Tokens a second of short texts: a row for each number of texts at a time, a column for each direction."""
    frame, window = one_window(usual(frame, "batch"))
    frame["tokens_per_second"] = frame["batch"] * frame["seq_len"] / frame["p50_ms"] * 1e3
    directions, batches = _directions(frame), sorted(frame["batch"].unique())
    figure = Figure(figsize=(6.2 * len(directions), 4.6 * len(batches) + 0.6), layout="constrained")
    grid = figure.subplots(len(batches), len(directions), squeeze=False, sharex=True)
    ticks = sorted(frame["seq_len"].unique())
    for row, batch in enumerate(batches):
        for column, direction in enumerate(directions):
            axes = grid[row][column]
            cells = frame[(frame["batch"] == batch) & (frame["direction"] == direction)]
            lines(axes, cells, "tokens_per_second", "seq_len", with_exponent=False)
            log_axes(axes, ticks, "text length, tokens", "tokens a second (median)")
            plain_numbers(axes)
            room_for_legend(axes)
            axes.legend(fontsize=10, loc="upper left")
            axes.set_title(f"{direction}, {'one text' if batch == 1 else f'{batch} texts'} at a time")
    if window is None:
        title = "Short texts, full attention"
    else:
        title = f"{'Texts no longer than the window' if ticks[-1] <= window else 'Short texts, window'}, {window}"
    figure.suptitle(title, fontsize=_TITLE)
    figure.supxlabel(setting(frame).split(", ", 1)[1], fontsize=_SMALL)
    return figure


def draw_memory(frame: pd.DataFrame) -> Figure:
    """Memory of a call against length, inputs included: measured points, their fits, and where these reach the budgets."""
    frame, window = one_window(usual(frame))
    directions, found = _directions(frame), memory.fits(frame)
    figure = Figure(figsize=(6.2 * len(directions), 6.4), layout="constrained")
    for axes, direction in zip(figure.subplots(1, len(directions), squeeze=False)[0], directions, strict=True):
        budget = memory.BUDGETS_GIB[-1]
        for fit in (fit for fit in found if fit.direction == direction):
            color, marker = style_of(fit.provider)
            cells = frame[(frame["provider"] == fit.provider) & (frame["direction"] == direction)]
            lengths, peaks = memory.peaks(cells.dropna(subset="peak_extra_mib"))
            reach = np.geomspace(lengths[0], max(lengths[-1], fit.longest(budget * 2**30)), 100)
            longest = memory.rounded(fit.longest(memory.BUDGETS_GIB[0] * 2**30))
            axes.plot(reach, [fit.at(length) / 2**30 for length in reach], color=color, linewidth=1.5)
            axes.plot(lengths, peaks / 2**30, marker, color=color, markersize=6, label=f"{title_of(fit.provider)}: {longest:,}")
        for size in memory.BUDGETS_GIB:
            axes.axhline(size, color="#7F7F7F", linestyle=":", linewidth=1)
            axes.annotate(
                f"{size} GiB", (1, size), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=_SMALL
            )
        low, high = frame["seq_len"].min(), axes.get_xlim()[1]
        ticks = [4**power for power in range(math.ceil(math.log(low, 4)), int(math.log(high, 4)) + 1)]
        log_axes(axes, ticks, "sequence length N, tokens", "GiB of one call, inputs included")
        plain_numbers(axes)
        axes.yaxis.set_major_locator(LogLocator())
        axes.set_title(direction)
        room_for_legend(axes)
        axes.legend(fontsize=9, loc="upper left", title=f"tokens in {memory.BUDGETS_GIB[0]} GiB", title_fontsize=9)
    figure.suptitle("How long a text fits into a memory: measured (points) and extrapolated (lines)", fontsize=_TITLE)
    figure.supxlabel(f"{'' if window is None else f'window {window}, '}{setting(frame)}", fontsize=_SMALL)
    return figure


def draw_rates(frame: pd.DataFrame) -> Figure:
    """Useful TFLOP/s against length, whatever the batch that fills a GPU."""
    frame, window = one_window(usual(frame, "batch"))
    directions = _directions(frame)
    figure = Figure(figsize=(6.2 * len(directions), 6.2), layout="constrained")
    panels = figure.subplots(1, len(directions), squeeze=False)[0]
    for axes, direction in zip(panels, directions, strict=True):
        lines(axes, frame[frame["direction"] == direction], "useful_tflops", "seq_len", with_exponent=False)
        log_axes(axes, sorted(frame["seq_len"].unique()), "sequence length N, tokens", "useful TFLOP/s (median)")
        plain_numbers(axes)
        axes.set_title(direction)
    _legend(figure, panels, setting(frame).split(", ", 1)[1])
    windowed = "" if window is None else f", window {window}; full attention does its own"
    figure.suptitle(f"Useful operations a second{windowed}", fontsize=_TITLE)
    return figure


# What each suite's folder is drawn as.
_PICTURES: dict[str, dict[str, Callable[[pd.DataFrame], Figure | None]]] = {
    "all": {"scaling": plot.draw_scaling, "windows": plot.draw_windows, "speedup": plot.draw_speedup},
    "quick": {"scaling": plot.draw_scaling, "windows": plot.draw_windows, "speedup": plot.draw_speedup},
    "paper": {"paper": draw_paper},
    "windows": {"windows": plot.draw_windows, "speedup": plot.draw_speedup},
    "globals": {"globals": draw_globals},
    "short": {"short": draw_short},
    MEMORY: {"memory": draw_memory},
    "gpu": {"rates": draw_rates, "globals": draw_globals},
}


def draw_suite(folder: pathlib.Path) -> list[pathlib.Path]:
    """Write the pictures of a folder, as PNG and SVG, and the table that belongs to them; returns the files.

    Raises:
        ValueError: the folder holds nothing to draw.
    """
    names = suites_of(folder)
    if MODEL in names:
        from longformer_triton.bench.model_plot import draw_and_describe

        return draw_and_describe(folder)
    frame = plot.load(folder)
    pictures = {title: draw for name in names for title, draw in _PICTURES[name].items()}
    with mpl.rc_context(SETTINGS):
        written = write({title: draw(frame) for title, draw in pictures.items()}, folder)
    if MEMORY in names:
        described = folder / memory.MARKDOWN_NAME
        described.write_text(memory.as_markdown(frame))
        written.insert(0, described)
    return written
