"""The Triton kernels compiled ahead of time, for GPUs that need not be here: registers, shared memory, spills, instructions.

The launches are the ones that run (``kernels/triton_impl/launch.py``), for tensors on the CPU; only the last step differs: a
stand-in for Triton's driver names the architecture, and nothing is loaded.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import itertools
import math
import pathlib
import re
import subprocess
import tempfile
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.runtime import driver

from longformer_triton.bench.architectures import ARCHITECTURES, TESTED
from longformer_triton.bench.assembly import MIX, clean_loop, kinds
from longformer_triton.bench.kernel_checks import float32_products
from longformer_triton.kernels import AttentionPattern
from longformer_triton.kernels.dropout import Dropout
from longformer_triton.kernels.layout import QKV
from longformer_triton.kernels.precision import accumulation_dtype
from longformer_triton.kernels.triton_impl.launch import backward_steps, forward_steps
from longformer_triton.kernels.triton_impl.problem import BackwardInputs
from longformer_triton.kernels.triton_impl.steps import Launch
from longformer_triton.kernels.triton_impl.tuning import HEAD_DIMS, IS_3_6, Config, Target

# Matrix products of a score: scores and out; scores, dP and dQ; scores, dP, dK and dV.
PRODUCTS = {
    "window_forward": 2,
    "global_rows_forward": 2,
    "window_grad_query": 3,
    "global_rows_grad_query": 3,
    "window_grad_key_value": 4,
    "global_rows_grad_key_value": 4,
    "global_columns_grad_key_value": 4,
}


@dataclasses.dataclass(frozen=True)
class Variant:
    """One problem whose kernels are compiled; ``masks``: padding and global tokens, with rows of their own."""

    head_dim: int = 64
    dtype: torch.dtype = torch.float16
    tf32: bool = False
    masks: bool = False
    dropout: bool = False
    dilation: int = 1

    @property
    def precision(self) -> str:
        """half, tf32 or ieee: the kind of matrix products."""
        return "half" if self.dtype.itemsize == 2 else "tf32" if self.tf32 else "ieee"

    def uses_descriptors(self, target: Target) -> bool:
        """Whether the copy engine moves the window's tiles (``descriptors.py``), of tensors that it can address."""
        return target.descriptors and self.dilation == 1 and self.precision != "ieee"


def shipped_problems() -> Iterator[tuple[str, Variant]]:
    """(architecture, problem): every one that the table of configurations serves, at its own head dimensions."""
    precisions = ((torch.float16, False), (torch.float32, True), (torch.float32, False))
    for architecture, (dtype, tf32), head_dim in itertools.product(TESTED, precisions, HEAD_DIMS):
        target = Target.named(architecture)
        for dropout, masks, dilation in itertools.product((False, True), (False, True), (1, 3) if target.descriptors else (1,)):
            variant = Variant(head_dim, dtype, tf32, masks, dropout, dilation)
            refusal = target.missing(
                head_dim,
                variant.precision,
                dropout=dropout,
                padding=masks,
                has_globals=masks,
                descriptors=variant.uses_descriptors(target),
            )
            if refusal is None:
                yield architecture, variant


class _StandIn:
    """What Triton asks of a driver before it launches anything."""

    def __init__(self, name: str) -> None:
        self.name = name

    def get_current_device(self) -> str:
        return self.name

    def get_current_stream(self, device: str) -> int:  # noqa: ARG002 - Triton's signature
        return 0

    def get_current_target(self) -> GPUTarget:
        return ARCHITECTURES[self.name].target


@contextlib.contextmanager
def standing_in(architecture: str) -> Iterator[None]:
    """Let Triton compile for ``architecture``, whatever device there is."""
    before = driver._active
    driver.set_active(_StandIn(architecture))
    try:
        yield
    finally:
        driver._active = before


