"""The console command ``longformer-triton``. Each subcommand imports its room when it runs."""

from __future__ import annotations

import importlib.util
import os
import pathlib
from typing import Annotated, Any

import typer

from longformer_triton import cli_tasks

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Longformer attention: exact, linear, measured.")
bench = typer.Typer(no_args_is_help=True)
app.add_typer(bench, name="bench")

_BENCH_PACKAGES = ("matplotlib", "pandas", "psutil")


@bench.callback()
def prepare_bench() -> None:
    """Measure attention and draw what came out."""
    # Read when torch loads: its profiler, which measures memory, otherwise logs two lines for every cell.
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    missing = [name for name in _BENCH_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        _fail(f"{', '.join(missing)}: not installed; run: pip install 'longformer-triton[bench]'")


def _fail(message: str) -> None:
    typer.echo(f"error: {message}", err=True)
    raise typer.Exit(2)


def _numbers(name: str, text: str) -> tuple[int, ...]:
    """Comma-separated whole numbers; a k stands for 1024."""
    try:
        return tuple(int(part[:-1]) * 1024 if part.endswith("k") else int(part) for part in text.split(","))
    except ValueError:
        message = f"got {text!r}, expected whole numbers separated by commas, such as 512,1k,16k"
        raise typer.BadParameter(message, param_hint=name) from None


def _device(requested: str | None) -> str:
    import torch

    if requested is not None:
        return requested
    return "cuda" if torch.cuda.is_available() else "cpu"


Folder = Annotated[pathlib.Path, typer.Option("--out", help="Folder of results.csv and the pictures; a rerun resumes there.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1; the default is a GPU if there is one.")]
Threads = Annotated[int | None, typer.Option(help="CPU threads; the default is torch's.", min=1)]


@bench.command()
def sweep(
    out: Folder = pathlib.Path("results"),
    quick: Annotated[
        bool, typer.Option("--quick", help="A small default that ends within three minutes on two cores.")
    ] = False,
    lengths: Annotated[str | None, typer.Option(help="Sequence lengths, such as 1k,4k,16k.")] = None,
    windows: Annotated[str | None, typer.Option(help="Windows in tokens, both sides together, such as 128,512.")] = None,
    providers: Annotated[str | None, typer.Option(help="Comma-separated; the default is all that run.")] = None,
    direction: Annotated[str | None, typer.Option(help="forward or forward+backward; the default is both.")] = None,
    batch: Annotated[int | None, typer.Option(min=1)] = None,
    heads: Annotated[int | None, typer.Option(min=1)] = None,
    head_dim: Annotated[int | None, typer.Option(min=1)] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16, float16 or float64.")] = None,
    num_globals: Annotated[int | None, typer.Option(help="Global tokens at the start.", min=0)] = None,
    device: Device = None,
    threads: Threads = None,
    time_limit: Annotated[float | None, typer.Option(help="Seconds after which to stop cleanly.", min=0)] = None,
    cell_seconds: Annotated[float | None, typer.Option(help="Seconds of repeats a cell.", min=0)] = None,
    max_call_seconds: Annotated[float | None, typer.Option(help="Skip cells whose calls would take longer.", min=0)] = None,
) -> None:
    """Sweep sequence length and window over every provider, and draw time, memory and speed-up.

    Examples:

        longformer-triton bench sweep --quick

        longformer-triton bench sweep --lengths 1k,4k,16k,64k --windows 256,512 --out results/long
    """
    import dataclasses

    from rich.console import Console

    from longformer_triton.bench.sweep import Plan, run_sweep, unavailable

    place = _device(device)
    plan = Plan.quick(place) if quick else Plan(device=place)
    given: dict[str, Any] = {
        "lengths": None if lengths is None else _numbers("--lengths", lengths),
        "windows": None if windows is None else _numbers("--windows", windows),
        "providers": None if providers is None else tuple(providers.split(",")),
        "directions": None if direction is None else (direction,),
        "batch": batch,
        "heads": heads,
        "head_dim": head_dim,
        "dtype": dtype,
        "num_globals": num_globals,
        "threads": threads,
        "time_limit": time_limit,
        "cell_seconds": cell_seconds,
        "max_call_seconds": max_call_seconds,
    }
    plan = dataclasses.replace(plan, **{name: value for name, value in given.items() if value is not None})
    console = Console()
    try:
        plan.validate()
        for name, reason in unavailable(plan).items():
            console.print(f"not measured: {name}: {reason}")
        finished = run_sweep(plan, out, console)
    except ValueError as error:
        _fail(str(error))
    except KeyboardInterrupt:
        console.print(f"stopped; {out} keeps every finished cell, and the same command resumes.")
        raise typer.Exit(130) from None
    if not finished:
        console.print("the time limit came first; the same command resumes.")
    _draw(out)


def _draw(folder: pathlib.Path) -> None:
    from longformer_triton.bench.plot import draw_all

    try:
        for path in draw_all(folder):
            typer.echo(str(path))
    except ValueError as error:
        _fail(str(error))


@bench.command()
def plot(folder: Annotated[pathlib.Path, typer.Argument(help="A folder that a sweep wrote.")]) -> None:
    """Draw the pictures of a results folder again, from its CSV alone."""
    _draw(folder)


@bench.command()
def compare(first: pathlib.Path, second: pathlib.Path) -> None:
    """Print the ratio of every cell that two results folders share (second over first)."""
    from rich.console import Console

    from longformer_triton.bench.compare import as_table, pair_up

    try:
        Console().print(as_table(pair_up(first, second)))
    except ValueError as error:
        _fail(str(error))


@bench.command()
def core(
    out: Folder = pathlib.Path("results/core"),
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "float32",
    rounds: Annotated[int, typer.Option(help="How often each variant runs.", min=2)] = 7,
    device: Device = None,
    threads: Threads = None,
) -> None:
    """Compare the attention core with transformers and full SDPA, side by side in one process: 12 heads, window 512."""
    from rich.console import Console

    from longformer_triton.bench.core import as_table, run_core

    console = Console()
    results = run_core(out, console, dtype=dtype, device=_device(device), threads=threads, rounds=rounds)
    console.print(as_table(results))


@bench.command()
def model(
    out: Folder = pathlib.Path("results/model"),
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
        "lengths": None if lengths is None else _numbers("--lengths", lengths),
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
    }
    console = Console()
    plan = ModelPlan(device=_device(device), **{name: value for name, value in given.items() if value is not None})
    try:
        finished = run_models(plan, out, console)
        console.print(as_table(findings(load_models(out))))
        for path in draw_and_describe(out):
            typer.echo(str(path))
    except ValueError as error:
        _fail(str(error))
    except KeyboardInterrupt:
        console.print(f"stopped; {out} keeps every finished cell, and the same command resumes.")
        raise typer.Exit(130) from None
    if not finished:
        console.print("the time limit came first; the same command resumes.")


@bench.command()
def longest(
    out: Folder = pathlib.Path("results/longest"),
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "bfloat16",
    window: Annotated[int, typer.Option(help="attention_window, both sides together.", min=2)] = 512,
    device: Device = None,
) -> None:
    """On a GPU: the longest text that a base-sized model can be trained on, for each implementation."""
    from rich.console import Console

    from longformer_triton.bench.longest import run_longest

    try:
        run_longest(out, Console(), _device(device), dtype, window)
    except ValueError as error:
        _fail(str(error))


@bench.command()
def tokenizer(
    vocabulary: Annotated[pathlib.Path, typer.Argument(help="A directory with vocab.json and merges.txt, or tokenizer.json.")],
    files: Annotated[list[pathlib.Path], typer.Argument(help="Text files, each one text of the batch.")],
    out: Folder = pathlib.Path("results/tokenizer"),
) -> None:
    """Compare the tokenizer with transformers' fast one on the same batch, side by side."""
    from rich.console import Console

    from longformer_triton.bench.tokenizers import run_tokenizers

    console = Console()
    try:
        console.print(run_tokenizers(vocabulary, [path.read_text(encoding="utf-8") for path in files], out, console))
    except (ValueError, OSError) as error:
        _fail(str(error))


_ARCHITECTURES = "sm_80, sm_86, sm_90, sm_100, sm_120 or gfx942; several with commas."


def _variant(head_dim: int, dtype: str, checks: bool, dropout: bool) -> Any:
    import torch

    from longformer_triton.bench.compiled import Variant

    types = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32, "tf32": torch.float32}
    if dtype not in types:
        raise typer.BadParameter(f"got {dtype!r}, expected one of {', '.join(types)}", param_hint="--dtype")
    return Variant(head_dim, types[dtype], dtype == "tf32", checks, dropout)


