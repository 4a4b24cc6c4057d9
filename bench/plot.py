"""Pictures from the CSV alone: scaling with length, cost of the window, and where the window wins."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator

from longformer_triton.bench.cases import DIRECTIONS, Case
from longformer_triton.bench.providers import PROVIDERS
from longformer_triton.bench.record import FILE_NAME, OK, names, read_rows
from longformer_triton.bench.words import counted, place

# Okabe and Ito's colours, which stay apart for colour-blind readers; each provider also has its own marker.
_STYLE = {
    "ours-triton": ("#D55E00", "D"),
    "ours-torch": ("#0072B2", "o"),
    "sdpa": ("#000000", "s"),
    "sdpa-flash": ("#000000", "<"),
    "sdpa-efficient": ("#000000", "1"),
    "sdpa-cudnn": ("#000000", ">"),
    "sdpa-math": ("#7F7F7F", "X"),
    "varlen": ("#56B4E9", "h"),
    "flex": ("#009E73", "^"),
    "flex-tuned": ("#009E73", "*"),
    "chunks": ("#E69F00", "p"),
    "transformers": ("#CC79A7", "v"),
    "transformers-patched": ("#009E73", "^"),
    "natten": ("#56B4E9", "d"),
    "xformers": ("#CC79A7", "<"),
    "flash-attn": ("#56B4E9", "s"),
    "reference": ("#8C564B", "x"),
    "ours": ("#0072B2", "o"),
    "roberta": ("#000000", "s"),
}
_OTHER_STYLE = ("#56B4E9", "P")
SETTINGS: dict[Any, Any] = {
    "font.size": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "svg.hashsalt": "longformer-triton",
}
OURS = ("ours-triton", "ours-torch")


def load(folder: pathlib.Path) -> pd.DataFrame:
    """The measured cells of a results folder, the last row of each.

    Raises:
        ValueError: there is no such file, it is damaged, or it holds no measured cell.
    """
    path = folder / FILE_NAME
    if not path.exists():
        raise ValueError(f"folder: {path} does not exist; run `longformer-triton bench sweep --out {folder}` first.")
    read_rows(path)  # says which line is damaged
    frame = pd.read_csv(path, keep_default_na=True)
    for field in dataclasses.fields(Case):
        # Older files have fewer axes; what they do not name was at its default.
        if field.name not in frame and field.default is not dataclasses.MISSING:
            frame[field.name] = np.nan if field.default is None else field.default
    frame = frame.drop_duplicates(names(Case), keep="last")
    frame = frame[frame["status"] == OK]
    if frame.empty:
        raise ValueError(f"folder: {path} holds no measured cell, so there is nothing to draw.")
    return frame


def fitted_exponent(lengths: np.ndarray, values: np.ndarray) -> float | None:
    """The slope of log value over log length, by least squares on the longer half of the points; None below three points."""
    keep = max(3, (len(lengths) + 1) // 2)
    lengths, values = lengths[-keep:], values[-keep:]
    if len(lengths) < 3 or np.any(values <= 0):
        return None
    return float(np.polyfit(np.log(lengths), np.log(values), 1)[0])


def style_of(provider: str) -> tuple[str, str]:
    """Colour and marker."""
    return _STYLE.get(provider, _OTHER_STYLE)


def title_of(provider: str) -> str:
    """What legends call a provider."""
    return PROVIDERS[provider].title if provider in PROVIDERS else provider


# Axes that stay the same in a picture that does not draw them, with what is usual. (As many key heads as heads stand as NaN.)
_USUAL = {
    field.name: field.default
    for field in dataclasses.fields(Case)
    if field.name not in ("provider", "direction", "seq_len", "window") and field.default is not dataclasses.MISSING
}


def usual(frame: pd.DataFrame, *drawn: str) -> pd.DataFrame:
    """The rows of a folder of many axes that one picture shows: each axis besides ``drawn`` at its default, or at its least.

    Rows of full attention are kept whatever they say of global tokens and dilation, which it ignores.
    """
    for axis in [axis for axis in _USUAL if axis not in drawn]:
        windowed = frame[frame["window"].notna()] if axis in ("num_globals", "globals_at", "dilation") else frame
        present, some_absent = list(windowed[axis].dropna().unique()), bool(windowed[axis].isna().any())
        if len(present) + some_absent < 2:
            continue
        kept = _USUAL[axis] if _USUAL[axis] in present else min(present)
        chosen = frame[axis].isna() if some_absent else frame[axis] == kept
        frame = frame[chosen | ~frame.index.isin(windowed.index)]
    return frame


def one_window(frame: pd.DataFrame) -> tuple[pd.DataFrame, int | None]:
    """The rows of full attention and those of one window, and that: 512, the paper's, or the middle one; None without any."""
    windows = sorted(frame["window"].dropna().astype(int).unique())
    if not windows:
        return frame, None
    window = 512 if 512 in windows else int(windows[len(windows) // 2])
    return frame[frame["window"].isna() | (frame["window"] == window)], window


def lines(
    axes: Axes, frame: pd.DataFrame, column: str, x: str, with_exponent: bool, title: Callable[[str], str] = title_of
) -> None:
    """One line a provider, with its fitted exponent in the legend if wanted, and the spread of times behind it."""
    for provider, rows in frame.groupby("provider", sort=False):
        rows = rows.sort_values(x)
        color, marker = style_of(str(provider))
        label = title(str(provider))
        if with_exponent:
            exponent = fitted_exponent(rows[x].to_numpy(float), rows[column].to_numpy(float))
            label += "" if exponent is None else f": $N^{{{exponent:.2f}}}$"
        axes.plot(rows[x], rows[column], color=color, marker=marker, markersize=6, linewidth=2, label=label)
        if column == "p50_ms":
            axes.fill_between(rows[x], rows["p20_ms"], rows["p80_ms"], color=color, alpha=0.15, linewidth=0)


def log_axes(axes: Axes, ticks: list[int], x_label: str, y_label: str) -> None:
    """Logarithmic axes with the measured lengths as ticks."""
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(ticks, [short(tick) for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)


def plain_numbers(axes: Axes) -> None:
    """Ticks at 1, 2 and 5 of each decade, written out."""
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda number, _: decimal(number)))


def decimal(number: float) -> str:
    """0.5, 20, 500k, 2M: steps of a thousand."""
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:g}{unit}"
    return f"{number:g}"