def launches_of(
    variant: Variant,
    architecture: str,
    trial: dict[str, Config] | None = None,
    *,
    seq_len: int = 256,
    heads: int = 2,
    num_globals: int = 4,
    device: str = "cpu",
) -> list[Launch]:
    """Every launch of a forward and a backward pass over random tensors; on the CPU they are for compiling only."""
    target = Target.named(architecture, trial)

    def states(tokens: int) -> torch.Tensor:
        return torch.randn(1, heads, tokens, variant.head_dim, dtype=variant.dtype, device=device)

    mask = torch.ones(1, seq_len, dtype=torch.bool, device=device) if variant.masks else None
    marks = torch.arange(seq_len, device=device)[None] < num_globals if variant.masks else None
    pattern = AttentionPattern.from_masks(
        mask, marks, shape=(1, seq_len), device=device, window=min(256, seq_len // 4), dilation=variant.dilation
    )
    local_qkv = (states(seq_len), states(seq_len), states(seq_len))
    global_qkv = (states(num_globals), states(seq_len), states(seq_len)) if variant.masks else None
    with float32_products(tf32=variant.tf32):
        return launches_over(local_qkv, global_qkv, pattern, target, dropout=variant.dropout)


def launches_over(
    local_qkv: QKV, global_qkv: QKV | None, pattern: AttentionPattern, target: Target, *, dropout: bool, training: bool = True
) -> list[Launch]:
    """Every launch of a forward pass and, with ``training``, of a backward pass for all gradients; none has run."""
    query = local_qkv[0]
    scale = query.shape[-1] ** -0.5
    drops = Dropout(torch.tensor(1, device=query.device), 26) if dropout else None
    out, lse = torch.zeros_like(query), query.new_zeros(query.shape[:3], dtype=accumulation_dtype(query.dtype))
    steps = [forward_steps(local_qkv, global_qkv, pattern, scale, drops, out, lse, target)]
    if training:
        grads = [torch.zeros_like(tensor) for tensor in (*local_qkv, *(global_qkv or ()))]
        given = BackwardInputs(torch.randn_like(query), None, out, lse)
        steps.append(backward_steps(given, local_qkv, global_qkv, pattern, scale, drops, [True] * 6, grads, target))
    return [step for step in itertools.chain(*steps) if isinstance(step, Launch)]


@dataclasses.dataclass(frozen=True)
class Compiled:
    """One compiled kernel. ``spill_bytes`` are what a thread moves to memory for want of registers."""

    kernel: str
    architecture: str
    config: Config
    precision: str  # half, tf32 or ieee
    tile: int  # scores that one step of the main loop computes
    registers: int
    shared_bytes: int
    spill_bytes: int
    serialized: bool
    handle: Any = dataclasses.field(repr=False, compare=False)

    @property
    def fits(self) -> bool:
        """Whether it may be shipped: no spill, matrix products not serialised, shared memory within the architecture's."""
        return (
            self.spill_bytes == 0 and not self.serialized and self.shared_bytes <= ARCHITECTURES[self.architecture].shared_bytes
        )

    @property
    def programs_at_once(self) -> int:
        """Programs that one multiprocessor holds at once."""
        columns = getattr(self.handle.metadata, "tmem_size", 0)
        about = ARCHITECTURES[self.architecture]
        return about.programs_at_once(self.registers, self.shared_bytes, self.config.num_warps, columns)

    @functools.cached_property
    def assembly(self) -> str:
        """SASS, or the AMD assembly."""
        if not ARCHITECTURES[self.architecture].is_nvidia:
            return self.handle.asm["amdgcn"]
        tool = pathlib.Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "nvdisasm"
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(self.handle.asm["cubin"])
            file.flush()
            return subprocess.run([tool, "-c", file.name], capture_output=True, text=True, check=True).stdout

    @property
    def wants_matrix_units(self) -> bool:
        """Whether the matrix units have products of this precision: NVIDIA's have none of exact float32."""
        return self.precision != "ieee" or not ARCHITECTURES[self.architecture].is_nvidia

    @property
    def uses_matrix_units(self) -> bool:
        """Whether the matrix units compute any product."""
        return any(name in self.assembly for name in MIX["matrix"])

    @functools.cached_property
    def main_loop(self) -> collections.Counter[str]:
        """How often each instruction stands in the clean loop over tiles; empty if there is none."""
        is_nvidia = ARCHITECTURES[self.architecture].is_nvidia
        return clean_loop(self.assembly, is_nvidia=is_nvidia, by_matrix_units=self.wants_matrix_units)

    @functools.cached_property
    def mix(self) -> dict[str, float]:
        """Instructions of a thread for each score of the main loop: by ``MIX`` of :mod:`assembly`, "other", and "all"."""
        threads = self.config.num_warps * ARCHITECTURES[self.architecture].target.warp_size
        counts = kinds(self.main_loop)
        numbers = {kind: counts[kind] for kind in (*MIX, "other")} | {"all": counts.total()}
        return {kind: number * threads / self.tile for kind, number in numbers.items()}


def handle_of(launch: Launch, architecture: str) -> Any:
    """What Triton's compiler makes of a launch for an architecture; what it raises is not caught."""
    with standing_in(architecture):
        return launch.kernel.warmup(**launch.arguments, grid=(1,), **launch.config.options())


def compile_launch(launch: Launch, architecture: str) -> Compiled:
    """Compile a launch for an architecture, and ask the assembler what it takes."""
    handle = handle_of(launch, architecture)
    registers, spill, serialized = _usage(handle, architecture)
    sizes = [launch.arguments[name] for name in ("BLOCK_M", "BLOCK_N", "BLOCK_G") if name in launch.arguments]
    is_half = "query_ptr" in launch.arguments and launch.arguments["query_ptr"].dtype.itemsize == 2
    return Compiled(
        launch.kernel.__name__, architecture, launch.config, "half" if is_half else launch.arguments.get("PRECISION", "ieee"),
        sizes[0] * sizes[1] if len(sizes) > 1 else 1, registers, handle.metadata.shared, spill, serialized, handle,
    )  # fmt: skip


# What Triton itself passes to the assembler, since 3.7.
_REGISTER_OPTIONS = [] if IS_3_6 else ["--regAllocOptLevel=2"]


def _usage(handle: Any, architecture: str) -> tuple[int, int, bool]:
    """(registers, bytes spilled, whether matrix products were serialised) as the assembler reports them."""
    about = ARCHITECTURES[architecture]
    if not about.is_nvidia:
        assembly = handle.asm["amdgcn"]
        # Scalar registers "spill" into lanes of vector registers; only the private segment is memory.
        registers, private = (
            int(re.search(rf"\.{name}:?\s+(\d+)", assembly)[1])  # type: ignore[index]
            for name in ("vgpr_count", "private_segment_fixed_size")
        )
        return registers, private, False
    capability = about.target.arch
    assert isinstance(capability, int)
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(handle.asm["ptx"])
        file.flush()
        name = f"sm_{capability}{'a' if capability >= 90 else ''}"
        command = [get_ptxas(capability).path, "-v", *_REGISTER_OPTIONS, f"--gpu-name={name}", file.name, "-o", "/dev/null"]
        report = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=True).stderr
    stores, loads, registers = (
        int(re.search(pattern, report)[1])  # type: ignore[index]
        for pattern in (r"(\d+) bytes spill stores", r"(\d+) bytes spill loads", r"Used (\d+) registers")
    )
    return registers, stores + loads, "serialized" in report