def _architectures(text: str) -> list[str]:
    from longformer_triton.bench.compiled import ARCHITECTURES

    names = text.split(",")
    unknown = [name for name in names if name not in ARCHITECTURES]
    if unknown:
        raise typer.BadParameter(f"got {', '.join(unknown)}, expected {_ARCHITECTURES}", param_hint="--architecture")
    return names


@bench.command()
def inspect(
    architecture: Annotated[str, typer.Option(help=_ARCHITECTURES)] = "sm_90",
    head_dim: Annotated[int, typer.Option(min=16, max=256)] = 64,
    dtype: Annotated[str, typer.Option(help="float16, bfloat16, float32 or tf32.")] = "float16",
    checks: Annotated[bool, typer.Option("--checks", help="With padding and global tokens.")] = False,
    dropout: Annotated[bool, typer.Option("--dropout")] = False,
) -> None:
    """Compile the kernels for a GPU that need not be here, and show registers, spills and the main loop's instructions."""
    from rich.console import Console

    from longformer_triton.bench.inspect import as_table, compiled_kernels

    console = Console()
    variant = _variant(head_dim, dtype, checks, dropout)
    for name in _architectures(architecture):
        with console.status(f"compiling for {name}"):
            kernels = list(compiled_kernels(variant, name))
        console.print(as_table(variant, name, kernels))


