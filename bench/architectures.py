"""The GPU architectures that the kernels are compiled for: what a program may use, and what a multiprocessor does in a clock.

Limits are from the CUDA programming guide's tables of compute capabilities, rates from NVIDIA's architecture white papers and
the guide's table of arithmetic throughput; AMD's from the ROCm documentation of the MI300 series and the CDNA 3 ISA.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from triton.backends.compiler import GPUTarget

# Each multiprocessor (AMD: compute unit) has four schedulers, among which its warps and registers are shared out.
_SCHEDULERS = 4


@dataclasses.dataclass(frozen=True)
class Architecture:
    """A GPU architecture. Rates count the results of all threads, a clock and multiprocessor.

    Attributes:
        target: how Triton names it.
        shared_bytes: the shared memory that one program may take.
        multiply_adds: by precision, in the matrix units ("half", "tf32": with float32 sums) or in those of float32 ("ieee").
        warps: how many one multiprocessor holds at most.
        programs: the same, of programs.
        all_shared_bytes: the shared memory of a multiprocessor, of which each program takes ``reserved_bytes`` as well.
        registers: how many a scheduler has.
        exponentials: special-function results.
        issue: instructions that its schedulers issue, times the threads of each.
        exponential_slots: how many of these an exponential takes up.
    """

    target: GPUTarget
    shared_bytes: int
    multiply_adds: Mapping[str, int]
    warps: int
    programs: int
    all_shared_bytes: int
    reserved_bytes: int = 1024
    registers: int = 16_384
    exponentials: int = 16
    issue: int = 128
    exponential_slots: int = 1

    @property
    def is_nvidia(self) -> bool:
        """Whether ptxas finishes the compilation."""
        return self.target.backend == "cuda"

    def programs_at_once(self, registers: int, shared_bytes: int, num_warps: int, tensor_columns: int = 0) -> int:
        """How many programs one multiprocessor holds.

        Args:
            registers: of a thread; they are handed out by eights.
            shared_bytes: of a program.
            num_warps: of a program.
            tensor_columns: how much tensor memory a program takes, of 512 columns (fifth-generation matrix units).
        """
        by_registers = self.registers // (-(-max(registers, 1) // 8) * 8 * self.target.warp_size)
        warps = _SCHEDULERS * min(by_registers, self.warps // _SCHEDULERS)
        by_memory = self.all_shared_bytes // max(1, shared_bytes + self.reserved_bytes)
        return min(warps // num_warps, by_memory, self.programs, 512 // tensor_columns if tensor_columns else self.programs)


def _cuda(capability: int) -> GPUTarget:
    return GPUTarget("cuda", capability, 32)


# Those that the tests compile for; the others below run the configurations of one of these (``tuning.STANDS_IN``).
TESTED = ("sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "gfx942")
ARCHITECTURES = {
    "sm_80": Architecture(_cuda(80), 166_912, {"half": 1024, "tf32": 512, "ieee": 64}, 64, 32, 167_936),
    "sm_86": Architecture(_cuda(86), 101_376, {"half": 256, "tf32": 128, "ieee": 128}, 48, 16, 102_400),
    "sm_90": Architecture(_cuda(90), 232_448, {"half": 2048, "tf32": 1024, "ieee": 128}, 64, 32, 233_472),
    "sm_100": Architecture(_cuda(100), 232_448, {"half": 4096, "tf32": 2048, "ieee": 128}, 64, 32, 233_472),
    "sm_120": Architecture(_cuda(120), 101_376, {"half": 256, "tf32": 128, "ieee": 128}, 48, 24, 102_400),
    # A wave of 64 threads runs in four steps of 16, and in sixteen where it computes an exponential.
    "gfx942": Architecture(
        GPUTarget("hip", "gfx942", 64), 65_536, {"half": 1024, "tf32": 512, "ieee": 128}, 32, 32, 65_536,
        reserved_bytes=0, registers=32_768, issue=64, exponential_slots=4,
    ),
    "sm_87": Architecture(_cuda(87), 166_912, {"half": 512, "tf32": 256, "ieee": 128}, 48, 16, 167_936),
    "sm_89": Architecture(_cuda(89), 101_376, {"half": 256, "tf32": 128, "ieee": 128}, 48, 24, 102_400),
    "sm_103": Architecture(
        _cuda(103), 232_448, {"half": 4096, "tf32": 2048, "ieee": 128}, 64, 32, 233_472, exponentials=32
    ),
    "sm_121": Architecture(_cuda(121), 101_376, {"half": 256, "tf32": 128, "ieee": 128}, 48, 24, 102_400),
    "gfx950": Architecture(
        GPUTarget("hip", "gfx950", 64), 163_840, {"half": 2048, "tf32": 128, "ieee": 128}, 32, 32, 163_840,
        reserved_bytes=0, registers=32_768, issue=64, exponential_slots=4,
    ),
}  # fmt: skip
