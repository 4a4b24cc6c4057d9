"""PTX text as a list of instructions."""

from __future__ import annotations

import dataclasses
import re

_PARAMETER = re.compile(r"\.param\s+(?:\.align\s+\d+\s+)?\.(\w+)\s+(?:\.ptr\s+\.global\s+\.align\s+\d+\s+)?(\w+)(?:\[(\d+)\])?")
_STATEMENT = re.compile(r"(?:@(!?)([%\w]+)\s+)?([a-z][\w.:]*)\s*(.*)$", re.DOTALL)
_REGISTER = re.compile(r"%(p|rs|rd|r)(\d+$|@)")


@dataclasses.dataclass(frozen=True)
class Address:
    """``[base + offset]``, and the coordinates of a tensor map, ``[base, {c0, c1, ...}]``."""

    base: str
    offset: int = 0
    coordinates: tuple[str, ...] = ()


# A register, a special register, a number, a symbol; a vector of these; a pair a|b of destinations; a place in memory
Operand = str | tuple[str, ...] | Address


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One statement; ``guard`` is (register, whether negated)."""

    text: str
    guard: tuple[str, bool] | None
    opcode: tuple[str, ...]
    operands: tuple[Operand, ...]

    def name(self, number: int) -> str:
        """An operand that is a register, a number or a symbol."""
        operand = self.operands[number]
        assert isinstance(operand, str), self.text
        return operand

    def names(self, number: int) -> tuple[str, ...]:
        """An operand that is a vector; one that is a register alone is a vector of one."""
        operand = self.operands[number]
        assert not isinstance(operand, Address), self.text
        return (operand,) if isinstance(operand, str) else operand

    def place(self, number: int) -> Address:
        """An operand that is a place in memory."""
        operand = self.operands[number]
        assert isinstance(operand, Address), self.text
        return operand


@dataclasses.dataclass(frozen=True)
class Kernel:
    """A parsed entry: parameters as (type, name) in order, instructions, and where each label stands."""

    parameters: list[tuple[str, str]]
    instructions: list[Instruction]
    labels: dict[str, int]


def _split(text: str) -> list[str]:
    """Operands, at the commas that lie in no bracket."""
    parts, depth, part = [], 0, ""
    for letter in text:
        depth += (letter in "[{") - (letter in "]}")
        if letter == "," and depth == 0:
            parts.append(part.strip())
            part = ""
        else:
            part += letter
    return [*parts, part.strip()] if part.strip() else parts


def _operand(text: str, local: dict[str, str]) -> Operand:
    def name(word: str) -> str:
        return local.get(word.strip(), word.strip())

    if text.startswith("["):
        base, *rest = _split(text[1:-1])
        register, _, offset = base.partition("+")
        coordinates = tuple(name(part) for part in rest[0].strip("{} ").split(",")) if rest else ()
        return Address(register.strip(), int(offset or 0), coordinates)
    if text.startswith("{"):
        return tuple(name(part) for part in text.strip("{} ").split(","))
    if "|" in text:
        return tuple(name(part) for part in text.split("|"))
    return name(text)


def _label(name: str, scope: int) -> str:
    """The compiler's own labels are unique; others belong to their scope."""
    return name if name.startswith("$") else f"{name}@{scope}"


def _instruction(statement: str, local: dict[str, str], scope: int) -> Instruction:
    matched = _STATEMENT.match(statement)
    if matched is None:
        raise ValueError(f"cannot read {statement!r}")
    negated, guard, opcode, rest = matched.groups()
    condition = None if guard is None else (local.get(guard, guard), negated == "!")
    operands = tuple(_operand(part, local) for part in _split(rest))
    if opcode.startswith("bra"):
        operands = (_label(rest.strip(), scope),)
    return Instruction(" ".join(statement.split()), condition, tuple(opcode.split(".")), operands)


def _body(text: str) -> str:
    """What stands between the first brace and the one that closes it."""
    depth, begin = 0, text.index("{")
    for place in range(begin, len(text)):
        depth += (text[place] == "{") - (text[place] == "}")
        if depth == 0:
            return text[begin + 1 : place]
    raise ValueError("the text ends before the entry does")


def parse(text: str) -> Kernel:
    """The one entry of a module that Triton emitted."""
    parameters = [(kind if size is None or not size else "bytes", name) for kind, name, size in _PARAMETER.findall(text)]
    body = _body(re.sub(r"//.*|^\s*\.(?:loc|pragma)\s.*", "", text[text.index(".entry") :], flags=re.MULTILINE))
    instructions: list[Instruction] = []
    labels: dict[str, int] = {}
    scopes = 0
    local: dict[str, str] = {}  # names that a scope declares, and what they are called outside of it
    # Statements end at semicolons; a brace that begins a line opens or closes a scope with names of its own.
    for raw in re.split(r";|^\s*([{}])\s*$|^(\s*[$\w]+:)\s*$", body, flags=re.MULTILINE):
        statement = (raw or "").strip()
        declared = re.match(r"\.reg\s+\.pred\s+(\w+)$", statement)
        if statement in ("{", "}"):
            scopes += 1
            local = {}
        elif declared:
            local[declared[1]] = f"%p@{scopes}.{declared[1]}"
        elif statement.endswith(":"):
            labels[_label(statement[:-1], scopes)] = len(instructions)
        elif statement and not statement.startswith("."):
            instructions.append(_instruction(statement, local, scopes))
    return Kernel(parameters, instructions, labels)


def register_bits(name: str) -> int:
    """How wide a register is; 1 for a predicate, and 0 for what is none of the compiler's registers."""
    matched = _REGISTER.match(name)
    return {"p": 1, "rs": 16, "r": 32, "rd": 64}[matched[1]] if matched else 0
