"""Exchanges within a warp, and matrix products of warps and warp groups (sections 9.7.9.6 and 9.7.14 to 9.7.15).

W warps, 32 lanes. ``row = lane // 4`` and ``pair = lane % 4`` name a thread's place in a fragment, as the ISA's figures do.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from longformer_triton.bench.ptx_machine.parse import Instruction
from longformer_triton.bench.ptx_machine.transfers import SHARED_BASE, shared_address, swizzled
from longformer_triton.bench.ptx_machine.values import from_bfloat16, immediate, reader

if TYPE_CHECKING:
    from longformer_triton.bench.ptx_machine.machine import Program

_GROUP = 4  # warps of a warp group


def _by_warp(values: np.ndarray) -> np.ndarray:
    return values.reshape(-1, 32, *values.shape[1:])


def numbers(bits: np.ndarray, kind: str) -> np.ndarray:
    """Matrix elements as float32, exactly; tf32 products do not look at the last 13 bits."""
    if kind == "f16":
        return bits.view(np.float16).astype(np.float32)
    if kind == "bf16":
        return from_bfloat16(bits)
    return (bits & np.uint32(0xFFFFE000)).view(np.float32)


def _registers(program: Program, names: tuple[str, ...], element_bytes: int) -> np.ndarray:
    """(W, 32, registers * elements of one): a thread's fragment, elements in order."""
    words = np.stack([program.registers[name] for name in names], 1)
    return _by_warp(words.view(f"u{element_bytes}"))


def _a_fragment(fragment: np.ndarray, element_bytes: int) -> np.ndarray:
    """(W, 16, K) from (W, 32, elements): the four registers are rows r and r + 8, then these again, half of K further on."""
    per = 4 // element_bytes
    # [W, row, pair, half of K, half of rows, element]
    parts = fragment.reshape(-1, 8, 4, 2, 2, per)
    return parts.transpose(0, 4, 1, 3, 2, 5).reshape(-1, 16, 8 * per)


def _b_fragment(fragment: np.ndarray, element_bytes: int) -> np.ndarray:
    """(W, K, 8) from (W, 32, elements): lanes of one row hold one column of B."""
    per = 4 // element_bytes
    # [W, column, pair, half of K, element]
    parts = fragment.reshape(-1, 8, 4, 2, per)
    return parts.transpose(0, 3, 2, 4, 1).reshape(-1, 8 * per, 8)


def _sums(fragment: np.ndarray) -> np.ndarray:
    """(W, 16, N) from (W, 32, N / 2): eight columns after the other, two neighbours in rows r and r + 8."""
    # [W, row, pair, eight columns, half of rows, element]
    parts = fragment.reshape(len(fragment), 8, 4, -1, 2, 2)
    return parts.transpose(0, 4, 1, 3, 2, 5).reshape(len(fragment), 16, -1)


def _sums_fragment(matrix: np.ndarray) -> np.ndarray:
    """The inverse of ``_sums``, (threads, N / 2)."""
    parts = matrix.reshape(len(matrix), 2, 8, -1, 4, 2)
    return parts.transpose(0, 2, 4, 3, 1, 5).reshape(32 * len(matrix), -1)


def _element_bytes(kind: str) -> int:
    return 4 if kind == "tf32" else 2


def _warp_product(instruction: Instruction) -> Any:
    """mma.sync: D = A B + C, A (16, K) by rows and B (K, 8) by columns, sums in float32."""
    target, left, right, addend = (instruction.names(number) for number in range(4))
    kind = instruction.opcode[-3]
    size = _element_bytes(kind)
    assert instruction.opcode[-4:] == ("f32", kind, kind, "f32"), instruction.text

    def step(program: Program, mask: np.ndarray | None) -> None:
        a = numbers(_a_fragment(_registers(program, left, size), size), kind)
        b = numbers(_b_fragment(_registers(program, right, size), size), kind)
        c = _sums(_registers(program, addend, 4).view(np.float32))
        fragment = _sums_fragment(a @ b + c)
        program.write(target, tuple(fragment.T.copy()), mask)

    return step


