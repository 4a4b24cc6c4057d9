"""``bench inspect``: what the compiler made of the kernels, as a table, for GPUs that need not be here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.table import Table

from longformer_triton.bench.assembly import MIX, kind_of
from longformer_triton.bench.compiled import PRODUCTS, Compiled, Variant, bound_of, compile_launch, launches_of

# Columns of text that a table takes.
WIDTH = 200


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
    config = compiled.config
    fields = [
        compiled.kernel,
        f"{config.block_m}x{config.block_n} w{config.num_warps} s{config.num_stages}"
        + (f" r{config.max_registers}" if config.max_registers else ""),
        str(compiled.registers),
        f"{compiled.shared_bytes / 1024:.1f}",
        str(compiled.programs_at_once),
        str(compiled.spill_bytes),
    ]
    if compiled.kernel not in PRODUCTS or not compiled.main_loop:
        return [*fields, *[""] * (len(MIX) + 3)]
    products = {name: number for name, number in compiled.main_loop.items() if kind_of(name) == "matrix"}
    name = max(products, key=lambda name: products[name], default="FFMA")
    bound = bound_of(compiled, head_dim)
    mix = [f"{compiled.mix[kind]:.2f}" for kind in (*MIX, "other")]
    return [
        *fields,
        f"{compiled.main_loop[name]} {name}",
        *mix[1:],
        f"{compiled.mix['all']:.1f}",
        f"{bound.share:.0%} {bound.by}",
    ]


def title_of(variant: Variant, architecture: str) -> str:
    """A problem in words."""
    return (
        f"{architecture}, head_dim {variant.head_dim}, {str(variant.dtype).removeprefix('torch.')}"
        + (" (tf32)" if variant.tf32 else "")
        + (", padding and globals" if variant.masks else "")
        + (", dropout" if variant.dropout else "")
        + (", dilated" if variant.dilation > 1 else "")
    )


def as_table(variant: Variant, architecture: str, kernels: Sequence[Compiled]) -> Table:
    """The table of one architecture, as printed."""
    table = Table(
        title=title_of(variant, architecture),
        caption="programs: that a multiprocessor holds at once; products: in one step of the clean main loop; mix: a thread's "
        "instructions for each score in it; bound: share of products' peak rate that issue rates allow, before latencies and "
        "memory, and what sets it",
    )
    headings = ["kernel", "configuration", "registers", "shared KiB", "programs", "spills", "products"]
    headings += [kind for kind in (*MIX, "other", "all") if kind != "matrix"] + ["bound"]
    for heading in headings:
        # What holds spaces may go to a second line in a narrow terminal.
        wraps = heading in ("configuration", "products", "bound")
        table.add_column(heading, justify="left" if heading in headings[:2] else "right", no_wrap=not wraps)
    for compiled in kernels:
        table.add_row(*row_of(compiled, variant.head_dim))
    return table
