"""``longformer-triton doctor``: what is installed, what runs here and why the rest does not, and whether the kernels are right.

With a GPU, the shipped configurations for it, but those of TF32, run forward and backward, twice: against the dense reference
in float64, and against itself, bit for bit. Compilers do break single configurations of correct kernels. Without a GPU the
kernels are compiled for the architectures of the table instead, and must not spill.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import platform
from collections.abc import Iterator
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from longformer_triton.kernels import AttentionPattern, available_backends, longformer_attention, sliding_window_attention
from longformer_triton.kernels.backends import TRITON_INSTALLED, why_not

_PACKAGES = ("longformer-triton", "torch", "triton", "numpy", "tokenizers", "transformers")
# What the largest error may be, in units of the largest value: a few roundings of inputs and probabilities in each type.
TOLERANCE = {torch.float16: 4e-3, torch.bfloat16: 3e-2, torch.float32: 2e-5}
HEAD_DIMS = (32, 64, 80, 128, 256)


@dataclasses.dataclass(frozen=True)
class Check:
    """One problem that the kernels are run on; lengths are no multiple of any tile."""

    name: str
    padding: str = "none"
    num_globals: int = 0
    dropout_p: float = 0.0
    dilation: int = 1
    is_causal: bool = False
    key_heads: int = 2
    seq_len: int = 333
    window: tuple[int, int] = (100, 60)
    tokens_first: bool = False  # in memory (batch, seq_len, heads, head_dim), as a model's states are


CHECKS = (
    Check("window"),
    Check("causal, grouped heads", is_causal=True, key_heads=1),
    Check("dilated", dilation=3, window=(20, 20)),
    Check("dilated, dropout, padding and globals", dilation=3, window=(20, 20), dropout_p=0.1, padding="right", num_globals=20),
    Check("padding and globals", padding="right", num_globals=20),
    Check("holes", padding="holes", num_globals=3),
    Check("dropout", dropout_p=0.1),
    Check("dropout, padding and globals", dropout_p=0.1, padding="right", num_globals=20),
    # Forward and in half precision, PyTorch's fused kernels compute these where it has some; the padded one is ours everywhere.
    Check("window covers all", window=(400, 400)),
    Check("window covers all, globals, tokens first", num_globals=20, window=(400, 400), tokens_first=True),
    Check("window covers all, causal, grouped heads", is_causal=True, key_heads=1, window=(400, 0)),
    Check("window covers all, padding", padding="right", window=(400, 400)),
)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What came of one check."""

    check: Check
    dtype: torch.dtype
    head_dim: int
    error: float  # the largest, in units of the largest value
    repeats: bool  # whether two runs were equal to the bit
    refusal: str = ""  # why the kernels do not take such tensors, if they do not

    @property
    def is_well(self) -> bool:
        """Whether the kernel is right and repeats."""
        return self.repeats and self.error <= TOLERANCE[self.dtype]


def _results(check: Check, inputs: list[Tensor], pattern: AttentionPattern, backend: str) -> list[Tensor]:
    """out, lse and all gradients."""
    leaves = [tensor.detach().requires_grad_() for tensor in inputs]
    options: dict[str, Any] = {
        "dropout_p": check.dropout_p,
        "dropout_seed": torch.tensor(7, device=inputs[0].device),
        "return_lse": True,
    }
    if check.num_globals:
        query, key, value, query_global, key_global, value_global = leaves
        out, lse = longformer_attention(
            query, key, value, query_global, key_global, value_global, pattern, backend=backend, **options
        )
    else:
        query, key, value = leaves
        out, lse = sliding_window_attention(query, key, value, pattern=pattern, backend=backend, **options)
    weight = torch.linspace(-1, 1, out.numel(), device=out.device).view(out.shape)
    grads = torch.autograd.grad((out * weight.to(out.dtype)).sum() + lse[lse > -torch.inf].sum(), leaves)
    return [out.detach(), lse.detach(), *grads]