def tile_places(descriptor: int, rows: int, columns: int, size: int, *, transposed: bool) -> np.ndarray:
    """(rows, columns) addresses of a matrix that a descriptor describes: columns are those of K, unless ``transposed``.

    Section 9.7.15.5.1: start, leading and stride byte offsets in units of 16 bytes; the swizzle's pattern is 8 rows of 128, 64
    or 32 bytes, or 8 rows of 16.
    """
    start, leading, stride = ((descriptor >> shift & 0x3FFF) << 4 for shift in (0, 16, 32))
    mode = {0: 0, 1: 3, 2: 2, 3: 1}[descriptor >> 62]
    width = 16 << mode
    row, byte = np.arange(rows)[:, None], (np.arange(columns) * size)[None, :]
    if transposed:
        row, byte = np.arange(columns)[None, :], (np.arange(rows) * size)[:, None]
    within = row % 8 * width + byte % width
    if transposed or mode == 0:
        return swizzled(start + within + row // 8 * stride + byte // width * leading, mode)
    return swizzled(start + within + row // 8 * stride, mode)


def _group_product(instruction: Instruction) -> Any:
    """wgmma.mma_async: D = A B (+ D), A (64, K) from registers or shared memory, B (K, N) from shared memory.

    It happens when its group is waited for, as late as it may; until then nobody may touch its operands.
    """
    shape = re.match(r"m64n(\d+)k(\d+)", instruction.opcode[4])
    assert shape is not None, instruction.text
    columns, depth = int(shape[1]), int(shape[2])
    target, left = instruction.names(0), instruction.names(1)
    keeps, scale_a, scale_b, *layouts = instruction.operands[3:]
    kind = instruction.opcode[-1]
    size = _element_bytes(kind)
    assert (instruction.opcode[-3], scale_a, scale_b) == ("f32", "1", "1"), instruction.text
    from_registers = len(left) > 1
    transposed_a = not from_registers and bool(layouts) and layouts[0] == "1"
    transposed_b = bool(layouts) and layouts[-1] == "1"
    keep = reader(keeps, "pred")

    def matrix(program: Program, place: int, rows: int, transposed: bool, group: int) -> Callable[[], np.ndarray]:
        """Issue a read of (rows, K) for a warp group, and return what ends it."""
        places = tile_places(place, rows, depth, size, transposed=transposed) - SHARED_BASE
        program.shared.begin_product(places, size)
        return lambda: program.shared.end_product(places, size, np.arange(_GROUP * group, _GROUP * (group + 1)))

    def finish(program: Program, a: list[np.ndarray], b: list[np.ndarray], keeps: list[bool]) -> None:
        products = [numbers(bits, kind) @ numbers(other, kind).T for bits, other in zip(a, b, strict=True)]
        if any(keeps):
            before = _sums(_registers(program, target, 4).view(np.float32)).reshape(-1, 64, columns)
            products = [
                product + sums if keeping else product for product, sums, keeping in zip(products, before, keeps, strict=True)
            ]
        fragment = _sums_fragment(np.stack(products).reshape(-1, 16, columns))
        program.write(target, tuple(fragment.T.copy()), None)

    def step(program: Program, mask: np.ndarray | None) -> None:
        assert mask is None, "a warp group acts as one"
        leaders = slice(None, None, 32 * _GROUP)
        keeps = [bool(keeping) for keeping in np.broadcast_to(keep(program.registers), program.threads)[leaders]]

        def issue(name: str, rows: int, transposed: bool) -> list[Callable[[], np.ndarray]]:
            # Descriptors are read when the product is issued, fragments until it has ended.
            return [
                matrix(program, int(place), rows, transposed, group)
                for group, place in enumerate(program.registers[name][leaders])
            ]

        lefts = None if from_registers else issue(left[0], 64, transposed_a)
        rights = issue(instruction.name(2), columns, transposed_b)  # B is described as (N, K)

        def end() -> None:
            if lefts is None:
                a = list(_a_fragment(_registers(program, left, size), size).reshape(-1, 64, depth))
            else:
                a = [read() for read in lefts]
            finish(program, a, [read() for read in rights], keeps)

        program.products[-1].append(end)

    return step


def _load_matrix(instruction: Instruction) -> Any:
    """ldmatrix: 8 x 8 matrices of 16 bits, whose rows the lanes point to, eight lanes a matrix."""
    names = instruction.names(0)
    count, is_transposed = len(names), "trans" in instruction.opcode
    address = shared_address(instruction.place(1))

    def step(program: Program, mask: np.ndarray | None) -> None:
        pointing = program.lane < 8 * count
        words = program.shared.load(address(program)[pointing], 4, 4, program.warp[pointing])
        halves = words.view(np.uint16).reshape(-1, count, 8, 8)  # [W, matrix, row, column]
        if is_transposed:
            halves = halves.transpose(0, 1, 3, 2)
        words = np.ascontiguousarray(halves).view(np.uint32)  # [W, matrix, row, pair]
        program.write(names, tuple(words[:, matrix].reshape(-1) for matrix in range(count)), mask)

    return step


def _store_matrix(instruction: Instruction) -> Any:
    """stmatrix, the inverse of ldmatrix."""
    names = instruction.names(1)
    count, is_transposed = len(names), "trans" in instruction.opcode
    address = shared_address(instruction.place(0))

    def step(program: Program, mask: np.ndarray | None) -> None:
        words = np.stack([program.registers[name].reshape(-1, 8, 4) for name in names], 1)  # [W, matrix, row, pair]
        if is_transposed:
            words = np.ascontiguousarray(words.view(np.uint16).transpose(0, 1, 3, 2)).view(np.uint32)
        pointing = program.lane < 8 * count
        program.shared.store(address(program)[pointing], words.reshape(-1, 4), program.warp[pointing])

    return step


def _shuffle(instruction: Instruction) -> Any:
    """shfl.sync.bfly and .idx within whole warps."""
    target = instruction.name(0)
    read, read_other = reader(instruction.operands[1], "b32"), reader(instruction.operands[2], "u32")
    choices: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
        "bfly": np.bitwise_xor, "idx": lambda lane, index: index,
    }  # fmt: skip
    choose = choices[instruction.opcode[2]]
    assert immediate(instruction.name(3)) == 31, instruction.text

    def step(program: Program, mask: np.ndarray | None) -> None:
        values = np.broadcast_to(read(program.registers), program.threads)
        lane = choose(program.lane, read_other(program.registers).astype(np.int64)) & 31
        program.write((target,), (values[program.tid - program.lane + lane],), mask)

    return step


def _reduction(instruction: Instruction) -> Any:
    """redux.sync over a warp."""
    target, kind = instruction.name(0), instruction.opcode[-1]
    combinations: dict[str, Callable[..., np.ndarray]] = {"add": np.sum, "min": np.min, "max": np.max}
    combine = combinations[instruction.opcode[2]]
    read = reader(instruction.operands[1], kind)

    def step(program: Program, mask: np.ndarray | None) -> None:
        values = _by_warp(read(program.registers))
        program.write((target,), (np.repeat(combine(values, axis=1).astype(values.dtype), 32),), mask)

    return step


def _election(instruction: Instruction) -> Any:
    """elect.sync: the first lane of each warp."""
    names = instruction.names(0)

    def step(program: Program, mask: np.ndarray | None) -> None:
        program.write(names, (np.zeros(1, np.uint32), program.lane == 0), mask)

    return step


def matrix_step(instruction: Instruction) -> Any:
    """The step of an instruction of this file; None for any other."""
    makers = {
        "mma": _warp_product, "ldmatrix": _load_matrix, "stmatrix": _store_matrix, "shfl": _shuffle, "redux": _reduction,
        "elect": _election,
    }  # fmt: skip
    if instruction.opcode[:2] == ("wgmma", "mma_async"):
        return _group_product(instruction)
    maker = makers.get(instruction.opcode[0])
    return maker(instruction) if maker else None
