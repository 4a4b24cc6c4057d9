"""The commands ``longformer-triton bench ...`` that read results: pictures, rooflines, reports, README blocks, comparisons."""

from __future__ import annotations

import pathlib
import shlex
from typing import Annotated

import typer

from longformer_triton.cli_common import Device, Threads, in_one_line

_Results = Annotated[pathlib.Path, typer.Argument(help="A folder that a benchmark wrote.")]


def _draw(folder: pathlib.Path) -> list[pathlib.Path]:
    """Draw what the folder's kind of results has pictures of.

    Raises:
        ValueError: the folder holds nothing that can be drawn.
    """
    from longformer_triton.bench import roofline
    from longformer_triton.bench.cases import Case
    from longformer_triton.bench.folder import read
    from longformer_triton.bench.model_cells import ModelCase

    kind = read(folder).is_of
    if kind is ModelCase:
        from longformer_triton.bench.model_plot import draw_and_describe

        return draw_and_describe(folder)
    if kind is not Case:
        raise ValueError(f"folder: {folder} holds results of a kind that has no pictures.")
    from longformer_triton.bench.plot import draw_all

    return [*draw_all(folder), *(roofline.draw(folder) if (folder / roofline.FILE_NAME).exists() else [])]


def plot(folder: _Results) -> None:
    """Draw the pictures of a results folder again, from its files alone."""
    with in_one_line(folder=folder):
        for path in _draw(folder):
            typer.echo(str(path))


def roofline(
    folder: _Results,
    measure: Annotated[
        bool, typer.Option("--measure", help="Measure the ceilings of this machine first; it has to be the one of the rows.")
    ] = False,
    device: Device = None,
    threads: Threads = None,
) -> None:
    """Draw useful operations a second against operations a byte, under the machine's measured ceilings.

    Example:

        longformer-triton bench roofline results --measure
    """
    from longformer_triton.bench import roofline as drawer
    from longformer_triton.bench.folder import read
    from longformer_triton.cli_common import device_or_best

    with in_one_line(folder=folder):
        if measure:
            for ceiling in drawer.measure_ceilings(folder, device_or_best(device), threads):
                rates = f"{ceiling.matmul_flops / 1e9:.1f} GFLOP/s, {ceiling.copy_bytes / 1e9:.1f} GB/s"
                typer.echo(f"{ceiling.dtype}: {rates}, ridge {ceiling.ridge:.1f} operations a byte")
        above = drawer.above_the_roof(drawer.points(read(folder)), drawer.load_ceilings(folder))
        for path in drawer.draw(folder):
            typer.echo(str(path))
    if above:
        lie = "point lies" if above == 1 else "points lie"
        typer.echo(f"{above} {lie} above the roof: the machine was busier when its ceilings were measured; measure again.")


def report(
    folders: Annotated[list[pathlib.Path], typer.Argument(help="Folders that a benchmark wrote.")],
    draw: Annotated[bool, typer.Option(help="Draw the pictures again first, where there are any to draw.")] = True,
) -> None:
    """Write report.html, a page that stands alone, and report.md, a table that a README can include, into each folder.

    Example:

        longformer-triton bench report bench/results/cpu-*
    """
    from longformer_triton.bench.report import write_report

    for folder in folders:
        with in_one_line(folder=folder):
            if draw:
                try:
                    _draw(folder)
                except ValueError as error:
                    typer.echo(f"not drawn: {error}")
            for path in write_report(folder):
                typer.echo(str(path))


def readme(
    document: Annotated[pathlib.Path, typer.Argument(help="A document with marked blocks.")] = pathlib.Path("README.md"),
    results: Annotated[pathlib.Path, typer.Option(help="The folder that blocks name files of.")] = pathlib.Path(
        "bench/results"
    ),
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; the exit status is 1 when a block is out of date.")
    ] = False,
) -> None:
    """Replace the marked blocks of a document by the tables of recorded results."""
    from longformer_triton.bench.readme import updated

    with in_one_line(document=document, results=results):
        text = document.read_text()
        new = updated(text, results)
        if check and new != text:
            typer.echo(f"{document}: blocks are out of date; run: longformer-triton bench readme {document}")
            raise typer.Exit(1)
        if new != text:
            document.write_text(new)
    typer.echo(f"{document}: {'updated' if new != text else 'up to date'}")


def compare(
    first: Annotated[str, typer.Argument(help="A results folder; with --revisions a commit, branch or tag.")],
    second: Annotated[str, typer.Argument(help="What is compared with it.")],
    revisions: Annotated[bool, typer.Option("--revisions", help="Measure two git revisions of this checkout first.")] = False,
    suite: Annotated[str, typer.Option(help="With --revisions: which suite of `bench sweep` to run.")] = "quick",
    options: Annotated[str, typer.Option(help="With --revisions: more options of `bench sweep`, in one word.")] = "",
    again: Annotated[bool, typer.Option(help="With --revisions: run the first once more at the end, to see the drift.")] = True,
    out: Annotated[
        pathlib.Path, typer.Option(help="With --revisions: a folder of results for each; a rerun resumes there.")
    ] = pathlib.Path("results/revisions"),
) -> None:
    """Compare two results folders, or two git revisions, cell by cell; where p20 to p80 overlap there is no difference.

    Examples:

        longformer-triton bench compare results/before results/after

        longformer-triton bench compare --revisions main HEAD --options "--providers ours-torch"
    """
    from rich.console import Console

    from longformer_triton.bench.compare import compare as compare_folders
    from longformer_triton.bench.revisions import measure_revisions

    console = Console()
    if not revisions:
        with in_one_line(first=pathlib.Path(first), second=pathlib.Path(second)):
            _print_comparison(console, pathlib.Path(first), pathlib.Path(second))
        return
    try:
        with in_one_line(out=out):
            chosen = ["--quick"] if suite == "quick" else ["--suite", suite]
            sweep = ["sweep", *chosen, *_words(options)]
            measured = measure_revisions(first, second, sweep, out, again=again, announce=typer.echo)
            _print_comparison(console, measured.first, measured.second)
            typer.echo("The revisions ran one after the other: a machine that drifts favours one of them.")
            if measured.again is not None:
                drift = compare_folders(measured.first, measured.again).summary
                typer.echo(f"The first against itself, before and after the second: {drift}")
    except KeyboardInterrupt:
        typer.echo(f"stopped; {out} keeps every finished cell, and the same command resumes.")
        raise typer.Exit(130) from None


def _words(options: str) -> list[str]:
    """The options in one text.

    Raises:
        ValueError: a quotation in it does not end.
    """
    try:
        return shlex.split(options)
    except ValueError as error:
        expected = 'options of `bench sweep` in a shell\'s notation, such as "--providers ours-torch"'
        raise ValueError(f"--options: got {options!r}, expected {expected}: {str(error).lower()}.") from None


def _print_comparison(console: object, first: pathlib.Path, second: pathlib.Path) -> None:
    from rich.console import Console

    from longformer_triton.bench.compare import as_table
    from longformer_triton.bench.compare import compare as compare_folders

    assert isinstance(console, Console)
    comparison = compare_folders(first, second)
    console.print(as_table(comparison))
    for caveat in comparison.caveats:
        console.print(f"caution: {caveat}", style="yellow", markup=False, soft_wrap=True)
    console.print(comparison.summary, markup=False, highlight=False, soft_wrap=True)


def register(bench: typer.Typer) -> None:
    """Add the commands to ``bench``."""
    for command in (plot, roofline, report, readme, compare):
        bench.command()(command)
