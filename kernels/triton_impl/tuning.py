"""Which launch configuration a kernel gets: a table by architecture, precision, head_dim and problem.

The table is ``configurations.csv`` beside this file: one line a configuration, with its reason, and with the registers and the
shared memory that it took when it was compiled ahead of time, which the tests hold it to. ``bench tune`` writes such lines.
Where Triton 3.6 compiles one badly, ``configurations_triton_3_6.csv`` has another.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import io
import os
import pathlib
from collections.abc import Mapping
from typing import NamedTuple

import torch
import triton

INTERPRETER = "interpreter"
# Lines of this file, of the same form, come before those that are shipped: what ``bench tune`` found on a device.
TUNED_VARIABLE = "LONGFORMER_TRITON_CONFIGURATIONS"
SHIPPED = pathlib.Path(__file__).with_name("configurations.csv")
SHIPPED_FOR_3_6 = pathlib.Path(__file__).with_name("configurations_triton_3_6.csv")
# Architectures whose copy engine (TMA) moves tiles that a descriptor names. That of sm_120 is left alone: its products take
# their operands from registers, as on sm_86, and dk and dv with dropout then spill (bench/LOG.md, "consumer cards").
_COPY_ENGINE = ("sm_90", "sm_100", "sm_103")
# Whose lines serve an architecture that has none of its own: the same instructions or a subset, and no more shared memory.
STANDS_IN = {
    "sm_80": "sm_86",
    "sm_87": "sm_86",
    "sm_89": "sm_86",
    "sm_120": "sm_86",
    "sm_121": "sm_86",
    "sm_103": "sm_100",
    "gfx950": "gfx942",
}
# Where dk and dv with dropout have no registers left for a tile that serves both (bench/LOG.md, "a tile too many"): in TF32,
# whose operands are twice as large, where these come from registers.
_FEW_REGISTERS = {"tf32": ("sm_80", "sm_86", "sm_87", "sm_89", "sm_120", "sm_121"), "half": ("sm_120", "sm_121")}
# Architectures whose matrix units have no TF32, where one that stands in for them has.
_WITHOUT_TF32 = ("gfx950",)
# The kernels whose configuration depends on what they run on. Those of windows can load their tiles by the copy engine.
WINDOW_KERNELS = ("window_forward", "window_grad_query", "window_grad_key_value")
KERNELS = (
    *WINDOW_KERNELS,
    "global_rows_forward",
    "global_rows_grad_query",
    "global_rows_grad_key_value",
    "global_columns_grad_key_value",
)
HEAD_DIMS = (64, 128, 256)
# Triton 3.6 emits no fence.proxy.async between cp.async and the products of wgmma and its successor, which read by way of that
# proxy: there, tiles that pointers load are not pipelined. (3.7 forgets it in some loops on sm_100: the table knows which.)
IS_3_6 = tuple(int(part) for part in triton.__version__.split(".")[:2]) < (3, 7)


class NotServedError(NotImplementedError):
    """The kernels were asked for a problem that they do not serve; ``reason`` says why."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"backend: got 'triton', but {reason}: use backend='torch'.")
        self.reason = reason


@dataclasses.dataclass(frozen=True)
class Config:
    """How one kernel is launched."""

    block_m: int
    block_n: int
    num_warps: int = 4
    num_stages: int = 1
    max_registers: int | None = None

    def options(self) -> dict[str, int]:
        """What the launch takes besides the kernel's own arguments."""
        options = {"num_warps": self.num_warps, "num_stages": self.num_stages}
        return options if self.max_registers is None else {**options, "maxnreg": self.max_registers}


@functools.lru_cache
def _not_pipelined(config: Config) -> Config:
    return dataclasses.replace(config, num_stages=1)


# Kernels that move a few numbers for each row: one configuration serves everywhere. (Those of global tokens own BLOCK_G rows,
# whatever it says here.)
FIXED = {
    "prepare_rows": Config(64, 64),
    "global_rows_combine": Config(64, 64),
    "reduce_partials": Config(64, 64),
    "dropout_mask": Config(16, 256),
}


