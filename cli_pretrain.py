"""The command that continues pretraining; ``accelerate launch`` runs it on one machine or many."""

from __future__ import annotations

import pathlib
from typing import Annotated

import typer

from longformer_triton.cli_common import Model, in_one_line, known_format, not_empty


def register(app: typer.Typer) -> None:
    """Add the command to the console command."""
    app.command("pretrain")(pretrain)


def pretrain(
    files: Annotated[list[pathlib.Path], typer.Argument(help="Text files in UTF-8.")],
    model: Model,
    out: Annotated[pathlib.Path, typer.Option("--out", help="Folder of the run; the same command goes on there.")],
    tokenizer: Annotated[
        str | None, typer.Option(help="Another directory or name than the model's.", callback=not_empty)
    ] = None,
    form: Annotated[
        str | None,
        typer.Option(
            "--input",
            help="text: a file is one text; lines: a line is one; jsonl. Default: by the suffix.",
            callback=known_format,
        ),
    ] = None,
    seq_len: Annotated[
        int | None, typer.Option(min=3, help="Tokens in a row; the default is all that the model takes.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows that a process computes at once.")] = 1,
    accumulation: Annotated[int, typer.Option(min=1, help="Such batches to a step.")] = 1,
    max_steps: Annotated[int, typer.Option(min=1, help="Steps of the optimiser.")] = 3000,
    learning_rate: Annotated[float, typer.Option(help="The highest; it rises to it, then falls to zero.")] = 3e-5,
    warm_up: Annotated[
        int | None, typer.Option(min=0, help="Steps of rising; the default is a tenth of all, 500 at most.")
    ] = None,
    weight_decay: Annotated[float, typer.Option(help="Of AdamW, not on biases and layer norms.")] = 0.01,
    max_grad_norm: Annotated[float, typer.Option(help="Longer gradients are cut to this norm.")] = 1.0,
    mask_probability: Annotated[float, typer.Option(help="With which each token is chosen.")] = 0.15,
    mixed_precision: Annotated[
        str | None, typer.Option(help="no, fp16 or bf16; the default is what accelerate launch says.")
    ] = None,
    gradient_checkpointing: Annotated[
        bool, typer.Option("--gradient-checkpointing", help="Compute activations again in backward: less memory, more time.")
    ] = False,
    validation_share: Annotated[float, typer.Option(help="Share of the rows that is held out; 0: none.")] = 0.02,
    validation: Annotated[
        list[pathlib.Path] | None,
        typer.Option(exists=True, dir_okay=False, help="Held-out texts instead; may be repeated."),
    ] = None,
    evaluate_every: Annotated[int | None, typer.Option(min=1, help="Steps; the default is --save-every.")] = None,
    save_every: Annotated[int, typer.Option(min=1, help="Steps from checkpoint to checkpoint.")] = 500,
    keep: Annotated[int, typer.Option(min=1, help="Checkpoints that stay.")] = 2,
    seed: Annotated[int, typer.Option(min=0, help="Of the order of rows, masked tokens and dropout.")] = 0,
    cpu: Annotated[bool, typer.Option("--cpu", help="Leave GPUs alone.")] = False,
    prepare_only: Annotated[
        bool, typer.Option("--prepare-only", help="Cut the texts into tokens and stop; for large corpora, before a launch.")
    ] = False,
) -> None:
    """Go on with pretraining: masked language modelling over text files, packed into long rows.

    A run that was stopped or killed goes on from its last checkpoint when the same command is given again.

    Examples:

        longformer-triton pretrain --model long-roberta --out run corpus/*.txt

        accelerate launch -m longformer_triton.cli pretrain --model long-roberta --out run --mixed-precision bf16 corpus/*.txt
    """
    from rich.console import Console

    from longformer_triton.heads.pretraining import pretrain as train
    from longformer_triton.heads.pretraining_options import PretrainingOptions

    console = Console()
    options = PretrainingOptions(
        model=model,
        files=files,
        out=out,
        tokenizer=tokenizer,
        form=form,
        seq_len=seq_len,
        batch_size=batch_size,
        accumulation=accumulation,
        max_steps=max_steps,
        learning_rate=learning_rate,
        warm_up=warm_up,
        weight_decay=weight_decay,
        max_grad_norm=max_grad_norm,
        mask_probability=mask_probability,
        mixed_precision=mixed_precision,
        gradient_checkpointing=gradient_checkpointing,
        validation_share=validation_share,
        validation_files=validation or (),
        evaluate_every=evaluate_every,
        save_every=save_every,
        keep=keep,
        seed=seed,
        cpu=cpu,
    )
    try:
        with in_one_line(TypeError, NotImplementedError, FloatingPointError, out=out):
            train(options, console, prepare_only=prepare_only)
    except KeyboardInterrupt:
        console.print(f"stopped; the same command goes on from the last checkpoint in {out}.")
        raise typer.Exit(130) from None
