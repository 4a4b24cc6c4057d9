"""The commands about checkpoints: making short ones long, and what fits into memory."""

from __future__ import annotations

import pathlib
from typing import TYPE_CHECKING, Annotated

import typer

from longformer_triton.cli_common import in_one_line, names, not_empty, numbers

if TYPE_CHECKING:
    from rich.table import Table

_MEMORIES = ("8GB", "16GB", "24GB", "48GB", "80GB")


def register(app: typer.Typer) -> None:
    """Add the commands to the console command."""
    app.command()(convert)
    app.command()(fits)


def convert(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SRC",
            help="A RoBERTa, XLM-R, CamemBERT or BERT checkpoint: its directory or hub name.",
            callback=not_empty,
        ),
    ],
    destination: Annotated[str, typer.Argument(metavar="DST", help="A new or empty directory for the Longformer.")],
    max_positions: Annotated[
        str, typer.Option(help="Rows of the position table: the tokens of the longest text, and those for padding (2, BERT 1).")
    ] = "4098",
    attention_window: Annotated[
        str, typer.Option(help="Tokens, both sides together, even; one number, or one for each layer with commas.")
    ] = "512",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16; auto is the source's.")] = "auto",
    architecture: Annotated[
        str | None, typer.Option(help="The class to make, such as LongformerForQuestionAnswering; the default is the source's.")
    ] = None,
    sep_token_id: Annotated[
        int | None, typer.Option(help="Id of the separator; the default is what the source's tokenizer says.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the Longformer that is in DST.")] = False,
) -> None:
    """Make a Longformer of a RoBERTa, XLM-R, CamemBERT or BERT: positions tiled, global projections copied, the rest kept.

    Examples:

        longformer-triton convert roberta-base roberta-base-4096

        longformer-triton convert my-bert my-bert-long --max-positions 2049 --attention-window 256
    """
    from rich.console import Console

    from longformer_triton.heads.conversion import convert as make_long

    windows = list(numbers("--attention-window", attention_window))
    rows = numbers("--max-positions", max_positions)
    if not destination:
        raise typer.BadParameter("got nothing, expected a new or empty directory", param_hint="DST")
    if len(rows) != 1:
        raise typer.BadParameter(f"got {max_positions!r}, expected one number", param_hint="--max-positions")
    try:
        places = {"destination": pathlib.Path(destination), "source": pathlib.Path(source)}
        with in_one_line(TypeError, NotImplementedError, **places), Console(stderr=True).status(f"converting {source}"):
            done = make_long(
                source,
                destination,
                max_positions=rows[0],
                attention_window=windows[0] if len(windows) == 1 else windows,
                dtype=dtype,
                architecture=architecture,
                sep_token_id=sep_token_id,
                overwrite=overwrite,
            )
    except KeyboardInterrupt:
        typer.echo(f"stopped; {destination} is as it was.", err=True)
        raise typer.Exit(130) from None
    typer.echo(done.as_text())
    typer.echo(f"written: {destination}")
    if done.takes_text:
        typer.echo(f"next: longformer-triton pretrain --model {destination} (--help has an example)")


def _memories(asked: str | None) -> tuple[str, ...]:
    """The columns of ``fits``: one memory stands before the usual ones, several stand alone."""
    from longformer_triton.model.files import size_in_bytes

    given = () if asked is None else tuple(_as_column(size, size_in_bytes(size, "memory")) for size in names(asked))
    return given if len(given) > 1 else (*given, *(usual for usual in _MEMORIES if usual not in given))


def _as_column(asked: str, size: int) -> str:
    """A memory as it was given; a plain number of bytes with a unit of which it is a whole number, for columns are narrow."""
    units = {"GB": 10**9, "GiB": 2**30, "MB": 10**6, "MiB": 2**20}
    whole = (f"{size // unit}{name}" for name, unit in units.items() if size % unit == 0)
    return next(whole, asked) if asked.isdigit() else asked


def fits(
    memory: Annotated[
        str | None,
        typer.Option(help="Memory: 24GB, or bytes; it comes before the usual 8 to 80GB; several with commas: these alone."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            help="A checkpoint's directory or hub name; the default is the paper's two sizes.",
            callback=not_empty,
        ),
    ] = None,
    length: Annotated[str | None, typer.Option(help="Ask whether texts of so many tokens fit, such as 16k.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Texts that run together, all of that length.")] = 1,
    dtype: Annotated[
        str, typer.Option(help="float32, bfloat16, float16 or float64: of weights, gradients, optimizer and states.")
    ] = "float32",
    optimizer: Annotated[str, typer.Option(help="adamw, adam, sgd, sgd-momentum or none.")] = "adamw",
    architecture: Annotated[
        str | None,
        typer.Option(help="A model class, such as LongformerForMaskedLM; the default is the checkpoint's, or the encoder."),
    ] = None,
    num_globals: Annotated[int, typer.Option(min=0, help="Global tokens of each text.")] = 1,
    margin: Annotated[float, typer.Option(help="Part of the memory to set aside for what is not estimated.")] = 0.1,
    device: Annotated[str, typer.Option(help="cuda: the Triton kernels; cpu: the PyTorch backend.")] = "cuda",
) -> None:
    """Estimate how long texts may be to train on them, with and without gradient checkpointing, or to run them.

    Examples:

        longformer-triton fits --memory 24GB

        longformer-triton fits --model checkpoint --length 16k --dtype bfloat16
    """
    from rich.console import Console

    from longformer_triton.model import memory_tables

    lengths = (None,) if length is None else numbers("--length", length)
    if len(lengths) != 1 or (lengths[0] is not None and lengths[0] < 1):
        raise typer.BadParameter(f"got {length!r}, expected one number, 1 or more", param_hint="--length")
    with in_one_line(TypeError, NotImplementedError, **({} if model is None else {"model": pathlib.Path(model)})):
        plan = memory_tables.Plan.of(
            _memories(memory),
            model,
            batch=batch,
            dtype=dtype,
            optimizer=optimizer,
            architecture=architecture,
            num_globals=num_globals,
            margin=margin,
            device=device,
        )
        tables = plan.longest() if lengths[0] is None else plan.needed(lengths[0])
        breakdowns = [] if lengths[0] is None or model is None else plan.breakdowns(lengths[0])
    console = Console()
    for name, rows in tables.items():
        console.print(_as_rich(name, rows))
    for breakdown in breakdowns:
        typer.echo(f"\n{breakdown}")
    console.print(plan.notes(), soft_wrap=True, highlight=False)


def _as_rich(title: str, rows: list[list[str]]) -> Table:
    """A table of texts, the first row being the names of the columns."""
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1))
    for number, name in enumerate(rows[0]):
        table.add_column(name, justify="right" if number else "left", no_wrap=True)
    for row in rows[1:]:
        table.add_row(*row)
    return table
