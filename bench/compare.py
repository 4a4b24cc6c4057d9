"""Two folders of results, row by row."""

from __future__ import annotations

import pathlib

import pandas as pd
from rich.table import Table

from longformer_triton.bench.cases import Case
from longformer_triton.bench.plot import load
from longformer_triton.bench.record import names


def pair_up(first: pathlib.Path, second: pathlib.Path) -> pd.DataFrame:
    """Cells that both folders measured, with the ratio of medians (second over first) and whether p20 .. p80 overlap.

    Raises:
        ValueError: a folder holds nothing, or they share no cell.
    """
    axes = names(Case)
    measured = [load(folder)[[*axes, "p20_ms", "p50_ms", "p80_ms"]] for folder in (first, second)]
    pairs = measured[0].merge(measured[1], on=axes, suffixes=("_first", "_second"))
    if pairs.empty:
        raise ValueError(f"folders: {first} and {second} share no measured cell; sweep the same axes in both.")
    pairs["ratio"] = pairs["p50_ms_second"] / pairs["p50_ms_first"]
    pairs["overlap"] = (pairs["p20_ms_first"] <= pairs["p80_ms_second"]) & (pairs["p20_ms_second"] <= pairs["p80_ms_first"])
    return pairs


def as_table(pairs: pd.DataFrame) -> Table:
    """The pairs for a terminal; overlapping spreads count as no difference."""
    table = Table("provider", "direction", "N", "window", "first ms", "second ms", "ratio", "")
    for _, row in pairs.iterrows():
        verdict = "no difference" if row["overlap"] else "slower" if row["ratio"] > 1 else "faster"
        table.add_row(
            row["provider"],
            row["direction"],
            str(row["seq_len"]),
            "full" if pd.isna(row["window"]) else str(int(row["window"])),
            f"{row['p50_ms_first']:.2f}",
            f"{row['p50_ms_second']:.2f}",
            f"{row['ratio']:.3f}",
            verdict,
        )
    return table