class Bound(NamedTuple):
    """What a main loop reaches at best: a share of the peak rate of products, and what sets it: matrix, exp or issue."""

    share: float
    by: str


def bound_of(compiled: Compiled, head_dim: int) -> Bound:
    """The bound that the main loop's instruction mix sets, by issue rates alone; NaN where there is no such loop.

    A score costs ``head_dim`` multiply-adds in each of its products, its exponentials in the special-function units, and issue
    slots for its instructions. The slowest of the three sets the pace (latencies and memory come on top). The peak is that of
    products in the kernel's precision: of the matrix units, or in exact float32 on NVIDIA's, of FFMA.
    """
    about, mix = ARCHITECTURES[compiled.architecture], compiled.mix
    if not mix["all"]:
        return Bound(math.nan, "")
    slots = mix["all"] + mix["exp2"] * (about.exponential_slots - 1)
    if not about.is_nvidia:
        # A compute unit issues to its matrix, vector, scalar and memory units side by side, from different waves.
        scalar = sum(number for name, number in compiled.main_loop.items() if not name.startswith("v_"))
        slots -= mix["matrix"] + scalar * mix["all"] / compiled.main_loop.total()
    clocks = {
        "matrix": PRODUCTS[compiled.kernel] * head_dim / about.multiply_adds[compiled.precision],
        "exp": mix["exp2"] / about.exponentials,
        "issue": slots / about.issue,
    }
    slowest = max(clocks, key=lambda name: clocks[name])
    return Bound(clocks["matrix"] / clocks[slowest], slowest)