def run_check(check: Check, dtype: torch.dtype, head_dim: int, device: torch.device) -> Outcome:
    """Run the kernels twice, and the reference once in float64."""
    batch, heads, length = 2, 2, check.seq_len
    generator = torch.Generator().manual_seed(1)
    mask = torch.ones(batch, length, dtype=torch.bool)
    if check.padding == "right":
        mask[0, length // 2 :] = False
    if check.padding == "holes":
        mask = torch.rand(batch, length, generator=generator) < 0.8
    marks = torch.zeros(batch, length, dtype=torch.bool)
    marks[:, torch.randperm(length // 2, generator=generator)[: check.num_globals]] = True
    pattern = AttentionPattern.from_masks(
        None if check.padding == "none" else mask.to(device), marks.to(device) if check.num_globals else None,
        shape=(batch, length), device=device, window=check.window, dilation=check.dilation, is_causal=check.is_causal,
    )  # fmt: skip
    tokens = [(heads, length), (check.key_heads, length), (check.key_heads, length)]
    if check.num_globals:
        tokens += [(heads, pattern.global_index.shape[1]), *tokens[1:]]
    inputs = [torch.randn(batch, h, n, head_dim, generator=generator).to(device, dtype) for h, n in tokens]
    if check.tokens_first:
        inputs = [tensor.transpose(1, 2).contiguous().transpose(1, 2) for tensor in inputs]
    first, second = (_results(check, inputs, pattern, "triton") for _ in range(2))
    exact = _results(check, [tensor.double() for tensor in inputs], pattern, "reference")
    error = 0.0
    for got, expected in zip(first, exact, strict=True):
        finite = expected > -torch.inf
        if got.isnan().any() or not torch.equal(got > -torch.inf, finite):
            error = float("inf")
        elif finite.any():
            difference = (got[finite].double() - expected[finite]).abs().max() / expected[finite].abs().max().clamp_min(1e-3)
            error = max(error, difference.item())
    repeats = all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
    return Outcome(check, dtype, head_dim, error, repeats)


def run_checks(device: torch.device, dtypes: tuple[torch.dtype, ...], head_dims: tuple[int, ...]) -> Iterator[Outcome]:
    """Every check in every type and width that the kernels take there."""
    for dtype in dtypes:
        for head_dim in head_dims:
            if why_not("triton", device, dtype, head_dim) is None:
                for check in CHECKS:
                    try:
                        yield run_check(check, dtype, head_dim, device)
                    except NotImplementedError as refusal:
                        yield Outcome(check, dtype, head_dim, 0.0, True, str(refusal))


def report(console: Console) -> None:
    """Versions, devices, and which backends run where."""
    console.print(f"python {platform.python_version()} on {platform.system()} {platform.machine()}")
    for package in _PACKAGES:
        try:
            console.print(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            console.print(f"{package}: not installed")
    devices = ["cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]
    for name in devices:
        title = torch.cuda.get_device_name(name) if name != "cpu" else f"{torch.get_num_threads()} threads"
        console.print(f"[bold]{name}[/bold] ({title})")
        for backend, reason in available_backends(name).items():
            console.print(f"  {backend}: " + ("runs" if reason is None else f"does not run: {reason}"))
    if TRITON_INSTALLED:
        from triton import knobs

        for tool in (knobs.nvidia.ptxas, knobs.nvidia.ptxas_blackwell):
            console.print(f"ptxas {tool.version}")


def examine(console: Console, *, thorough: bool) -> bool:
    """Report, then check the kernels by running or by compiling them; whether all is well."""
    report(console)
    if not TRITON_INSTALLED:
        console.print("[yellow]triton is not installed: nothing to check")
        return True
    if torch.cuda.is_available():
        return _examine_gpu(console)
    return _examine_compiler(console, thorough=thorough)


def _examine_gpu(console: Console) -> bool:
    well = True
    for number in range(torch.cuda.device_count()):
        for outcome in run_checks(torch.device("cuda", number), tuple(TOLERANCE), HEAD_DIMS):
            well = well and outcome.is_well
            if outcome.refusal:
                console.print(f"[yellow]refused[/yellow] {outcome.refusal}")
                continue
            state = "[green]ok[/green]" if outcome.is_well else "[red]WRONG[/red]"
            same = "repeats" if outcome.repeats else "does not repeat"
            dtype = str(outcome.dtype).removeprefix("torch.")
            console.print(
                f"{state} cuda:{number} {dtype} head_dim {outcome.head_dim}, {outcome.check.name}: error {outcome.error:.1e} "
                f"of {TOLERANCE[outcome.dtype]:.0e} allowed, {same}"
            )
    return well


def _architectures_to_compile(thorough: bool) -> list[tuple[str, int]]:
    """(architecture, head_dim) of the shipped configurations."""
    from longformer_triton.kernels.triton_impl.tuning import POINTERS, configurations

    shipped = {
        (row.architecture.removesuffix(POINTERS), row.head_dim) for row in configurations().values() if row.precision == "half"
    }
    return sorted((name, head_dim) for name, head_dim in shipped if thorough or head_dim == 64)


def _examine_compiler(console: Console, *, thorough: bool) -> bool:
    from longformer_triton.bench.compiled import Variant
    from longformer_triton.bench.inspect import compiled_kernels

    console.print("no GPU: compiling the kernels ahead of time instead")
    well = True
    for architecture, head_dim in _architectures_to_compile(thorough):
        for variant in (Variant(head_dim), Variant(head_dim, checks=True)):
            try:
                kernels = list(compiled_kernels(variant, architecture))
            except NotImplementedError as refusal:
                console.print(f"[yellow]refused[/yellow] {refusal}")
                continue
            fits = all(compiled.fits for compiled in kernels)
            well = well and fits
            state = "[green]ok[/green]" if fits else "[red]SPILLS[/red]"
            checks = "padding and globals" if variant.checks else "window alone"
            console.print(f"{state} {architecture} float16 head_dim {head_dim}, {checks}: {len(kernels)} kernels")
    return well
