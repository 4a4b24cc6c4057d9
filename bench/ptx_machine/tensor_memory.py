"""The fifth generation of tensor cores, sm_100: products that one thread issues, with sums in tensor memory (section 9.7.16).

Tensor memory has 128 lanes of 512 columns of 32 bits. Products happen in order, as late as a wait for their barrier lets them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from longformer_triton.bench.ptx_machine.matrices import numbers, tile_places
from longformer_triton.bench.ptx_machine.memory import FaultError
from longformer_triton.bench.ptx_machine.parse import Address, Instruction
from longformer_triton.bench.ptx_machine.transfers import SHARED_BASE, shared_address
from longformer_triton.bench.ptx_machine.values import immediate, reader

if TYPE_CHECKING:
    from longformer_triton.bench.ptx_machine.machine import Program

LANES, COLUMNS = 128, 512


def _taddr(place: Address) -> Any:
    name, offset = place.base, place.offset
    return lambda program: program.registers[name].astype(np.int64) + offset


def _allocate(instruction: Instruction) -> Any:
    place, columns = shared_address(instruction.place(0)), int(instruction.name(1))

    def step(program: Program, mask: np.ndarray | None) -> None:
        if program.tensor_memory is not None or columns > COLUMNS:
            raise FaultError("tensor memory is taken already, or less than wanted")
        program.tensor_memory = np.full((LANES, columns), 0x7FC0_7FC0, np.uint32)
        first = np.flatnonzero(mask)[:1] if mask is not None else np.zeros(1, np.int64)
        program.shared.store(place(program)[first], np.zeros((1, 1), np.uint32), program.warp[first])

    return step


def _memory(program: Program) -> np.ndarray:
    if program.tensor_memory is None:
        raise FaultError("tensor memory is touched that was not allocated")
    return program.tensor_memory


def _cells(program: Program, place: Address, instruction: Instruction, split: int) -> tuple[np.ndarray, np.ndarray]:
    """(lanes, columns) of each thread's registers, (threads, count).

    32x32b: a warp's threads have a lane each. 16x32bx2: threads 0 to 15 have 16 lanes, threads 16 to 31 the same lanes
    ``split`` columns on.
    """
    shape, repeat = instruction.opcode[4:6]
    start = _taddr(place)(program)
    lane, column = start >> 16, start & 0xFFFF
    if ((lane // 32) != program.warp % 4).any():
        raise FaultError("a warp touches the tensor memory of another")
    own = program.lane if shape == "32x32b" else program.lane % 16
    shift = 0 if shape == "32x32b" else program.lane // 16 * split
    return (lane + own)[:, None], (column + shift)[:, None] + np.arange(int(repeat[1:]))


def _move(instruction: Instruction) -> Any:
    """tcgen05.ld and .st."""
    place = next(operand for operand in instruction.operands if isinstance(operand, Address))
    names = next(operand for operand in instruction.operands if isinstance(operand, tuple))
    numbers_given = [operand for operand in instruction.operands if isinstance(operand, str)]
    split = immediate(numbers_given[0]) if numbers_given else 0

    def load(program: Program, mask: np.ndarray | None) -> None:
        lanes, columns = _cells(program, place, instruction, split)
        program.write(names, tuple(_memory(program)[lanes, columns].T.copy()), mask)

    def store(program: Program, mask: np.ndarray | None) -> None:
        lanes, columns = _cells(program, place, instruction, split)
        words = np.stack([program.registers[name] for name in names], 1)
        active = slice(None) if mask is None else mask
        _memory(program)[lanes[active], columns[active]] = words[active]

    return load if instruction.opcode[1] == "ld" else store


def _cells_of(address: int, rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """(lanes, columns) of a matrix; 64 rows are spread over all four parts of tensor memory, 16 lanes in each."""
    row = np.arange(rows)
    lanes = row if rows == LANES else row // 16 * 32 + row % 16
    return (lanes + (address >> 16))[:, None], (address & 0xFFFF) + np.arange(columns)[None, :]


def _product(instruction: Instruction) -> Any:
    """tcgen05.mma: D (M, N) in tensor memory = A B (+ D), A there too or in shared memory, B in shared memory."""
    kind = instruction.opcode[3]
    target, left, right, about, keeps = instruction.place(0), instruction.operands[1], *map(instruction.name, (2, 3, 4))
    size = {"kind::f16": 2, "kind::tf32": 4}[kind]
    depth = 32 // size
    keep = reader(keeps, "pred")

    def step(program: Program, mask: np.ndarray | None) -> None:
        (thread,) = np.flatnonzero(np.ones(program.threads, np.bool_) if mask is None else mask)

        def one(values: np.ndarray) -> int:
            return int(np.broadcast_to(values, program.threads)[thread])

        description = one(program.registers[about])
        formats = {2: {0: "f16", 1: "bf16"}, 4: {2: "tf32"}}[size]
        name = formats[description >> 7 & 7]
        rows, columns = (description >> 24 & 31) * 16, (description >> 17 & 63) * 8
        trans_a, trans_b = bool(description >> 15 & 1), bool(description >> 16 & 1)
        if description >> 4 & 3 != 1 or description >> 10 & 7 != description >> 7 & 7 or description >> 13 & 3:
            raise NotImplementedError(f"a product described by {description:#x}")
        sums_at = one(_taddr(target)(program))
        a_at = one(_taddr(left)(program) if isinstance(left, Address) else program.registers[instruction.name(1)])
        b_at, keeping = one(program.registers[right]), bool(one(keep(program.registers)))

        def matrix(place: int, height: int, *, transposed: bool) -> Callable[[], np.ndarray]:
            places = tile_places(place, height, depth, size, transposed=transposed) - SHARED_BASE
            program.shared.begin_product(places, size)
            return lambda: program.shared.end_product(places, size, np.zeros(0, np.int64))

        read_a = None if isinstance(left, Address) else matrix(a_at, rows, transposed=trans_a)
        read_b = matrix(b_at, columns, transposed=trans_b)

        def finish() -> None:
            memory = _memory(program)
            a = np.ascontiguousarray(memory[_cells_of(a_at, rows, 8)]).view(f"u{size}") if read_a is None else read_a()
            product = numbers(a, name) @ numbers(read_b(), name).T
            cells = _cells_of(sums_at, rows, columns)
            if keeping:
                product = product + memory[cells].view(np.float32)
            memory[cells] = product.view(np.uint32)

        program.tensor_work.append((finish, None))

    return step


def _commit(instruction: Instruction) -> Any:
    """tcgen05.commit: a barrier is arrived at when all products so far have ended."""
    place = shared_address(instruction.place(0))

    def step(program: Program, mask: np.ndarray | None) -> None:
        (thread,) = np.flatnonzero(np.ones(program.threads, np.bool_) if mask is None else mask)
        barrier = int(place(program)[thread])

        def arrive() -> None:
            program.barriers[barrier].pending -= 1
            program.barriers[barrier].settle()

        program.tensor_work.append((arrive, barrier))

    return step


def tensor_step(instruction: Instruction) -> Any:
    """The step of an instruction of this file; None for any other."""
    opcode = instruction.opcode
    if opcode[0] != "tcgen05":
        return None
    if opcode[1] in ("wait::ld", "wait::st", "relinquish_alloc_permit", "dealloc"):
        return lambda program, mask: None
    makers = {"alloc": _allocate, "ld": _move, "st": _move, "mma": _product, "commit": _commit}
    return makers[opcode[1]](instruction) if opcode[1] in makers else None
