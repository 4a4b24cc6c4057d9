"""Operands as NumPy arrays, one number a thread, and the instructions that only compute (sections 9.7.1 to 9.7.9)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from longformer_triton.bench.ptx_machine.parse import Instruction, Operand, register_bits

TYPES: dict[str, Any] = {
    "pred": np.bool_,
    "b8": np.uint8, "u8": np.uint8, "s8": np.int8,
    "b16": np.uint16, "u16": np.uint16, "s16": np.int16, "f16": np.float16,
    "b32": np.uint32, "u32": np.uint32, "s32": np.int32, "f32": np.float32,
    "b64": np.uint64, "u64": np.uint64, "s64": np.int64,
}  # fmt: skip
_WORDS = {1: np.bool_, 16: np.uint16, 32: np.uint32, 64: np.uint64}

_POISON = {1: True, 16: 0x7FC0, 32: 0x7FC0_7FC0, 64: 0x7FC0_7FC0_7FC0_7FC0}


class Registers(dict[str, np.ndarray]):
    """A program's registers: one number a thread, unsigned or bool; what nobody has written is NaN, or an absurd address."""

    def __init__(self, threads: int) -> None:
        super().__init__()
        self._threads = threads

    def __missing__(self, name: str) -> np.ndarray:
        bits = register_bits(name)
        return np.full(self._threads, _POISON[bits], _WORDS[bits])


Reader = Callable[[Registers], np.ndarray]
# A function of arrays, one for each operand
Function = Callable[..., np.ndarray]
# What an instruction computes: one array for each of its destinations
Compute = Callable[[Registers], tuple[np.ndarray, ...]]


def immediate(text: str) -> int:
    """A literal as the bits it stands for."""
    if text.startswith(("0f", "0F")):
        return int(text[2:], 16)
    return int(text.rstrip("U"), 0)


def reader(operand: Operand, kind: str) -> Reader:
    """How to read an operand as ``kind``; what is narrower than its register is cut off."""
    assert isinstance(operand, str), operand
    dtype = np.dtype(TYPES[kind])
    bits = register_bits(operand)
    if bits == 0 and operand.startswith("%"):
        return lambda registers: registers[operand].view(dtype)
    if bits == 0:
        number = immediate(operand)
        if kind == "pred":
            constant = np.array(bool(number))
        else:
            constant = np.array(number % 2 ** (8 * dtype.itemsize), f"u{dtype.itemsize}").view(dtype)
        return lambda registers: constant
    if bits == 8 * dtype.itemsize or bits == 1:
        return lambda registers: registers[operand].view(dtype)
    narrow = np.dtype(f"u{dtype.itemsize}")
    return lambda registers: registers[operand].astype(narrow).view(dtype)


def as_register(name: str, value: np.ndarray, threads: int) -> np.ndarray:
    """A result in the width of its register; signed ones are extended by their sign."""
    if value.shape != (threads,):
        value = np.broadcast_to(value, (threads,)).copy()
    bits = register_bits(name)
    if bits == 1:
        return value.astype(np.bool_)
    word = np.dtype(_WORDS[bits])
    if value.dtype.itemsize == word.itemsize:
        return value.view(word)
    return (value.astype(f"i{word.itemsize}") if value.dtype.kind == "i" else value).astype(word)


def bfloat16_bits(value: np.ndarray) -> np.ndarray:
    """float32 rounded to the nearest bfloat16, ties to even, as uint16."""
    bits = value.view(np.uint32)
    rounded = (bits + (np.uint32(0x7FFF) + ((bits >> 16) & 1))) >> 16
    return np.where(np.isnan(value), np.uint32(0x7FFF), rounded).astype(np.uint16)


def from_bfloat16(bits: np.ndarray) -> np.ndarray:
    """float32 from the bits of bfloat16."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def flush(value: np.ndarray) -> np.ndarray:
    """Subnormal float32 as zero, which keeps its sign."""
    return np.where(np.abs(value) < np.finfo(np.float32).tiny, np.copysign(np.float32(0), value), value)


def _fused(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """a * b + c of float32, rounded once (the product is exact in float64; the sum rounds to 53 bits first)."""
    return (a.astype(np.float64) * b.astype(np.float64) + c.astype(np.float64)).astype(np.float32)


def _quotient(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Integer division towards zero; by zero it is unspecified, and here -1."""
    wide_a, wide_b = a.astype(np.int64), b.astype(np.int64)
    safe = np.where(wide_b == 0, 1, np.abs(wide_b))
    quotient = np.abs(wide_a) // safe * np.sign(wide_a) * np.sign(wide_b)
    return np.where(wide_b == 0, -1, quotient).astype(a.dtype)