def short(number: int) -> str:
    """Lengths as ticks name them."""
    for unit, size in (("M", 2**20), ("k", 2**10)):
        if number >= size and number % size == 0:
            return f"{number // size}{unit}"
    return str(number)


def setting(frame: pd.DataFrame) -> str:
    """One line that says what was measured and where; more than one machine, where a folder holds rows of several."""
    first = frame.iloc[0]
    num_globals = int(frame["num_globals"].max())
    tokens = {0: "no global token", 1: "one global token"}.get(num_globals, f"{num_globals} global tokens")
    return (
        f"batch {int(first['batch'])}, {counted(int(first['heads']), 'head')}, head_dim {int(first['head_dim'])}, "
        f"{', '.join([first['dtype'], tokens, *_unusual(frame)])}; {' and '.join(_places(frame))}"
    )


def _unusual(frame: pd.DataFrame) -> list[str]:
    """What captions say only where it is so."""
    windowed = frame[frame["window"].notna()]
    words = [f"{name} {int(frame[name].max())} %" for name in ("padding", "dropout") if frame[name].max() > 0]
    if frame["is_causal"].any():
        words.append("causal")
    if (windowed["dilation"] > 1).any():
        words.append(f"dilation {int(windowed['dilation'].max())}")
    if frame["key_heads"].notna().any():
        words.append(counted(int(frame["key_heads"].max()), "key head"))
    return [*words, "in a CUDA graph"] if frame["graph"].any() else words


def _places(frame: pd.DataFrame) -> list[str]:
    """Each device with its number of threads and its PyTorch."""
    return list(
        dict.fromkeys(
            place(device, "" if pd.isna(threads) else int(threads), version)
            for device, threads, version in zip(frame["device"], frame["threads"], frame["torch"], strict=True)
        )
    )


def window_label(frame: pd.DataFrame) -> str:
    """What the axis of windows is called."""
    return f"window, tokens ({'before the query' if frame['is_causal'].any() else 'both sides'})"


def room_for_legend(axes: Axes) -> None:
    """Stretch a logarithmic axis upwards, for a legend that covers no line."""
    low, high = axes.get_ylim()
    axes.set_ylim(low, high * (high / low) ** (0.1 + 0.09 * len(axes.get_legend_handles_labels()[0])))


def draw_scaling(frame: pd.DataFrame) -> Figure:
    """Time and peak extra memory against length, log-log, with fitted exponents; full attention for contrast."""
    frame, window = one_window(usual(frame))
    directions = [direction for direction in DIRECTIONS if direction in set(frame["direction"])]
    figure = Figure(figsize=(6.2 * len(directions), 10.2), layout="constrained")
    grid = figure.subplots(2, len(directions), squeeze=False, sharex=True)
    ticks = sorted(frame["seq_len"].unique())
    for column, direction in enumerate(directions):
        rows = frame[frame["direction"] == direction]
        for axes, value, label in (
            (grid[0][column], "p50_ms", "milliseconds a call (median, p20 to p80)"),
            (grid[1][column], "peak_extra_mib", "peak extra memory, MiB"),
        ):
            lines(axes, rows, value, "seq_len", with_exponent=True)
            log_axes(axes, ticks, "sequence length N, tokens", label)
            plain_numbers(axes)
            room_for_legend(axes)
            axes.legend(fontsize=10, loc="upper left")
        grid[0][column].set_title(direction)
    named = "Full attention" if window is None else f"Attention with a window of {window} tokens against full attention"
    figure.suptitle(f"{named}\n", fontsize=15)
    figure.text(0.5, 0.962, setting(frame), ha="center", va="top", fontsize=9)
    return figure


