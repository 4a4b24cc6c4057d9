"""The console command ``longformer-triton``. Each subcommand imports its room when it runs."""

from __future__ import annotations

import typer

from longformer_triton import cli_checkpoints, cli_kernels, cli_pretrain, cli_results, cli_tasks
from longformer_triton.cli_bench import bench

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Longformer attention: exact, linear, measured.")
app.add_typer(bench, name="bench")
cli_kernels.register(app, bench)
cli_results.register(bench)
cli_tasks.register(app)
cli_checkpoints.register(app)
cli_pretrain.register(app)


def main() -> None:
    """Entry point of the console command."""
    app()


if __name__ == "__main__":
    main()