def _shifted(left: bool) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    def shift(a: np.ndarray, amount: np.ndarray) -> np.ndarray:
        bits = 8 * a.dtype.itemsize
        step = np.minimum(amount, bits - 1).astype(a.dtype)
        moved = a << step if left else a >> step
        # By the whole width: zero, or the sign everywhere, which a shift by one less than the width leaves already.
        return np.where(amount >= bits, np.zeros_like(a), moved) if left or a.dtype.kind == "u" else moved

    return shift


def _bit_field(a: np.ndarray, position: np.ndarray, length: np.ndarray) -> np.ndarray:
    bits = 8 * a.dtype.itemsize
    position, length = position.astype(np.int64), length.astype(np.int64)
    up = np.clip(bits - position - length, 0, bits - 1).astype(a.dtype)
    down = np.clip(bits - length, 0, bits - 1).astype(a.dtype)
    return (a << up) >> down


def _permuted_bytes(a: np.ndarray, b: np.ndarray, selector: np.ndarray) -> np.ndarray:
    pool = (b.astype(np.uint64) << 32) | a
    result = np.zeros(pool.shape, np.uint32)
    for place in range(4):
        pick = ((selector >> (4 * place)) & 15).astype(np.uint64)
        byte = (pool >> (8 * (pick & 7))) & 0xFF
        byte = np.where(pick & 8, np.where(byte & 0x80, 0xFF, 0), byte)
        result |= byte.astype(np.uint32) << np.uint32(8 * place)
    return result


def _selected(a: np.ndarray, b: np.ndarray, first: np.ndarray) -> np.ndarray:
    return np.where(first, a, b)


def _wide(a: np.ndarray) -> np.ndarray:
    return a.astype(f"{a.dtype.kind}{2 * a.dtype.itemsize}")


_BINARY: dict[str, Function] = {
    "add": np.add, "sub": np.subtract, "min": np.fmin, "max": np.fmax, "and": np.bitwise_and, "or": np.bitwise_or,
    "xor": np.bitwise_xor, "shl": _shifted(True), "shr": _shifted(False), "rem": lambda a, b: a - _quotient(a, b) * b,
}  # fmt: skip
_UNARY: dict[str, Function] = {"neg": np.negative, "abs": np.abs, "not": np.invert, "mov": lambda a: a, "cvta": lambda a: a}
# Of numbers none of which is NaN; with a "u" at its end a comparison also holds where one is.
_COMPARE: dict[str, Function] = {
    "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal,
}  # fmt: skip


