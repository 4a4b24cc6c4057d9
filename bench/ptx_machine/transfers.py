"""Loads and stores, asynchronous copies by threads and by the copy engine, and their barriers (sections 9.7.9 and 9.7.13)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from longformer_triton.bench.ptx_machine.memory import FaultError
from longformer_triton.bench.ptx_machine.parse import Address, Instruction
from longformer_triton.bench.ptx_machine.values import TYPES, reader

if TYPE_CHECKING:
    from longformer_triton.bench.ptx_machine.machine import Program

# Shared memory begins here: not at 0, where a null pointer would find it.
SHARED_BASE = 1024


class Unfinished(Exception):  # noqa: N818 - a signal, no error
    """What a thread waits for has not begun, or never will."""


@dataclasses.dataclass(frozen=True)
class TensorMap:
    """A tensor in tiles, as the copy engine knows it; outermost axis first, as PyTorch and Triton count."""

    base: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]  # in elements
    box: tuple[int, ...]
    element_size: int
    swizzle: int  # 0: none; 1, 2, 3: rows of 32, 64, 128 bytes

    def offsets(self, corner: list[int]) -> np.ndarray:
        """Offsets in elements of the box that begins at ``corner``, -1 where it leaves the tensor."""
        inside, offsets = np.ones(self.box, np.bool_), np.zeros(self.box, np.int64)
        for axis, (start, size, length, stride) in enumerate(zip(corner, self.box, self.shape, self.strides, strict=True)):
            index = (start + np.arange(size)).reshape([-1 if other == axis else 1 for other in range(len(self.box))])
            inside &= (index >= 0) & (index < length)
            offsets = offsets + index * stride
        return np.where(inside, offsets, -1)


@dataclasses.dataclass
class Barrier:
    """An mbarrier: a phase ends when all have arrived and all announced bytes have come."""

    count: int
    pending: int
    bytes_missing: int = 0
    phase: int = 0

    def settle(self) -> None:
        """End the phase if nothing is missing."""
        if self.pending == 0 and self.bytes_missing == 0:
            self.phase += 1
            self.pending = self.count


def swizzled(places: np.ndarray, swizzle: int) -> np.ndarray:
    """Addresses in shared memory after the swizzle that spreads rows over the banks: bits 4 to 6 change by bits 7 to 9."""
    mask = (0, 1, 3, 7)[swizzle]
    return places ^ (((places >> 7) & mask) << 4)


def _address(place: Address) -> Callable[[Program], np.ndarray]:
    name, offset = place.base, place.offset
    if name == "global_smem":
        return lambda program: np.full(program.threads, SHARED_BASE + offset, np.int64)
    return lambda program: program.registers[name].astype(np.int64) + offset


def shared_address(place: Address) -> Callable[[Program], np.ndarray]:
    """Where in shared memory each thread points to, from its beginning."""
    absolute = _address(place)
    return lambda program: absolute(program) - SHARED_BASE


def _load(instruction: Instruction) -> Any:
    space, kind = instruction.opcode[1], instruction.opcode[-1]
    names, size = instruction.names(0), np.dtype(TYPES[kind]).itemsize
    absolute = _address(instruction.place(1))

    def step(program: Program, mask: np.ndarray | None) -> None:
        active = np.ones(program.threads, np.bool_) if mask is None else mask
        places = absolute(program)[active]
        if space == "global":
            words = program.memory.load(places, size, len(names), program.number)
        else:
            words = program.shared.load(places - SHARED_BASE, size, len(names), program.warp[active])
        columns = []
        for column in range(len(names)):
            full = np.zeros(program.threads, words.dtype)
            full[active] = words[:, column]
            columns.append(full.view(TYPES[kind]))
        program.write(names, tuple(columns), mask)

    return step


def _store(instruction: Instruction) -> Any:
    space, kind = instruction.opcode[1], instruction.opcode[-1]
    readers = [reader(part, kind) for part in instruction.names(1)]
    unsigned = f"u{np.dtype(TYPES[kind]).itemsize}"
    absolute = _address(instruction.place(0))

    def step(program: Program, mask: np.ndarray | None) -> None:
        active = np.ones(program.threads, np.bool_) if mask is None else mask
        columns = [np.broadcast_to(read(program.registers), program.threads).view(unsigned) for read in readers]
        words = np.stack(columns, 1)[active]
        places = absolute(program)[active]
        if space == "global":
            program.memory.store(places, words, program.number)
        else:
            program.shared.store(places - SHARED_BASE, words, program.warp[active])

    return step


def _copy(instruction: Instruction) -> Any:
    """cp.async: bytes arrive when their group is waited for, and zeros behind the first ``source size``."""
    size, limit = int(instruction.name(2), 0), instruction.operands[3:]
    to, origin = shared_address(instruction.place(0)), _address(instruction.place(1))
    limited = reader(limit[0], "u32") if limit else None

    def step(program: Program, mask: np.ndarray | None) -> None:
        active = np.ones(program.threads, np.bool_) if mask is None else mask
        places, addresses, warps = to(program)[active], origin(program)[active], program.warp[active]
        given = np.full(len(places), size)
        if limited is not None:
            given = np.broadcast_to(limited(program.registers), program.threads)[active].astype(np.int64)
        spread = places[:, None] + np.arange(size)
        program.shared.begin_copy(spread, warps)

        def arrive() -> None:
            words = np.zeros((len(places), size), np.uint8)
            for length in np.unique(given[given > 0]):
                rows = given == length
                words[rows, :length] = program.memory.load_bytes(addresses[rows], int(length), size)
            program.shared.end_copy(spread, words, by_threads=True)

        program.copies[-1].append(arrive)

    return step


def _wait_for(groups: list[list[Callable[[], None]]], pending: int) -> None:
    """Finish all groups but the last ``pending`` that were committed; the last list is what is not committed yet."""
    while len(groups) - 1 > pending:
        for finish in groups.pop(0):
            finish()


def _group_step(instruction: Instruction) -> Any:
    """commit_group and wait_group of copies and of products."""
    opcode = instruction.opcode
    queue = "products" if opcode[0] == "wgmma" else "copies"
    if "commit_group" in opcode:
        return lambda program, mask: getattr(program, queue).append([])
    pending = int(instruction.name(0))
    return lambda program, mask: _wait_for(getattr(program, queue), pending)


def _bulk_copy(instruction: Instruction) -> Any:
    """cp.async.bulk.tensor: the copy engine moves a box, zeros where it leaves the tensor, when its barrier is waited for."""
    to, barrier_at = shared_address(instruction.place(0)), shared_address(instruction.place(2))
    base, coordinates = instruction.place(1).base, instruction.place(1).coordinates

    def begin(program: Program, thread: int, place: int, barrier: int) -> None:
        tensor = program.tensor_maps[int(program.registers[base][thread])]
        corner = [int(program.registers[name].view(np.int32)[thread]) for name in reversed(coordinates)]
        size, rows = tensor.element_size, tensor.box[-1]
        if tensor.swizzle and (place % (128 << tensor.swizzle) or rows * size > 16 << tensor.swizzle):
            raise FaultError("a swizzled box begins at no multiple of its pattern, or has rows wider than it")
        offsets = tensor.offsets(corner)
        # [elements, bytes of one]; rows lie one after the other
        spread = swizzled(place + np.arange(offsets.size * size, dtype=np.int64), tensor.swizzle).reshape(-1, size)
        program.shared.begin_copy(spread, np.full(len(spread), program.warp[thread]))

        def arrive() -> None:
            words = program.memory.box(tensor.base, offsets, size)
            program.shared.end_copy(spread, words.reshape(-1, 1).view(np.uint8), by_threads=False)
            program.barriers[barrier].bytes_missing -= words.size * size
            program.barriers[barrier].settle()

        program.engine[barrier].append(arrive)

    def step(program: Program, mask: np.ndarray | None) -> None:
        places, barriers = to(program), barrier_at(program)
        for thread in np.flatnonzero(np.ones(program.threads, np.bool_) if mask is None else mask):
            begin(program, int(thread), int(places[thread]), int(barriers[thread]))

    return step


def _barrier_step(instruction: Instruction) -> Any:
    """mbarrier: init, inval, arrive.expect_tx, and try_wait.parity, at which a wait that cannot end is found out."""
    opcode, operands = instruction.opcode, instruction.operands
    place = shared_address(next(operand for operand in operands if isinstance(operand, Address)))

    def where(program: Program, mask: np.ndarray | None) -> int:
        places = place(program)[slice(None) if mask is None else mask]
        if (places != places[0]).any():
            raise FaultError("threads name different barriers")
        return int(places[0])

    def init(program: Program, mask: np.ndarray | None) -> None:
        count = int(instruction.name(1))
        program.barriers[where(program, mask)] = Barrier(count, count)

    def expect(program: Program, mask: np.ndarray | None) -> None:
        barrier = program.barriers[where(program, mask)]
        barrier.bytes_missing += int(instruction.name(2))
        barrier.pending -= 1 if mask is None else int(mask.sum())
        barrier.settle()

    def invalidate(program: Program, mask: np.ndarray | None) -> None:
        number = where(program, mask)
        if program.engine[number] or any(arrival == number for _, arrival in program.tensor_work):
            raise FaultError("a barrier is taken down while something is under way that arrives at it")
        del program.barriers[number]

    def wait(program: Program, mask: np.ndarray | None) -> None:
        number = where(program, mask)
        barrier, copies = program.barriers[number], program.engine[number]
        parity = int(reader(operands[2], "u32")(program.registers).reshape(-1)[0])
        while barrier.phase % 2 == parity and (copies or program.tensor_work):
            # Products end in the order in which they were issued.
            finish = copies.popleft() if copies else program.tensor_work.popleft()[0]
            finish()
        if barrier.phase % 2 == parity:
            raise Unfinished
        program.write((instruction.name(0),), (np.array(True),), mask)

    return {"init": init, "inval": invalidate, "arrive": expect, "try_wait": wait}[opcode[1]]


def transfer_step(instruction: Instruction) -> Any:
    """The step of an instruction of this file; None for any other."""
    opcode = instruction.opcode
    if opcode[0] == "ld" and opcode[1] in ("global", "shared"):
        return _load(instruction)
    if opcode[0] == "st" and opcode[1] in ("global", "shared"):
        return _store(instruction)
    if opcode[0] == "mbarrier":
        return _barrier_step(instruction)
    if "commit_group" in opcode or "wait_group" in opcode:
        return _group_step(instruction)
    if opcode[:4] == ("cp", "async", "bulk", "tensor"):
        return _bulk_copy(instruction)
    if opcode[:2] == ("cp", "async"):
        return _copy(instruction)
    return None
