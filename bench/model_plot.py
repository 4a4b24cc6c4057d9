"""Pictures of whole models: tokens a second and memory against length."""

from __future__ import annotations

import pathlib

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator

from longformer_triton.bench.model_cells import DIRECTIONS, MODELS, OURS, UNABSORBED
from longformer_triton.bench.model_findings import MARKDOWN_NAME, as_markdown, load_models, one_size, origins, size
from longformer_triton.bench.plot import SETTINGS, lines, log_axes, write
from longformer_triton.bench.tables import run_of, where


def _title(provider: str) -> str:
    return MODELS[provider].title if provider in MODELS else provider


def draw_models(frame: pd.DataFrame) -> Figure:
    """Tokens a second above, peak extra memory below; a column for each direction. Of several sizes one is drawn, and named."""
    frame = one_size(frame)
    measured = origins(frame)
    # Ours last, on top: where lines meet, one would hide it.
    frame = frame[frame["provider"] != UNABSORBED].sort_values("provider", key=lambda names: names == OURS, kind="stable")
    directions = [direction for direction in DIRECTIONS if direction in set(frame["direction"])]
    figure = Figure(figsize=(6.2 * len(directions), 9.6), layout="constrained")
    grid = figure.subplots(2, len(directions), squeeze=False, sharex=True)
    ticks = sorted(frame["seq_len"].unique())
    for column, direction in enumerate(directions):
        rows = frame[frame["direction"] == direction]
        for axes, value, label, legend in (
            (grid[0][column], "tokens_per_second", "tokens a second (median)", "lower left"),
            (grid[1][column], "peak_extra_mib", "peak memory beyond the model, MiB", "upper left"),
        ):
            lines(axes, rows, value, "seq_len", with_exponent=value == "peak_extra_mib", title=_title)
            log_axes(axes, ticks, "text length, tokens", label)
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda number, _: f"{number:g}"))
            low, high = axes.get_ylim()
            room = (high / low) ** 0.4
            axes.set_ylim(*((low / room, high) if legend == "lower left" else (low, high * room)))
            axes.legend(fontsize=10, loc=legend)
        grid[0][column].set_title(direction)
    figure.suptitle("A text classifier against its peers\n", fontsize=15)
    runs = len({run_of(row) for row in measured})
    several = f", {runs} runs" if runs > 1 else ""
    setting = f"{size(frame)}, one global token; {where(measured, ['torch'])}{several}"
    figure.text(0.5, 0.96, setting, ha="center", va="top", fontsize=9)
    return figure


def draw_and_describe(folder: pathlib.Path) -> list[pathlib.Path]:
    """Write model.png, model.svg and model.md from a folder's rows; returns the files.

    Raises:
        ValueError: the folder holds nothing to draw.
    """
    frame = load_models(folder)
    described = folder / MARKDOWN_NAME
    described.write_text(as_markdown(frame))
    with mpl.rc_context(SETTINGS):
        return [described, *write({"model": draw_models(frame)}, folder)]