def _in_pairs(function: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    """A function of float32 on registers that hold two of them."""
    return lambda *words: function(*(word.view(np.float32) for word in words)).view(np.uint64)


def _elementwise(function: Callable[..., np.ndarray], kinds: list[str], sources: tuple[Operand, ...]) -> Compute:
    readers = [reader(source, kind) for source, kind in zip(sources, kinds, strict=True)]
    if len(readers) == 1:
        (only,) = readers
        return lambda registers: (function(only(registers)),)
    if len(readers) == 2:
        first, second = readers
        return lambda registers: (function(first(registers), second(registers)),)
    return lambda registers: (function(*(read(registers) for read in readers)),)


def _comparison(opcode: tuple[str, ...], sources: tuple[Operand, ...]) -> Compute:
    name, kind = opcode[1], opcode[-1]
    if name in ("nan", "num"):
        return _elementwise(lambda a, b: (np.isnan(a) | np.isnan(b)) == (name == "nan"), [kind, kind], sources)
    unordered = name.endswith("u") and name[:-1] in _COMPARE
    compare = _COMPARE[name[:-1] if unordered else name]

    def function(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        outcome = compare(a, b)
        if kind == "f32":
            missing = np.isnan(a) | np.isnan(b)
            outcome = outcome | missing if unordered else outcome & ~missing
        return outcome

    return _elementwise(function, [kind, kind], sources)


def _conversion(opcode: tuple[str, ...], sources: tuple[Operand, ...]) -> Compute:
    target, source = opcode[-2:]
    if target in ("f16x2", "bf16x2"):
        to_bits = bfloat16_bits if target == "bf16x2" else lambda value: value.astype(np.float16).view(np.uint16)

        def pack(high: np.ndarray, low: np.ndarray) -> np.ndarray:
            return (to_bits(high).astype(np.uint32) << 16) | to_bits(low)

        return _elementwise(pack, [source, source], sources)
    if target == "bf16":
        return _elementwise(bfloat16_bits, [source], sources)
    if source == "bf16":
        return _elementwise(from_bfloat16, ["b16"], sources)
    if source == "f32" and target[0] in "su":
        assert "rzi" in opcode, opcode
    return _elementwise(lambda a: a.astype(TYPES[target]), [source], sources)


def _exponential(opcode: tuple[str, ...]) -> Callable[[np.ndarray], np.ndarray]:
    return (lambda a: flush(np.exp2(flush(a)))) if "ftz" in opcode else np.exp2


def _move(instruction: Instruction) -> Compute:
    """mov, which also packs and unpacks: the first element of a vector lies lowest."""
    target, source = instruction.operands
    kind = instruction.opcode[-1]
    if isinstance(target, tuple):
        read, part = reader(source, kind), np.dtype(f"u{np.dtype(TYPES[kind]).itemsize // len(target)}")

        def unpack(registers: Registers) -> tuple[np.ndarray, ...]:
            parts = read(registers).reshape(-1, 1).view(part)
            return tuple(parts[:, place] for place in range(len(target)))

        return unpack
    if isinstance(source, tuple):
        half = {"b32": "b16", "b64": "b32"}[kind]
        readers = [reader(part, half) for part in source]

        def pack(registers: Registers) -> tuple[np.ndarray, ...]:
            parts = np.broadcast_arrays(*(read(registers) for read in readers))
            return (np.stack(parts, 1).reshape(-1).view(TYPES[kind]),)

        return pack
    return _elementwise(_UNARY["mov"], [kind], (source,))


def _mixed(name: str, kind: str, sources: tuple[Operand, ...]) -> Compute:
    """All operands but the last are of 16 bits, the last and the result of 32."""
    widen: Function = from_bfloat16 if kind == "bf16" else lambda bits: bits.view(np.float16).astype(np.float32)
    function: Function = _fused if name == "fma" else _BINARY[name]
    kinds = [*["b16"] * (len(sources) - 1), "f32"]
    return _elementwise(lambda *parts: function(*map(widen, parts[:-1]), parts[-1]), kinds, sources)


def compute_of(instruction: Instruction) -> Compute | None:
    """What an instruction computes from registers alone; None for one that does anything else."""
    opcode, sources = instruction.opcode, instruction.operands[1:]
    name, kind = opcode[0], opcode[-1]
    if kind == "f32x2":
        pairs: dict[str, Function] = {"fma": _fused, "mul": np.multiply, **_BINARY}
        function = _in_pairs(pairs[name])
        return _elementwise(function, ["b64"] * len(sources), sources)
    if len(opcode) > 2 and opcode[-2] == "f32" and kind in ("f16", "bf16") and name in ("fma", "add", "sub"):
        return _mixed(name, kind, sources)
    if name == "mov":
        return _move(instruction)
    if name == "cvt":
        return _conversion(opcode, sources)
    if name == "setp":
        return _comparison(opcode, sources)
    if name == "selp":
        return _elementwise(_selected, [kind, kind, "pred"], sources)
    if name == "ex2":
        return _elementwise(_exponential(opcode), [kind], sources)
    if name == "prmt":
        return _elementwise(_permuted_bytes, ["b32"] * 3, sources)
    if name == "bfe":
        return _elementwise(_bit_field, [kind, "u32", "u32"], sources)
    if name in ("shl", "shr"):
        return _elementwise(_BINARY[name], [kind, "u32"], sources)
    if name == "mul":
        return _product(opcode, sources)
    if name in ("mad", "fma"):
        return _product_and_sum(opcode, sources)
    if name == "div":
        return _elementwise(np.divide if kind == "f32" else _quotient, [kind, kind], sources)
    if name == "add" and kind == "s16x2":
        return _elementwise(lambda a, b: (a.view(np.uint16) + b.view(np.uint16)).view(np.uint32), ["b32"] * 2, sources)
    if name in ("min", "max") and len(sources) == 3:
        return _elementwise(lambda a, b, c: _BINARY[name](_BINARY[name](a, b), c), [kind] * 3, sources)
    if name in _BINARY:
        return _elementwise(_BINARY[name], [kind, kind], sources)
    if name in _UNARY:
        return _elementwise(_UNARY[name], [kind], sources)
    return None


def _product(opcode: tuple[str, ...], sources: tuple[Operand, ...]) -> Compute:
    kind = opcode[-1]
    if "wide" in opcode:
        return _elementwise(lambda a, b: _wide(a) * _wide(b), [kind, kind], sources)
    if "hi" in opcode:
        shift = 8 * np.dtype(TYPES[kind]).itemsize
        return _elementwise(lambda a, b: ((_wide(a) * _wide(b)) >> shift).astype(a.dtype), [kind, kind], sources)
    return _elementwise(np.multiply, [kind, kind], sources)


def _product_and_sum(opcode: tuple[str, ...], sources: tuple[Operand, ...]) -> Compute:
    kind = opcode[-1]
    if opcode[0] == "fma":
        fused = (lambda a, b, c: flush(_fused(flush(a), flush(b), flush(c)))) if "ftz" in opcode else _fused
        return _elementwise(fused, [kind] * 3, sources)
    if "wide" in opcode:
        double = f"{kind[0]}{2 * int(kind[1:])}"
        return _elementwise(lambda a, b, c: _wide(a) * _wide(b) + c, [kind, kind, double], sources)
    return _elementwise(lambda a, b, c: a * b + c, [kind] * 3, sources)