@bench.command()
def tune(
    architecture: Annotated[str | None, typer.Option(help=_ARCHITECTURES + " The default is the GPU here.")] = None,
    head_dim: Annotated[str, typer.Option(help="64, 128, 256; several with commas.")] = "64",
    dtype: Annotated[str, typer.Option(help="float16 (bfloat16 has the same), float32 or tf32.")] = "float16",
    kernel: Annotated[str | None, typer.Option(help="One kernel; the default is all.")] = None,
    save: Annotated[
        pathlib.Path | None, typer.Option(help="Table to append to; LONGFORMER_TRITON_CONFIGURATIONS=FILE puts it in force.")
    ] = None,
) -> None:
    """Find launch configurations: the fastest on the GPU here, or for another architecture the first that compiles well."""
    import torch

    from longformer_triton.bench import tune as tuner
    from longformer_triton.kernels.triton_impl.tuning import KERNELS, target_of

    here = target_of(torch.device("cuda", 0)).architecture if torch.cuda.is_available() else None
    if architecture is None and here is None:
        _fail("--architecture: not given, and there is no GPU here to take it from")
    if kernel is not None and kernel not in KERNELS:
        _fail(f"--kernel: got {kernel}, expected one of {', '.join(KERNELS)}")
    precision = _variant(64, dtype, False, False).precision
    for name in _architectures(architecture or str(here)):
        rows = tuner.table(
            name, precision, _numbers("--head-dim", head_dim), typer.echo, [kernel] if kernel else (),
            device="cuda" if name == here else None,
        )  # fmt: skip
        for row in rows:
            typer.echo(row.as_text())
            if save is not None:
                tuner.save([row], save)


@bench.command()
def gpu(
    out: Folder = pathlib.Path("results/gpu"),
    time_limit: Annotated[float | None, typer.Option(help="Seconds; what is left over runs in the next call.", min=1)] = None,
) -> None:
    """On a GPU: check the kernels, then sweep against every peer; a rerun goes on where the last one stopped."""
    from rich.console import Console

    from longformer_triton.bench.gpu import run_gpu

    try:
        well = run_gpu(out, Console(), time_limit)
    except ValueError as error:
        _fail(str(error))
    raise typer.Exit(0 if well else 1)


@app.command()
def doctor(
    thorough: Annotated[bool, typer.Option("--thorough", help="Without a GPU: compile every head_dim, not only 64.")] = False,
) -> None:
    """Say what is installed and what runs here, and check the kernels; the exit status is 0 when all is well, else 1."""
    from rich.console import Console

    from longformer_triton.bench.doctor import examine

    console = Console(soft_wrap=True)
    well = examine(console, thorough=thorough)
    console.print("[green]all is well" if well else "[red]not all is well: please report the lines marked above")
    raise typer.Exit(0 if well else 1)


cli_tasks.register(app)


def main() -> None:
    """Entry point of the console command."""
    app()


if __name__ == "__main__":
    main()
