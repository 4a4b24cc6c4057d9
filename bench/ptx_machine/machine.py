"""One program: its threads run in step, instruction by instruction."""

from __future__ import annotations

import collections
from collections.abc import Callable
from typing import Any

import numpy as np

from longformer_triton.bench.ptx_machine.matrices import matrix_step
from longformer_triton.bench.ptx_machine.memory import FaultError, GlobalMemory, SharedMemory
from longformer_triton.bench.ptx_machine.parse import Instruction, Kernel
from longformer_triton.bench.ptx_machine.tensor_memory import tensor_step
from longformer_triton.bench.ptx_machine.transfers import SHARED_BASE, TensorMap, Unfinished, transfer_step
from longformer_triton.bench.ptx_machine.values import Compute, Registers, as_register, compute_of

_LANES = 32
LIMIT = 5_000_000


class Program:
    """The state of one program (a block of threads)."""

    def __init__(
        self,
        number: int,
        warps: int,
        parameters: dict[str, int | float],
        memory: GlobalMemory,
        shared: SharedMemory,
        tensor_maps: dict[int, TensorMap] | None = None,
    ) -> None:
        self.number, self.parameters, self.memory, self.shared = number, parameters, memory, shared
        self.tensor_maps = tensor_maps or {}
        self.threads = warps * _LANES
        self.tid = np.arange(self.threads, dtype=np.uint32)
        self.warp = (self.tid // _LANES).astype(np.int16)
        self.lane = (self.tid % _LANES).astype(np.int64)
        self.registers = Registers(self.threads)
        self.registers |= {"%tid.x": self.tid, "%ctaid.x": np.full(self.threads, number, np.uint32)}
        # What was begun and may still be under way: copies and products of threads, in groups, and of the copy engine
        self.copies: list[list[Callable[[], None]]] = [[]]
        self.products: list[list[Callable[[], None]]] = [[]]
        self.barriers: dict[int, Any] = {}
        self.engine: dict[int, collections.deque[Callable[[], None]]] = collections.defaultdict(collections.deque)
        self.tensor_memory: np.ndarray | None = None
        self.tensor_work: collections.deque[tuple[Callable[[], None], int | None]] = collections.deque()

    def write(self, names: tuple[str, ...], values: tuple[np.ndarray, ...], mask: np.ndarray | None) -> None:
        """Write results to registers, in the threads of ``mask``."""
        for name, value in zip(names, values, strict=True):
            if name == "_":
                continue
            word = as_register(name, value, self.threads)
            if mask is not None:
                word = np.where(mask, word, self.registers[name])
            self.registers[name] = word


# A prepared instruction: runs in the threads of a mask, None for all
Step = Callable[[Program, "np.ndarray | None"], None]


def _computing(instruction: Instruction, compute: Compute) -> Step:
    names = instruction.names(0)

    def step(program: Program, mask: np.ndarray | None) -> None:
        program.write(names, compute(program.registers), mask)

    return step


def _parameter(instruction: Instruction, names: set[str]) -> Step | None:
    """ld.param, and what names a parameter or shared memory as such."""
    opcode = instruction.opcode
    if opcode[:2] == ("ld", "param"):
        target, place = instruction.name(0), instruction.place(1)
        kind = {"b32": np.uint32, "b64": np.uint64, "s32": np.int32, "u32": np.uint32, "u64": np.uint64}[opcode[-1]]

        def load(program: Program, mask: np.ndarray | None) -> None:
            number = program.parameters[place.base]
            bits = np.float32(number).view(np.uint32) if isinstance(number, float) else number % 2 ** (8 * kind().itemsize)
            value = np.array(bits, f"u{kind().itemsize}").view(kind)
            program.write((target,), (value,), mask)

        return load
    if opcode[0] == "mov" and instruction.operands[1] == "global_smem":
        target = instruction.name(0)
        return lambda program, mask: program.write((target,), (np.array(SHARED_BASE, np.uint32),), mask)
    if opcode[0] == "mov" and instruction.operands[1] in names:
        target, name = instruction.name(0), instruction.name(1)
        return lambda program, mask: program.write((target,), (np.array(program.parameters[name], np.uint64),), mask)
    return None


def _synchronisation(instruction: Instruction) -> Step | None:
    opcode = instruction.opcode
    if opcode[:2] == ("bar", "sync"):
        return lambda program, mask: program.shared.barrier()
    if opcode[:3] == ("fence", "proxy", "async"):
        return lambda program, mask: program.shared.fence()
    if opcode[:2] in (("wgmma", "fence"), ("fence", "mbarrier_init")):
        return lambda program, mask: None
    return None


class Code:
    """A kernel made ready to run."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        names = {name for _, name in kernel.parameters}
        self._steps = [self._prepared(instruction, names) for instruction in kernel.instructions]

    def _prepared(self, instruction: Instruction, names: set[str]) -> Step | None:
        """None for branches and returns, which :meth:`run` takes care of."""
        if instruction.opcode[0] in ("bra", "ret"):
            return None
        special = (
            _parameter(instruction, names)
            or _synchronisation(instruction)
            or transfer_step(instruction)
            or matrix_step(instruction)
            or tensor_step(instruction)
        )
        if special is not None:
            return special
        compute = compute_of(instruction)
        if compute is None:
            raise NotImplementedError(f"the machine does not know {instruction.text!r}")
        return _computing(instruction, compute)

    def run(self, program: Program) -> None:
        """Run a program to its end.

        Raises:
            FaultError: what it does is wrong; the message ends with the instruction.
        """
        threads = _Threads(program.threads, len(self._steps))
        with np.errstate(all="ignore"):
            for _ in range(LIMIT):
                if threads.ended:
                    return
                try:
                    self._one(program, threads)
                except FaultError as fault:
                    instruction = self._kernel.instructions[threads.place]
                    raise FaultError(f"program {program.number}, {instruction.text!r}: {fault}") from None
        raise FaultError(f"program {program.number} does not end")

    def _one(self, program: Program, threads: _Threads) -> None:
        """Run one instruction in the threads that have reached it."""
        instruction, step = self._kernel.instructions[threads.place], self._steps[threads.place]
        mask = threads.active
        if instruction.guard is not None:
            name, negated = instruction.guard
            guarded = program.registers[name] != negated
            mask = guarded if mask is None else guarded & mask
            if not mask.any():
                threads.go_on()
                return
            if mask.all():
                mask = None
        if step is None:
            is_return = instruction.opcode[0] == "ret"
            threads.jump(mask, len(self._steps) if is_return else self._kernel.labels[instruction.name(0)])
        elif instruction.opcode[:2] == ("bar", "sync"):
            if threads.meet():
                step(program, mask)
        else:
            try:
                step(program, mask)
            except Unfinished:
                threads.let_others_go_on()
            else:
                threads.go_on()


class _Threads:
    """Where the threads of a program are: those that are furthest behind act, the others wait where they are."""

    def __init__(self, count: int, end: int) -> None:
        self.place, self._end = 0, end
        self.active: np.ndarray | None = None  # None: all
        self._all = np.ones(count, np.bool_)
        self._waiting: dict[int, np.ndarray] = {}
        self._met: dict[int, np.ndarray] = {}
        self._stalled: dict[int, np.ndarray] = {}

    @property
    def ended(self) -> bool:
        """Whether all have returned."""
        return self.place == self._end

    def meet(self) -> bool:
        """The active threads wait at a barrier; True when they were the last, and all go on."""
        self._put(self._met, self.place + 1, self.active)
        if not np.logical_or.reduce(list(self._met.values())).all():
            if min([*self._waiting, *self._stalled], default=self._end) == self._end:
                raise FaultError("some threads wait at a barrier that the others do not reach")
            self._resume()
            return False
        self._waiting, self._met = self._met, {}
        self._resume()
        return True

    def let_others_go_on(self) -> None:
        """The active threads wait for something that other threads have yet to begin, and try again when these cannot go on."""
        if min(self._waiting, default=self._end) == self._end:
            raise FaultError("a wait that never ends")
        self._put(self._stalled, self.place, self.active)
        self._resume()

    def go_on(self) -> None:
        """The active threads go to the next instruction."""
        self._arrive(self.place + 1, self.active)

    def jump(self, taken: np.ndarray | None, target: int) -> None:
        """Of the active threads those in ``taken`` (None: all) go to ``target``, the others on."""
        if taken is None:
            self._arrive(target, None)
            return
        active = self._all if self.active is None else self.active
        self._put(self._waiting, target, taken)
        if (active & ~taken).any():
            self._put(self._waiting, self.place + 1, active & ~taken)
        self._resume()

    def _put(self, where: dict[int, np.ndarray], place: int, mask: np.ndarray | None) -> None:
        mask = self._all if mask is None else mask
        where[place] = where[place] | mask if place in where else mask

    def _arrive(self, place: int, mask: np.ndarray | None) -> None:
        if not self._waiting:
            self.place = place
            return
        self._put(self._waiting, place, mask)
        self._resume()

    def _resume(self) -> None:
        if min(self._waiting, default=self._end) == self._end:
            for place, mask in self._stalled.items():
                self._put(self._waiting, place, mask)
            self._stalled = {}
        self.place = min(self._waiting)
        mask = self._waiting.pop(self.place)
        self.active = None if mask.all() else mask