class Key(NamedTuple):
    """What a configuration is chosen by.

    ``loads`` says how the kernel's tiles are loaded, by "descriptors" (the copy engine) or by "pointers"; ``masks``, whether
    there may be padding or global tokens.
    """

    architecture: str
    precision: str
    kernel: str
    loads: str
    head_dim: int
    dropout: bool
    masks: bool


def how_loaded(kernel: str, *, descriptors: bool) -> str:
    """``Key.loads`` of a kernel in a problem where descriptors serve the kernels of windows, or do not."""
    return "descriptors" if descriptors and kernel in WINDOW_KERNELS else "pointers"


@dataclasses.dataclass(frozen=True)
class TableRow:
    """One line of the table; ``registers`` and ``shared_bytes`` are the budget."""

    key: Key
    config: Config
    registers: int
    shared_bytes: int
    reason: str

    def as_text(self) -> str:
        """The line as it stands in the table."""
        fields = [*self.key[:-2], *map(int, self.key[-2:]), *dataclasses.astuple(self.config)]
        fields += [self.registers, self.shared_bytes, self.reason]
        text = io.StringIO()
        csv.writer(text, lineterminator="").writerow(fields)
        return text.getvalue()


COLUMNS = (
    *Key._fields,
    *(field.name for field in dataclasses.fields(Config)),
    *(field.name for field in dataclasses.fields(TableRow) if field.name not in ("key", "config")),
)


def read_rows(path: pathlib.Path) -> list[TableRow]:
    """The rows of a table.

    Raises:
        ValueError: the file has other columns than ``COLUMNS``, or a line lacks some.
    """
    with path.open(newline="") as file:
        header, *lines = [*csv.reader(file)] or [[]]
    if tuple(header) != COLUMNS:
        raise ValueError(
            f"{path}: got the columns {', '.join(header)}, expected {', '.join(COLUMNS)}: write the table anew with "
            "`longformer-triton bench tune --save FILE`."
        )
    for number, line in enumerate(lines, start=2):
        if len(line) != len(COLUMNS):
            raise ValueError(f"{path}, line {number}: got {len(line)} fields, expected {len(COLUMNS)}: remove the line.")
    return [_row_of(dict(zip(COLUMNS, line, strict=True))) for line in lines]


def _row_of(line: dict[str, str]) -> TableRow:
    numbers = {name: int(text) for name, text in line.items() if text.isdecimal()}
    key = Key(
        line["architecture"], line["precision"], line["kernel"], line["loads"], numbers["head_dim"],
        dropout=bool(numbers["dropout"]), masks=bool(numbers["masks"]),
    )  # fmt: skip
    config = Config(**{field.name: numbers[field.name] for field in dataclasses.fields(Config) if field.name in numbers})
    return TableRow(key, config, numbers["registers"], numbers["shared_bytes"], line["reason"])


@functools.lru_cache
def configurations() -> dict[Key, TableRow]:
    """The shipped table, over it what Triton 3.6 needs, and over these the table that the environment variable names."""
    rows = read_rows(SHIPPED)
    if IS_3_6:
        rows += read_rows(SHIPPED_FOR_3_6)
    tuned = os.environ.get(TUNED_VARIABLE)
    if tuned:
        rows += read_rows(pathlib.Path(tuned))
    return {row.key: row for row in rows}


