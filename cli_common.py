"""What the commands share: options, numbers as people write them, errors as one line."""

from __future__ import annotations

import pathlib
from typing import Annotated, NoReturn

import typer

Folder = Annotated[pathlib.Path, typer.Option("--out", help="Folder of results.csv and the pictures; a rerun resumes there.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1; the default is a GPU if there is one.")]
Threads = Annotated[int | None, typer.Option(help="CPU threads; the default is torch's.", min=1)]


def fail(message: str) -> NoReturn:
    """Say what is wrong on standard error, and end with status 2."""
    typer.echo(f"error: {message}", err=True)
    raise typer.Exit(2)


def numbers(name: str, text: str) -> tuple[int, ...]:
    """Comma-separated whole numbers; a k stands for 1024."""
    try:
        return tuple(int(part[:-1]) * 1024 if part.endswith("k") else int(part) for part in text.split(","))
    except ValueError:
        message = f"got {text!r}, expected whole numbers separated by commas, such as 512,1k,16k"
        raise typer.BadParameter(message, param_hint=name) from None


def device_or_best(requested: str | None) -> str:
    """The device asked for, else a GPU if there is one, else the CPU. Ends the command if the one asked for is not here."""
    import torch

    from longformer_triton.kernels import backends

    if requested is not None:
        try:
            return str(backends.present(requested))
        except ValueError as error:
            fail(str(error))
    return "cuda" if torch.cuda.is_available() else "cpu"
