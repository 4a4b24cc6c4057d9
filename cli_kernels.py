"""The commands about the Triton kernels: what they compile to, which launch configurations they get, whether they are right."""

from __future__ import annotations

import pathlib
from typing import Annotated, Any

import typer

from longformer_triton.cli_common import fail, in_one_line, names, numbers

_ARCHITECTURES = "sm_80, sm_86, sm_87, sm_89, sm_90, sm_100, sm_103, sm_120, sm_121, gfx942 or gfx950; several with commas."


def _variant(head_dim: int, dtype: str, masks: bool = False, dropout: bool = False, dilation: int = 1) -> Any:
    import torch

    from longformer_triton.bench.compiled import Variant

    types = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32, "tf32": torch.float32}
    if dtype not in types:
        raise typer.BadParameter(f"got {dtype!r}, expected one of {', '.join(types)}", param_hint="--dtype")
    return Variant(head_dim, types[dtype], dtype == "tf32", masks, dropout, dilation)


def _architectures(text: str) -> list[str]:
    from longformer_triton.bench.architectures import ARCHITECTURES

    chosen = list(names(text))
    unknown = [name for name in chosen if name not in ARCHITECTURES]
    if unknown:
        raise typer.BadParameter(f"got {', '.join(unknown)}, expected {_ARCHITECTURES}", param_hint="--architecture")
    return chosen


def inspect(
    architecture: Annotated[str, typer.Option(help=_ARCHITECTURES)] = "sm_90",
    head_dim: Annotated[int, typer.Option(min=16, max=256)] = 64,
    dtype: Annotated[str, typer.Option(help="float16, bfloat16, float32 or tf32.")] = "float16",
    masks: Annotated[bool, typer.Option("--masks", help="With padding and global tokens.")] = False,
    dropout: Annotated[bool, typer.Option("--dropout")] = False,
    dilation: Annotated[int, typer.Option(min=1, help="More than 1: tiles are loaded by pointers.")] = 1,
) -> None:
    """Compile the kernels for a GPU that need not be here, and show registers, spills and the main loop's instructions."""
    from rich.console import Console

    from longformer_triton.bench.inspect import WIDTH, as_table, compiled_kernels

    console = Console()
    if not console.is_terminal:
        console = Console(width=max(console.width, WIDTH))
    variant = _variant(head_dim, dtype, masks, dropout, dilation)
    for name in _architectures(architecture):
        try:
            with console.status(f"compiling for {name}"):
                kernels = list(compiled_kernels(variant, name))
        except NotImplementedError as refusal:
            console.print(f"[yellow]refused[/yellow] {refusal}")
            continue
        console.print(as_table(variant, name, kernels))


def tune(
    architecture: Annotated[str | None, typer.Option(help=_ARCHITECTURES + " The default is the GPU here.")] = None,
    head_dim: Annotated[str, typer.Option(help="64, 128, 256; several with commas.")] = "64",
    dtype: Annotated[str, typer.Option(help="float16 (bfloat16 has the same), float32 or tf32.")] = "float16",
    kernel: Annotated[str | None, typer.Option(help="One kernel; the default is all.")] = None,
    dilation: Annotated[int, typer.Option(min=1, help="More than 1: for tiles that are loaded by pointers.")] = 1,
    save: Annotated[
        pathlib.Path | None,
        typer.Option(
            help="Table to add to; rows that it holds are not sought again. "
            "LONGFORMER_TRITON_CONFIGURATIONS=FILE puts it in force."
        ),
    ] = None,
) -> None:
    """Find launch configurations: the fastest on the GPU here, for others those with the best bound by issue rates."""
    import torch

    from longformer_triton.bench import tune as tuner
    from longformer_triton.kernels.triton_impl.tuning import HEAD_DIMS, KERNELS, read_rows, target_of

    places = {} if save is None else {"save": save}
    here = target_of(torch.device("cuda", 0)).architecture if torch.cuda.is_available() else None
    if architecture is None and here is None:
        fail("--architecture: not given, and there is no GPU here to take it from")
    if kernel is not None and kernel not in KERNELS:
        fail(f"--kernel: got {kernel}, expected one of {', '.join(KERNELS)}")
    widths = numbers("--head-dim", head_dim)
    if not set(widths) <= set(HEAD_DIMS):
        fail(f"--head-dim: got {head_dim}, expected some of {', '.join(map(str, HEAD_DIMS))}, which serve narrower heads too")
    with in_one_line(**places):
        try:
            known = read_rows(save) if save is not None and save.exists() else []
        except ValueError as error:
            fail(f"--save: {error}")
    precision = _variant(64, dtype).precision
    for name in _architectures(architecture or str(here)):
        rows = tuner.table(
            name, precision, widths, typer.echo, [kernel] if kernel else (), known=known, dilation=dilation,
            device="cuda" if name == here else None,
        )  # fmt: skip
        for row in rows:
            typer.echo(row.as_text())
            if save is not None:
                with in_one_line(**places):
                    tuner.save([row], save)


def gpu(
    out: Annotated[pathlib.Path | None, typer.Option(help="Folder; by default results/ and the GPU's name.")] = None,
    time_limit: Annotated[float | None, typer.Option(help="Seconds; what is left over runs in the next call.", min=1)] = None,
) -> None:
    """On a GPU: check kernels, sweep against every peer, measure models, tune; a rerun goes on where the last stopped."""
    from rich.console import Console

    from longformer_triton.bench.gpu import default_folder, run_gpu

    folder = out or default_folder()
    with in_one_line(out=folder):
        well = run_gpu(folder, Console(), time_limit)
    raise typer.Exit(0 if well else 1)


def doctor(
    thorough: Annotated[
        bool, typer.Option("--thorough", help="Without a GPU: compile for every shipped problem, not only for head_dim 64.")
    ] = False,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="With a GPU: processes at once; most of their time is compiling.")
    ] = None,
) -> None:
    """Say what is installed and what runs here, and check the kernels; the exit status is 0 when all is well, else 1."""
    from rich.console import Console

    from longformer_triton.bench.doctor import examine

    console = Console(soft_wrap=True)
    well = examine(console, thorough=thorough, jobs=jobs)
    console.print("[green]all is well" if well else "[red]not all is well: please report the lines marked above")
    raise typer.Exit(0 if well else 1)


def register(app: typer.Typer, bench: typer.Typer) -> None:
    """Add the commands: ``doctor`` to ``app``, the others to ``bench``."""
    app.command()(doctor)
    for command in (inspect, tune, gpu):
        bench.command()(command)