# Every call of attention asks for each of its kernels, twice.
@functools.cache
def _known(
    architecture: str, kernel: str, head_dim: int, precision: str, dropout: bool, masks: bool, descriptors: bool
) -> Config:
    """What the table says."""
    if kernel in FIXED:
        return FIXED[kernel]
    assert kernel in KERNELS, kernel
    if architecture == INTERPRETER:
        # Small, so that short sequences have many tiles; dropout's bytes come for 64 keys at a time.
        return Config(16, 64 if dropout else 16)
    width = next(width for width in HEAD_DIMS if head_dim <= width)
    loads = how_loaded(kernel, descriptors=descriptors)
    rows = configurations()
    # A row of its own comes first: `bench tune` finds some for architectures that others stand in for.
    row = next(
        (
            rows[key]
            for name in (architecture, STANDS_IN.get(architecture, architecture))
            for known in (masks, True)
            if (key := Key(name, precision, kernel, loads, width, dropout, known)) in rows
        ),
        None,
    )
    if row is None:
        with_dropout = " with dropout" if dropout else ""
        of_others = ""
        if precision == "ieee":
            of_others = "; half precision, and TF32 after torch.set_float32_matmul_precision('high'), are served more widely"
        raise NotServedError(
            f"for head_dim {head_dim}, {precision} products{with_dropout}, on {architecture}, no configuration of the "
            f"{kernel} kernel is known to fit (`longformer-triton bench tune` finds some{of_others})"
        )
    return row.config


@dataclasses.dataclass(frozen=True)
class Target:
    """What the kernels are launched on: an architecture, whether its copy engine is used, and configurations under trial."""

    architecture: str
    descriptors: bool
    trial: Mapping[str, Config] = dataclasses.field(default_factory=dict)

    @staticmethod
    def named(architecture: str, trial: Mapping[str, Config] | None = None) -> Target:
        """The target of an architecture by name, with its copy engine if it has one."""
        return Target(architecture, architecture in _COPY_ENGINE, trial or {})

    def holds_kept(self, precision: str) -> bool:
        """Whether dk and dv with dropout hold the probabilities that are kept (HOLD_KEPT)."""
        return self.architecture not in _FEW_REGISTERS.get(precision, ())

    def config(
        self, kernel: str, head_dim: int, precision: str, *, dropout: bool, masks: bool, descriptors: bool = False
    ) -> Config:
        """The configuration of a kernel; a line with ``masks`` serves problems without them that have none of their own.

        Raises:
            NotServedError: the table has no line for the problem; the message says for which.
        """
        config = self.trial.get(kernel) or _known(self.architecture, kernel, head_dim, precision, dropout, masks, descriptors)
        pipelined_by_pointers = kernel in KERNELS and not (descriptors and kernel in WINDOW_KERNELS)
        if self.architecture in _COPY_ENGINE and pipelined_by_pointers and IS_3_6:
            return _not_pipelined(config)
        return config

    def precision_of(self, dtype: torch.dtype) -> str:
        """half, tf32 or ieee: the kind of matrix products.

        float32 products are exact unless PyTorch was told that TF32 will do, by ``torch.set_float32_matmul_precision`` or by
        ``torch.backends.cuda.matmul.fp32_precision``, which reads what either of them set, and the architecture has them.
        """
        if dtype.itemsize == 2:
            return "half"
        allowed = dtype == torch.float32 and torch.backends.cuda.matmul.fp32_precision == "tf32"
        return "tf32" if allowed and self.architecture not in _WITHOUT_TF32 else "ieee"

    def missing(
        self, head_dim: int, precision: str, *, dropout: bool, padding: bool, has_globals: bool, descriptors: bool
    ) -> str | None:
        """None when all kernels of a problem have a configuration; else the reason that the first without one gives."""
        masks = padding or has_globals
        try:
            for kernel in KERNELS if has_globals else WINDOW_KERNELS:
                self.config(kernel, head_dim, precision, dropout=dropout, masks=masks, descriptors=descriptors)
        except NotServedError as refusal:
            return refusal.reason
        return None


@functools.lru_cache
def target_of(device: torch.device) -> Target:
    """The target for ``device``."""
    if os.environ.get("TRITON_INTERPRET") == "1" and device.type == "cpu":
        return Target(INTERPRETER, descriptors=False)
    if torch.version.hip is not None:
        return Target.named(torch.cuda.get_device_properties(device).gcnArchName.split(":")[0])
    major, minor = torch.cuda.get_device_capability(device)
    return Target.named(f"sm_{major}{minor}")
