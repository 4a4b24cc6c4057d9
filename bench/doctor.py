"""``longformer-triton doctor``: what is installed, what runs here and why the rest does not, and whether the kernels are right.

With a GPU, the shipped configurations for it run, forward and backward (:mod:`kernel_checks`). Without one the kernels are
compiled for the architectures of the table instead, and must not spill.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform

import torch
from rich.console import Console
from rich.markup import escape
from rich.progress import track

from longformer_triton.bench import kernel_checks
from longformer_triton.bench.driver import driver_version
from longformer_triton.bench.words import counted
from longformer_triton.kernels import available_backends
from longformer_triton.kernels.backends import TRITON_INSTALLED, why_not

_PACKAGES = ("longformer-triton", "torch", "triton", "numpy", "tokenizers", "transformers")


def report(console: Console) -> None:
    """Versions, devices, and which backends run where."""
    console.print(f"python {platform.python_version()} on {platform.system()} {platform.machine()}")
    for package in _PACKAGES:
        try:
            console.print(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            console.print(f"{package}: not installed")
    devices = ["cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]
    threads = counted(torch.get_num_threads(), "thread")
    for name in devices:
        title = torch.cuda.get_device_name(name) if name != "cpu" else threads
        console.print(f"[bold]{name}[/bold] ({title})")
        if name != "cpu":
            runtime = (
                f"CUDA {torch.version.cuda}, driver {driver_version()}" if torch.version.cuda else f"HIP {torch.version.hip}"
            )
            console.print(f"  {runtime}")
        for backend, reason in available_backends(name).items():
            console.print(f"  {backend}: " + ("runs" if reason is None else f"does not run: {reason}"))
    if TRITON_INSTALLED:
        from triton import knobs

        for tool in (knobs.nvidia.ptxas, knobs.nvidia.ptxas_blackwell):
            console.print(f"ptxas {tool.version}")


def examine(console: Console, *, thorough: bool, jobs: int | None = None) -> bool:
    """Report, then check the kernels by running or by compiling them; whether all is well."""
    report(console)
    if not TRITON_INSTALLED:
        console.print("[yellow]triton is not installed: nothing to check")
        return True
    if torch.cuda.is_available():
        return _examine_gpus(console, jobs or min(8, os.cpu_count() or 1))
    return _examine_compiler(console, thorough=thorough)


def _examine_gpus(console: Console, jobs: int) -> bool:
    well = True
    for number in range(torch.cuda.device_count()):
        device = f"cuda:{number}"
        reason = why_not("triton", torch.device(device), torch.float16, 64)
        if reason is not None:
            console.print(f"[yellow]refused[/yellow] {device}: {reason}")
            continue
        for outcome in kernel_checks.run_all(device, jobs):
            well = well and outcome.is_well
            state = "[yellow]refused[/yellow]" if outcome.refusal else "[green]ok[/green]"
            if not outcome.is_well:
                state = "[red]WRONG[/red]"
            # What a compiler or a driver says may hold brackets, which are rich's markup.
            console.print(f"{state} {device} {escape(str(outcome))}", highlight=False)
    return well


def _examine_compiler(console: Console, *, thorough: bool) -> bool:
    from longformer_triton.bench.compiled import shipped_problems
    from longformer_triton.bench.inspect import compiled_kernels, title_of

    console.print("no GPU: compiling the kernels ahead of time instead")
    problems = list(shipped_problems())
    if not thorough:
        problems = [
            (architecture, variant) for architecture, variant in problems
            if (variant.precision, variant.head_dim, variant.dropout, variant.dilation) == ("half", 64, False, 1)
        ]  # fmt: skip
    well = True
    for architecture, variant in track(problems, "compiling", console=console, transient=True):
        kernels = list(compiled_kernels(variant, architecture))
        wrong = [compiled.kernel for compiled in kernels if not compiled.fits]
        well = well and not wrong
        state = f"[red]SPILLS[/red] {', '.join(wrong)}:" if wrong else "[green]ok[/green]"
        console.print(f"{state} {title_of(variant, architecture)}: {len(kernels)} kernels", highlight=False)
    return well
