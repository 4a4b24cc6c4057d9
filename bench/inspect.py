"""``bench inspect``: what the compiler made of the kernels, as a table, for GPUs that need not be here."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from rich.table import Table

from longformer_triton.bench.compiled import ARCHITECTURES, Compiled, Variant, compile_launch, launches_of, matrix_share

# Matrix products of a score: scores and out; scores, dP and dQ; scores, dP, dK and dV.
PRODUCTS = {
    "window_forward": 2,
    "rows_forward": 2,
    "window_grad_query": 3,
    "rows_grad_query": 3,
    "window_grad_key_value": 4,
    "rows_grad_key_value": 4,
    "columns_grad_key_value": 4,
}
# Columns of the instruction mix: a heading and the instructions that it counts.
MIX = {
    "exp2": ("MUFU",),
    "float": ("FFMA", "FMUL", "FADD", "FMNMX"),
    "mask": ("FSEL", "ISETP", "SEL", "FSETP", "PLOP3"),
    "shared": ("LDS", "STS", "LDSM", "STSM"),
    "convert": ("F2FP", "F2F"),
}


def compiled_kernels(variant: Variant, architecture: str) -> Iterator[Compiled]:
    """The kernels of a forward and a backward pass, each once."""
    seen = set()
    for launch in launches_of(variant, architecture):
        name = launch.kernel.__name__
        if name not in seen:
            seen.add(name)
            yield compile_launch(launch, architecture)


def row_of(compiled: Compiled, head_dim: int) -> list[str]:
    """One line of the table; the mix is instructions of a thread for each score of the clean main loop."""
    config, about = compiled.config, ARCHITECTURES[compiled.architecture]
    fields = [
        compiled.kernel,
        f"{config.block_m}x{config.block_n} w{config.num_warps} s{config.num_stages}"
        + (f" r{config.max_registers}" if config.max_registers else ""),
        str(compiled.registers),
        f"{compiled.shared_bytes / 1024:.1f}",
        str(compiled.blocks) if about.is_nvidia else "",
        str(compiled.spill_bytes),
    ]
    loop = compiled.main_loop if compiled.kernel in PRODUCTS else None
    if not loop:
        return [*fields, *[""] * (len(MIX) + 3)]
    per_score = config.num_warps * about.target.warp_size / compiled.tile
    share = matrix_share(compiled, PRODUCTS[compiled.kernel], head_dim)
    mix = [f"{sum(loop[name] for name in names) * per_score:.2f}" for names in MIX.values()]
    return [
        *fields, f"{loop[about.matrix_instruction]}", *mix, f"{loop.total() * per_score:.1f}",
        "" if math.isnan(share) else f"{share:.0%}",
    ]  # fmt: skip


def as_table(variant: Variant, architecture: str, kernels: Sequence[Compiled]) -> Table:
    """The table of one architecture, as printed."""
    title = (
        f"{architecture}, head_dim {variant.head_dim}, {str(variant.dtype).removeprefix('torch.')}"
        + (" (tf32)" if variant.tf32 else "")
        + (", padding and globals" if variant.checks else "")
        + (", dropout" if variant.dropout else "")
    )
    table = Table(
        title=title,
        caption="mix: instructions of a thread for each score in the clean main loop; bound: share of the matrix units' peak "
        "that issue rates allow, before latencies and memory",
    )
    for heading in ("kernel", "configuration", "registers", "shared KiB", "programs", "spills"):
        table.add_column(heading, justify="left" if heading in ("kernel", "configuration") else "right", no_wrap=True)
    for heading in (ARCHITECTURES[architecture].matrix_instruction, *MIX, "all", "bound"):
        table.add_column(heading, justify="right", no_wrap=True)
    for compiled in kernels:
        table.add_row(*row_of(compiled, variant.head_dim))
    return table
