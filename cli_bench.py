"""The commands ``longformer-triton bench ...`` that measure."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pathlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from longformer_triton.cli_common import RESUMED_AND_DRAWN, Device, Threads, device_or_best, fail, in_one_line, names, numbers

if TYPE_CHECKING:
    from rich.console import Console

bench = typer.Typer(no_args_is_help=True)

Retry = Annotated[bool, typer.Option("--retry", help="Measure again what died, went wrong or ran out of memory.")]

_BENCH_PACKAGES = ("matplotlib", "pandas", "psutil")


@bench.callback()
def prepare_bench() -> None:
    """Measure attention and draw what came out."""
    # Read when torch loads: its profiler, which measures memory, otherwise logs two lines for every cell.
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    missing = [name for name in _BENCH_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        fail(f"{', '.join(missing)}: not installed; run: pip install 'longformer-triton[bench]'")


@contextlib.contextmanager
def _resumable(out: pathlib.Path, console: Console) -> Iterator[None]:
    """Errors as one line; an interruption says how to go on."""
    try:
        with in_one_line(out=out):
            yield
    except KeyboardInterrupt:
        console.print(f"stopped; {out} keeps every finished cell, and the same command resumes.")
        raise typer.Exit(130) from None


@bench.command()
def sweep(
    out: Annotated[pathlib.Path | None, RESUMED_AND_DRAWN] = None,
    quick: Annotated[bool, typer.Option("--quick", help="The suite that ends within three minutes on two cores.")] = False,
    suite: Annotated[
        str | None, typer.Option(help="quick, paper, windows, globals, short, model, memory or gpu; the default is all axes.")
    ] = None,
    lengths: Annotated[str | None, typer.Option(help="Sequence lengths, such as 1k,4k,16k.")] = None,
    windows: Annotated[str | None, typer.Option(help="Windows in tokens, both sides together, such as 128,512.")] = None,
    providers: Annotated[str | None, typer.Option(help="Comma-separated; the default is all that run.")] = None,
    direction: Annotated[str | None, typer.Option(help="forward or forward+backward; the default is both.")] = None,
    batch: Annotated[int | None, typer.Option(min=1)] = None,
    heads: Annotated[int | None, typer.Option(min=1)] = None,
    head_dim: Annotated[int | None, typer.Option(min=1)] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16, float16 or float64.")] = None,
    key_heads: Annotated[int | None, typer.Option(help="Heads of key and value, for grouped queries.", min=1)] = None,
    num_globals: Annotated[int | None, typer.Option(help="Global tokens of each text.", min=0)] = None,
    globals_at: Annotated[str | None, typer.Option(help="prefix, or scattered: elsewhere in each text.")] = None,
    padding: Annotated[int | None, typer.Option(help="Percent of tokens at the end that are padding.", min=0, max=99)] = None,
    dropout: Annotated[int | None, typer.Option(help="Percent of probabilities that are dropped.", min=0, max=99)] = None,
    causal: Annotated[bool, typer.Option("--causal", help="The whole window before the query; globals are sinks.")] = False,
    dilation: Annotated[int | None, typer.Option(help="Distance between neighbouring keys of a window.", min=1)] = None,
    device: Device = None,
    threads: Threads = None,
    time_limit: Annotated[float | None, typer.Option(help="Seconds after which to stop cleanly.", min=0)] = None,
    cell_seconds: Annotated[float | None, typer.Option(help="Seconds of repeats a cell.", min=0)] = None,
    max_call_seconds: Annotated[float | None, typer.Option(help="Skip cells whose calls would take longer.", min=0)] = None,
    retry: Retry = False,
) -> None:
    """Sweep length, window and other axes over every provider, and draw what a suite is about.

    Options replace axes of a suite; without one they are those of a sweep over everything.

    Examples:

        longformer-triton bench sweep --quick

        longformer-triton bench sweep --suite globals

        longformer-triton bench sweep --lengths 1k,4k,16k,64k --windows 256,512 --out results/long
    """
    from rich.console import Console

    from longformer_triton.bench.suites import plans_of, run_suite
    from longformer_triton.bench.sweep import notes, unavailable

    if quick and suite not in (None, "quick"):
        fail(f"--quick: got it together with --suite {suite}, expected one of them.")
    name = "quick" if quick else suite or "all"
    out = out or pathlib.Path("results", *([] if name in ("all", "quick") else [name]))
    given: dict[str, Any] = {
        "lengths": None if lengths is None else numbers("--lengths", lengths),
        "windows": None if windows is None else numbers("--windows", windows),
        "providers": None if providers is None else names(providers),
        "directions": None if direction is None else (direction,),
        "batch": batch,
        "heads": heads,
        "head_dim": head_dim,
        "dtype": dtype,
        "key_heads": key_heads,
        "num_globals": num_globals,
        "globals_at": globals_at,
        "padding": padding,
        "dropout": dropout,
        "is_causal": 1 if causal else None,
        "dilation": dilation,
        "threads": threads,
        "time_limit": time_limit,
        "cell_seconds": cell_seconds,
        "max_call_seconds": max_call_seconds,
        "retry": retry or None,
    }
    console = Console()
    with _resumable(out, console):
        plans = plans_of(name, device_or_best(device), {key: value for key, value in given.items() if value is not None})
        swept = [] if name == "model" else plans
        for provider, reason in unavailable(swept).items():
            console.print(f"not measured: {provider}: {reason}")
        for provider, note in notes(swept).items():
            console.print(f"note: {provider}: {note}")
        finished = run_suite(name, plans, out, console)
    if _is_there_something(out, console, finished=finished):
        _draw(out)


def _is_there_something(out: pathlib.Path, console: Console, *, finished: bool) -> bool:
    """Whether to draw: always after a sweep that was finished, else if some cell is measured; says that it was not finished."""
    from longformer_triton.bench.folder import read

    if finished:
        return True
    measured = len(read(out).measured)
    rest = "" if measured else " Nothing is measured yet, so nothing is drawn."
    console.print(f"the time limit came first; the same command resumes.{rest}")
    return measured > 0


def _draw(folder: pathlib.Path) -> None:
    from longformer_triton.bench.plot import draw_all

    with in_one_line(out=folder):
        for path in draw_all(folder):
            typer.echo(str(path))


@bench.command()
def core(
    out: Annotated[
        pathlib.Path,
        typer.Option("--out", help="Folder of results.csv, comparisons.csv and core.md; a rerun measures all of them again."),
    ] = pathlib.Path("results/core"),
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    rounds: Annotated[int, typer.Option(help="How often each variant runs.", min=2)] = 7,
    device: Device = None,
    threads: Threads = None,
) -> None:
    """Compare the attention core with transformers and full SDPA, side by side in one process: 12 heads, window 512."""
    from rich.console import Console

    from longformer_triton.bench.core import as_table, run_core

    console = Console()
    with in_one_line(out=out):
        results = run_core(out, console, dtype=dtype, device=device_or_best(device), threads=threads, rounds=rounds)
    console.print(as_table(results))


@bench.command()
def model(
    out: Annotated[pathlib.Path, RESUMED_AND_DRAWN] = pathlib.Path("results/model"),
    lengths: Annotated[str | None, typer.Option(help="Text lengths, such as 512,4k,16k.")] = None,
    window: Annotated[int | None, typer.Option(help="attention_window, both sides together.", min=2)] = None,
    direction: Annotated[str | None, typer.Option(help="forward or 'training step'; the default is both.")] = None,
    batch: Annotated[int | None, typer.Option(min=1)] = None,
    layers: Annotated[int | None, typer.Option(min=1)] = None,
    heads: Annotated[int | None, typer.Option(min=1)] = None,
    head_dim: Annotated[int | None, typer.Option(min=1)] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16, float16 or float64.")] = None,
    device: Device = None,
    threads: Threads = None,
    time_limit: Annotated[float | None, typer.Option(help="Seconds after which to stop cleanly.", min=0)] = None,
    cell_seconds: Annotated[float | None, typer.Option(help="Seconds of rounds a model.", min=0)] = None,
    max_call_seconds: Annotated[float | None, typer.Option(help="Skip cells whose calls would take longer.", min=0)] = None,
    retry: Retry = False,
) -> None:
    """Compare whole models, base-sized: ours, transformers' Longformer, and RoBERTa with full attention, side by side.

    Examples:

        longformer-triton bench model

        longformer-triton bench model --lengths 512,1k,2k --layers 2 --out results/small
    """
    from rich.console import Console

    from longformer_triton.bench.model_findings import as_table, findings, load_models
    from longformer_triton.bench.model_plot import draw_and_describe
    from longformer_triton.bench.model_sweep import ModelPlan, run_models

    given: dict[str, Any] = {
        "lengths": None if lengths is None else numbers("--lengths", lengths),
        "window": window,
        "directions": None if direction is None else (direction,),
        "batch": batch,
        "layers": layers,
        "heads": heads,
        "head_dim": head_dim,
        "dtype": dtype,
        "threads": threads,
        "time_limit": time_limit,
        "cell_seconds": cell_seconds,
        "max_call_seconds": max_call_seconds,
        "retry": retry or None,
    }
    console = Console()
    plan = ModelPlan(device=device_or_best(device), **{name: value for name, value in given.items() if value is not None})
    with _resumable(out, console):
        finished = run_models(plan, out, console)
        if _is_there_something(out, console, finished=finished):
            console.print(as_table(findings(load_models(out))))
            for path in draw_and_describe(out):
                typer.echo(str(path))


@bench.command()
def longest(
    out: Annotated[pathlib.Path, typer.Option("--out", help="Folder of results.csv; a rerun resumes there.")] = pathlib.Path(
        "results/longest"
    ),
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "bfloat16",
    window: Annotated[int, typer.Option(help="attention_window, both sides together.", min=2)] = 512,
    device: Device = None,
) -> None:
    """On a GPU: the longest text that a base-sized model can be trained on, for each implementation."""
    from rich.console import Console

    from longformer_triton.bench.longest import run_longest

    with in_one_line(out=out):
        run_longest(out, Console(), device_or_best(device), dtype, window)


@bench.command()
def tokenizer(
    vocabulary: Annotated[pathlib.Path, typer.Argument(help="A directory with vocab.json and merges.txt, or tokenizer.json.")],
    files: Annotated[list[pathlib.Path], typer.Argument(help="Text files, each one text of the batch.")],
    out: Annotated[
        pathlib.Path, typer.Option("--out", help="Folder of results.csv; a rerun measures all of it again.")
    ] = pathlib.Path("results/tokenizer"),
) -> None:
    """Compare the tokenizer with transformers' fast one on the same batch, side by side."""
    from rich.console import Console

    from longformer_triton.bench.tokenizers import run_tokenizers

    console = Console()
    with in_one_line(out=out, vocabulary=vocabulary):
        console.print(run_tokenizers(vocabulary, [path.read_text(encoding="utf-8") for path in files], out, console))