def draw_windows(frame: pd.DataFrame) -> Figure | None:
    """Time against the window at the longest length of ours, or of others; full attention as level lines. None without any."""
    frame = usual(frame)
    with_window = set(frame[frame["window"].notna()]["direction"])
    directions = [direction for direction in DIRECTIONS if direction in with_window]
    if not directions:
        return None
    figure = Figure(figsize=(6.2 * len(directions), 5.4), layout="constrained")
    grid = figure.subplots(1, len(directions), squeeze=False)
    for axes, direction in zip(grid[0], directions, strict=True):
        rows = frame[frame["direction"] == direction]
        windowed = rows[rows["window"].notna()]
        ours = windowed[windowed["provider"].isin(OURS)]
        length = int((windowed if ours.empty else ours)["seq_len"].max())
        at_length = windowed[windowed["seq_len"] == length]
        lines(axes, at_length, "p50_ms", "window", with_exponent=False)
        full = rows[rows["window"].isna() & (rows["seq_len"] == length)]
        for _, row in full.iterrows():
            axes.axhline(row["p50_ms"], color=style_of(row["provider"])[0], linestyle="--", label=title_of(row["provider"]))
        log_axes(axes, sorted(at_length["window"].astype(int).unique()), window_label(rows), "milliseconds a call")
        plain_numbers(axes)
        room_for_legend(axes)
        axes.set_title(f"{direction}, N = {short(length)}")
        axes.legend(fontsize=10, loc="upper left")
    figure.suptitle("Cost of the window", fontsize=15)
    figure.supxlabel(setting(frame), fontsize=9)
    return figure


def draw_speedup(frame: pd.DataFrame) -> Figure | None:
    """A map over length and window: how many times faster than full attention; None without a pair to compare."""
    frame = usual(frame)
    ours = next((name for name in OURS if name in set(frame["provider"])), None)
    full = frame[frame["provider"] == "sdpa"].set_index(["direction", "seq_len"])["p50_ms"]
    if ours is None or full.empty:
        return None
    rows = frame[frame["provider"] == ours].copy()
    rows["speedup"] = [
        full.get((direction, length), np.nan) / time
        for direction, length, time in zip(rows["direction"], rows["seq_len"], rows["p50_ms"], strict=True)
    ]
    directions = [direction for direction in DIRECTIONS if direction in set(rows["direction"])]
    figure = Figure(figsize=(6.2 * len(directions), 4.8), layout="constrained")
    grid = figure.subplots(1, len(directions), squeeze=False)
    largest = float(np.nanmax(np.abs(np.log2(rows["speedup"]))))
    for axes, direction in zip(grid[0], directions, strict=True):
        table = rows[rows["direction"] == direction].pivot_table(
            index="window", columns="seq_len", values="speedup", dropna=False
        )
        image = axes.imshow(np.log2(table), cmap="PuOr_r", vmin=-largest, vmax=largest, aspect="auto", origin="lower")
        for y, x in np.ndindex(table.shape):
            value = table.iloc[y, x]
            text = "not\nmeasured" if np.isnan(value) else _times(value)
            dark = not np.isnan(value) and abs(np.log2(value)) > 0.6 * largest
            axes.text(
                x, y, text, ha="center", va="center", fontsize=9 if np.isnan(value) else 13, color="white" if dark else "black"
            )
        axes.set_xticks(range(table.shape[1]), [short(int(length)) for length in table.columns])
        axes.set_yticks(range(table.shape[0]), [str(int(window)) for window in table.index])
        axes.set_xlabel("sequence length N, tokens")
        axes.set_ylabel(window_label(rows))
        axes.set_title(direction)
        axes.grid(visible=False)
    bar = figure.colorbar(image, ax=grid.ravel().tolist(), label="times faster (purple: slower)")
    whole = int(largest)
    marks = range(-whole, whole + 1, max(1, whole // 3))
    bar.set_ticks(list(marks), labels=[_times(2.0**mark) for mark in marks])
    figure.suptitle(f"{title_of(ours)} against full attention (PyTorch SDPA)", fontsize=14)
    figure.supxlabel(setting(frame), fontsize=9)
    return figure


def _times(factor: float) -> str:
    return f"{factor:.2g}x" if factor < 10 else f"{factor:.0f}x"


def write(figures: Mapping[str, Figure | None], folder: pathlib.Path) -> list[pathlib.Path]:
    """Save figures by name as PNG and SVG; returns the files."""
    written = []
    for name, figure in figures.items():
        if figure is None:
            continue
        for suffix, options in ((".png", {"dpi": 110}), (".svg", {"metadata": {"Date": None}})):
            path = folder / f"{name}{suffix}"
            figure.savefig(path, **options)
            written.append(path)
    return written


def draw_all(folder: pathlib.Path) -> list[pathlib.Path]:
    """Draw every picture of a results folder as PNG and SVG, those of the suite that it was measured for; returns the files.

    Raises:
        ValueError: the folder holds nothing to draw.
    """
    from longformer_triton.bench.plot_suites import draw_suite

    return draw_suite(folder)
