"""The Triton kernels compiled ahead of time, for GPUs that need not be here: registers, shared memory, spills, instructions.

The launches are the ones that run (``kernels/triton_impl/launch.py``), for tensors on the CPU; only the last step differs: a
stand-in for Triton's driver names the architecture, and nothing is loaded.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import pathlib
import re
import subprocess
import tempfile
from collections.abc import Iterator
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.runtime import driver

from longformer_triton.kernels import AttentionPattern
from longformer_triton.kernels.dropout import Dropout
from longformer_triton.kernels.triton_impl.launch import backward_launches, forward_launches
from longformer_triton.kernels.triton_impl.problem import Given, Launch
from longformer_triton.kernels.triton_impl.tuning import Config, Target


@dataclasses.dataclass(frozen=True)
class Architecture:
    """A GPU architecture: how Triton names it, what a program may use, and what a multiprocessor does in a clock.

    ``half_fma`` counts fused multiply-adds of float16 or bfloat16 with float32 sums in the matrix units, a clock and
    multiprocessor; ``exponentials`` the special-function results. Both from NVIDIA's architecture white papers and the CUDA
    programming guide's table of arithmetic throughput; 0 where no bound is computed.
    """

    target: GPUTarget
    shared_bytes: int
    matrix_instruction: str
    half_fma: int = 0
    exponentials: int = 16

    @property
    def is_nvidia(self) -> bool:
        """Whether ptxas finishes the compilation."""
        return self.target.backend == "cuda"


ARCHITECTURES = {
    "sm_80": Architecture(GPUTarget("cuda", 80, 32), 166_912, "HMMA", 1024),
    "sm_86": Architecture(GPUTarget("cuda", 86, 32), 101_376, "HMMA", 256),
    "sm_90": Architecture(GPUTarget("cuda", 90, 32), 232_448, "HGMMA", 2048),
    "sm_100": Architecture(GPUTarget("cuda", 100, 32), 232_448, "UTCHMMA", 4096),
    "sm_120": Architecture(GPUTarget("cuda", 120, 32), 101_376, "HMMA", 256),
    "gfx942": Architecture(GPUTarget("hip", "gfx942", 64), 65_536, "v_mfma"),
}
_REGISTERS = 65_536
_ISSUE_SLOTS = 128  # thread instructions a clock and multiprocessor: four schedulers, one warp each


@dataclasses.dataclass(frozen=True)
class Variant:
    """One problem whose kernels are compiled; ``checks``: padding and global tokens, with rows of their own."""

    head_dim: int = 64
    dtype: torch.dtype = torch.float16
    tf32: bool = False
    checks: bool = False
    dropout: bool = False
    dilation: int = 1

    @property
    def precision(self) -> str:
        """half, tf32 or ieee: the kind of matrix products."""
        return "half" if self.dtype.itemsize == 2 else "tf32" if self.tf32 else "ieee"


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


@contextlib.contextmanager
def _float32_products(tf32: bool) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


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

    mask = torch.ones(1, seq_len, dtype=torch.bool, device=device) if variant.checks else None
    marks = torch.arange(seq_len, device=device)[None] < num_globals if variant.checks else None
    pattern = AttentionPattern.from_masks(
        mask, marks, shape=(1, seq_len), device=device, window=min(256, seq_len // 4), dilation=variant.dilation
    )
    window = (states(seq_len), states(seq_len), states(seq_len))
    rows = (states(num_globals), states(seq_len), states(seq_len)) if variant.checks else None
    dropout = Dropout(torch.tensor(1, device=device), 26) if variant.dropout else None
    out, lse = states(seq_len), torch.zeros(1, heads, seq_len, device=device)
    grads = [torch.zeros_like(tensor) for tensor in (*window, *(rows or ()))]
    given = Given(states(seq_len), None, out, lse)
    with _float32_products(variant.tf32):
        return [
            *forward_launches(window, rows, pattern, 0.125, dropout, out, lse, target),
            *backward_launches(given, window, rows, pattern, 0.125, dropout, [True] * 6, grads, target),
        ]


@dataclasses.dataclass(frozen=True)
class Compiled:
    """One compiled kernel. ``spill_bytes`` are what a thread moves to memory for want of registers."""

    kernel: str
    architecture: str
    config: Config
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
    def blocks(self) -> int:
        """Programs that one multiprocessor holds at once, by registers and shared memory."""
        threads = self.config.num_warps * ARCHITECTURES[self.architecture].target.warp_size
        by_registers = _REGISTERS // (-(-self.registers // 8) * 8 * threads)
        by_memory = ARCHITECTURES[self.architecture].shared_bytes // max(1, self.shared_bytes)
        return min(by_registers, by_memory)

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
    def exponentials(self) -> float:
        """Exponentials of all threads for each score in the main loop; 0 where the assembly is not NVIDIA's."""
        threads = self.config.num_warps * ARCHITECTURES[self.architecture].target.warp_size
        return self.main_loop["MUFU"] * threads / self.tile

    @property
    def uses_matrix_units(self) -> bool:
        """Whether NVIDIA's matrix units compute any product: in half precision or in TF32, never in exact float32."""
        return any(name in self.assembly for name in ("HMMA", "HGMMA", "UTCHMMA"))

    @functools.cached_property
    def main_loop(self) -> collections.Counter[str]:
        """How often each instruction stands in the clean loop: of those with products, the one with fewest selections."""
        matrix = ARCHITECTURES[self.architecture].matrix_instruction
        with_products = [loop for loop in _loops(self.assembly) if loop[matrix] or loop["FFMA"] > self.tile // 64]
        return min(
            with_products, key=lambda loop: loop["FSEL"] + loop["SEL"] + loop.total() / 1e6, default=collections.Counter()
        )


def _loops(sass: str) -> list[collections.Counter[str]]:
    """The instructions between each label and the last branch back to it, innermost loops only."""
    names: list[str] = []
    labels: dict[str, int] = {}
    branches: dict[int, int] = {}
    for line in sass.splitlines():
        label = re.match(r"\s*(\.L_x_\d+):", line)
        if label:
            labels[label[1]] = len(names)
        instruction = re.match(r"\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9]*)", line)
        if instruction:
            target = re.search(r"BRA\S*\s+.*`\((\.L_x_\d+)\)", line)
            if target and target[1] in labels:
                branches[labels[target[1]]] = len(names) + 1
            names.append(instruction[1])
    spans = list(branches.items())
    inner = [
        (start, end) for start, end in spans if not any(start <= s and e <= end and (s, e) != (start, end) for s, e in spans)
    ]
    return [collections.Counter(names[start:end]) for start, end in inner]


def handle_of(launch: Launch, architecture: str) -> Any:
    """What Triton's compiler makes of a launch for an architecture; what it raises is not caught."""
    with standing_in(architecture):
        return launch.kernel.warmup(**launch.arguments, grid=(1,), **launch.config.options())


def compile_launch(launch: Launch, architecture: str) -> Compiled:
    """Compile a launch for an architecture, and ask the assembler what it takes."""
    handle = handle_of(launch, architecture)
    registers, spill, serialized = _usage(handle, architecture)
    sizes = [launch.arguments[name] for name in ("BLOCK_M", "BLOCK_N", "BLOCK_G") if name in launch.arguments]
    return Compiled(
        launch.kernel.__name__, architecture, launch.config, sizes[0] * sizes[1] if len(sizes) > 1 else 1,
        registers, handle.metadata.shared, spill, serialized, handle,
    )  # fmt: skip


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
        command = [get_ptxas(capability).path, "-v", "--regAllocOptLevel=2", f"--gpu-name={name}", file.name, "-o", "/dev/null"]
        report = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=True).stderr
    stores, loads, registers = (
        int(re.search(pattern, report)[1])  # type: ignore[index]
        for pattern in (r"(\d+) bytes spill stores", r"(\d+) bytes spill loads", r"Used (\d+) registers")
    )
    return registers, stores + loads, "serialized" in report


def matrix_share(compiled: Compiled, products: int, head_dim: int) -> float:
    """The share of the matrix units' peak that the main loop's instruction mix allows, by issue rates alone; NaN if unknown.

    A score costs products * head_dim multiply-adds in the matrix units, its exponentials in the special-function units, and
    one issue slot an instruction. The slowest of the three sets the pace (a bound: latencies and memory come on top).
    """
    about, loop = ARCHITECTURES[compiled.architecture], compiled.main_loop
    if not about.half_fma or not loop:
        return float("nan")
    threads = compiled.config.num_warps * about.target.warp_size
    matrix = products * head_dim / about.half_fma
    exponentials = loop["MUFU"] * threads / compiled.tile / about.exponentials
    issue = loop.total() * threads / compiled.tile / _ISSUE_SLOTS
    return matrix / max(matrix, exponentials, issue)
