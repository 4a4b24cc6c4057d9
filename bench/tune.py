"""``bench tune``: rows for the table of launch configurations, ``kernels/triton_impl/configurations.csv``.

Without a GPU, by compiling: of a list of tiles that spill nothing, fit, and run on the machine of ``ptx_machine`` without a
fault, the one with the best bound by issue rates. With one, by measuring: of all tiles that compile so, the fastest.
"""

from __future__ import annotations

import dataclasses
import itertools
import pathlib
import subprocess
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
import triton
from triton.errors import TritonError

from longformer_triton.bench.architectures import ARCHITECTURES
from longformer_triton.bench.compiled import Compiled, Variant, bound_of, compile_launch, launches_of
from longformer_triton.bench.ptx_machine.launches import run_launch
from longformer_triton.bench.ptx_machine.memory import FaultError
from longformer_triton.kernels.triton_impl.steps import Launch
from longformer_triton.kernels.triton_impl.tuning import (
    COLUMNS,
    KERNELS,
    WINDOW_KERNELS,
    Config,
    Key,
    TableRow,
    Target,
    how_loaded,
)

Tiles = tuple[tuple[int, ...], ...]
# (block_m, block_n, num_warps, num_stages[, max_registers]), most wanted first; two stages stand for three as well. 128
# registers and 8 warps leave room for a second program on a multiprocessor, whose exponentials then overlap with the first
# one's products.
_QUERY_TILES: Tiles = (
    (128, 64, 8, 2, 128), (128, 64, 8, 2), (64, 64, 4, 2), (64, 64, 8, 2), (64, 32, 8, 2), (32, 64, 4, 2), (32, 64, 8, 2),
    (32, 32, 4, 2), (16, 64, 4, 2),
    (128, 64, 8, 1), (64, 64, 4, 1), (64, 64, 8, 1), (64, 32, 8, 1), (32, 64, 4, 1), (32, 64, 8, 1), (32, 32, 8, 1),
    (16, 64, 4, 1), (16, 64, 8, 1), (16, 32, 8, 1), (16, 16, 4, 1),
)  # fmt: skip
_KEY_TILES: Tiles = (
    (128, 64, 8, 2), (64, 128, 8, 2), (64, 64, 8, 2), (64, 64, 4, 2), (32, 128, 8, 2), (64, 32, 4, 2), (32, 64, 4, 2),
    (32, 64, 8, 2), (32, 32, 4, 2), (16, 64, 4, 2), (32, 16, 4, 2),
    (64, 64, 8, 1), (64, 64, 4, 1), (32, 64, 8, 1), (32, 32, 8, 1), (16, 64, 4, 1), (16, 64, 8, 1), (32, 64, 16, 1),
    (16, 128, 16, 1), (16, 64, 16, 1), (32, 16, 4, 1), (16, 32, 4, 1), (16, 32, 8, 1), (16, 16, 8, 1), (16, 16, 4, 1),
)  # fmt: skip
# Sixteen global tokens against block_n keys, or block_m queries against sixteen global tokens.
_NARROW_TILES: Tiles = (
    (64, 64, 4, 2), (64, 64, 2, 2), (64, 64, 4, 1), (64, 64, 2, 1), (64, 64, 8, 1), (64, 64, 16, 1, 128), (32, 64, 8, 1),
    (16, 64, 8, 1), (16, 64, 16, 1),
    (32, 32, 4, 1), (32, 32, 8, 1), (16, 16, 4, 1), (16, 16, 8, 1),
)  # fmt: skip
# The same for AMD's waves of 64 threads: matrix instructions of 32 or 16 rows, of which each wave needs its own, or waves
# compute each other's softmax (bench/LOG.md, "waves of 64"). Each program hides the latency of another.
_WAVE_QUERY_TILES: Tiles = (
    (128, 64, 4, 1), (64, 64, 2, 1), (64, 32, 2, 1), (32, 64, 1, 1), (32, 32, 1, 1), (64, 64, 4, 1), (32, 64, 2, 1),
    (16, 64, 1, 1), (32, 64, 4, 1), (16, 64, 4, 1), (16, 16, 1, 1), (16, 16, 4, 1),
)  # fmt: skip
_WAVE_KEY_TILES: Tiles = (
    (64, 128, 4, 1), (128, 64, 4, 1), (64, 64, 2, 1), (32, 128, 4, 1), (32, 64, 2, 1), (32, 64, 1, 1), (32, 32, 1, 1),
    (64, 64, 4, 1), (32, 64, 4, 1), (16, 64, 1, 1), (16, 64, 4, 1), (16, 16, 1, 1), (16, 16, 4, 1),
)  # fmt: skip
_WAVE_NARROW_TILES: Tiles = (
    (64, 64, 1, 1), (64, 64, 2, 1), (32, 64, 1, 1), (16, 64, 1, 1), (64, 64, 4, 1), (32, 32, 1, 1), (16, 64, 4, 1),
    (16, 16, 1, 1), (16, 16, 4, 1),
)  # fmt: skip
# With two stages the next tile's copies start when this one's products are done, and nothing hides them (bench/LOG.md, "three
# stages").
_DEEP = 3
# By the threads of a warp.
_CANDIDATES = {32: (_QUERY_TILES, _KEY_TILES, _NARROW_TILES), 64: (_WAVE_QUERY_TILES, _WAVE_KEY_TILES, _WAVE_NARROW_TILES)}


def candidates(kernel: str, architecture: str, precision: str, head_dim: int, dropout: bool) -> list[Config]:
    """What may be tried, most wanted first."""
    about = ARCHITECTURES[architecture]
    query_tiles, key_tiles, narrow_tiles = _CANDIDATES[about.target.warp_size]
    window_tiles = key_tiles if kernel == "window_grad_key_value" else query_tiles
    tiles = window_tiles if kernel in WINDOW_KERNELS else narrow_tiles
    configs = []
    for block_m, block_n, warps, stages, *cap in tiles:
        too_large = block_m * block_n > 64 * 64 and (head_dim > 128 or precision == "ieee")
        # Dropout's bytes come for 64 keys at a time, where keys are neighbours.
        split_bytes = dropout and kernel != "global_columns_grad_key_value" and block_n % 64
        # A cap is for NVIDIA's assembler, and worth a try where a program is small enough or would get too few.
        small = warps > 8 or (head_dim <= 64 and precision == "half")
        no_cap = cap and not (about.is_nvidia and small)
        if not (too_large or split_bytes or no_cap):
            depths = (_DEEP, stages) if stages == _DEEP - 1 and about.is_nvidia else (stages,)
            configs += [Config(block_m, block_n, warps, depth, cap[0] if cap else None) for depth in depths]
    return configs


def launch_of(kernel: str, variant: Variant, architecture: str, config: Config) -> Launch:
    """The one launch of ``kernel`` in a problem."""
    launches = launches_of(variant, architecture, dict.fromkeys(KERNELS, config))
    return next(launch for launch in launches if launch.kernel.__name__ == kernel)


def compiles(kernel: str, variant: Variant, architecture: str, config: Config) -> Compiled | None:
    """The compiled kernel if it may be shipped, else None; a tile that the compiler refuses is one that may not."""
    launch = launch_of(kernel, variant, architecture, config)
    try:
        compiled = compile_launch(launch, architecture)
    except (RuntimeError, TritonError, subprocess.CalledProcessError):  # passes and assemblers that give up
        return None
    return compiled if compiled.fits and compiled.uses_matrix_units == compiled.wants_matrix_units else None


# Candidates whose bounds differ by less are told apart by how much they are wanted: the bound leaves out latencies.
_ABOUT_AS_GOOD = 0.95
# How far apart, in parts of the largest, results of two tiles may be.
_TOLERANCE = 2e-2
# What a kernel writes.
_RESULTS = ("out_ptr", "lse_ptr", "grad_query_ptr", "grad_key_ptr", "grad_value_ptr")


def fault_of(kernel: str, variant: Variant, architecture: str, config: Config) -> str | None:
    """None when a compiled kernel runs as it should on the machine of ``ptx_machine``, which is NVIDIA's; else what is wrong.

    Copies and products that overlap must not race, and their overlapping must not change a bit of the results.
    """
    if not ARCHITECTURES[architecture].is_nvidia:
        return None
    results = []
    for stages in sorted({1, config.num_stages}):
        torch.manual_seed(0)
        trial = dict.fromkeys(KERNELS, dataclasses.replace(config, num_stages=stages))
        # Long enough for several tiles in each of the loops: at both edges of the window, and between them.
        launches = launches_of(variant, architecture, trial, seq_len=768, heads=1, num_globals=40)
        own = next(launch for launch in launches if launch.kernel.__name__ == kernel)
        written = [tensor for name, tensor in own.arguments.items() if name in _RESULTS or name.startswith("partial")]
        for tensor in written:
            tensor.zero_()
        try:
            for launch in launches[: launches.index(own)]:
                if launch.kernel.__name__ == "prepare_rows":
                    run_launch(launch, architecture)
            run_launch(own, architecture, find_races=stages == config.num_stages)
        except FaultError as fault:
            return str(fault)
        results.append(written)
    same = all(torch.equal(one, other) for one, other in zip(results[0], results[-1], strict=True))
    return None if same else f"{kernel} on {architecture}: another result with {config.num_stages} stages than with one"


def _key_of(kernel: str, architecture: str, variant: Variant) -> Key:
    """What the table finds a configuration for ``variant`` by."""
    loads = how_loaded(kernel, descriptors=variant.uses_descriptors(Target.named(architecture)))
    return Key(architecture, variant.precision, kernel, loads, variant.head_dim, variant.dropout, variant.masks)


def _row_of(kernel: str, architecture: str, variant: Variant, compiled: Compiled, reason: str) -> TableRow:
    key = _key_of(kernel, architecture, variant)
    return TableRow(key, compiled.config, compiled.registers, compiled.shared_bytes, reason)


# Head dimensions that a row serves besides its own: narrower ones with room for padding, or with none.
_NARROWER = {64: (32, 48), 128: (80, 96), 256: (160,)}


def problems_served(kernel: str, variant: Variant, *, narrower: bool = False) -> Iterator[Variant]:
    """What a row for ``variant`` serves, its own problem first: the window's kernels without padding and globals too.

    With ``narrower``, heads that are padded to the same number of channels, or to fewer.
    """
    head_dims = (variant.head_dim, *_NARROWER[variant.head_dim]) if narrower else (variant.head_dim,)
    masks = (True, False) if variant.masks and kernel in WINDOW_KERNELS else (variant.masks,)
    for head_dim, with_masks in itertools.product(head_dims, masks):
        yield dataclasses.replace(variant, head_dim=head_dim, masks=with_masks)


def _unfit_for(kernel: str, variant: Variant, architecture: str, config: Config, *, narrower: bool) -> str | None:
    """None when a configuration serves all that a row for ``variant`` has to; else what is wrong."""
    for problem in problems_served(kernel, variant, narrower=narrower):
        if compiles(kernel, problem, architecture, config) is None:
            return f"does not compile well for head_dim {problem.head_dim}" + (
                "" if problem.masks else " without padding and globals"
            )
    faults = (fault_of(kernel, problem, architecture, config) for problem in problems_served(kernel, variant))
    return next(filter(None, faults), None)


def best_by_issue_rates(kernel: str, architecture: str, variant: Variant, say: Callable[[str], None]) -> TableRow | None:
    """The table's row for one kernel and problem, without a GPU.

    Of the candidates that compile well here, those whose instructions allow the largest share of the peak rate of products, or
    within a twentieth of it; of these the most wanted that compiles well in all that the row serves, if possible for narrower
    heads too, and runs without a fault. If none does, it is the turn of the next best.
    """
    bounds: dict[Config, tuple[Compiled, float]] = {}
    for config in candidates(kernel, architecture, variant.precision, variant.head_dim, variant.dropout):
        compiled = compiles(kernel, variant, architecture, config)
        if compiled is not None and compiled.main_loop:
            bounds[config] = compiled, bound_of(compiled, variant.head_dim).share
    left = {config: share for config, (_, share) in bounds.items() if not _costs_a_program(config, bounds)}
    while left:
        best = [config for config, share in left.items() if share >= _ABOUT_AS_GOOD * max(left.values())]
        for narrower, config in itertools.product((True, False), best):
            why_not = _unfit_for(kernel, variant, architecture, config, narrower=narrower)
            if why_not is None:
                compiled = bounds[config][0]
                reason = (
                    f"{left[config]:.0%} of the peak by issue rates, {compiled.registers} registers, "
                    f"{compiled.programs_at_once} at once on a multiprocessor" + ("" if narrower else ", narrower heads spill")
                )
                return _row_of(kernel, architecture, variant, compiled, reason)
            say(f"{config}: {why_not}")
        left = {config: share for config, share in left.items() if config not in best}
    say(f"{architecture} {variant.precision} {kernel} head_dim {variant.head_dim}: nothing fits")
    return None


def _costs_a_program(config: Config, bounds: dict[Config, tuple[Compiled, float]]) -> bool:
    """Whether a multiprocessor holds fewer programs for the sake of a third stage: another program hides latencies too."""
    shallow = bounds.get(dataclasses.replace(config, num_stages=_DEEP - 1)) if config.num_stages == _DEEP else None
    return shallow is not None and bounds[config][0].programs_at_once < shallow[0].programs_at_once


def fastest(kernel: str, architecture: str, variant: Variant, device: str, say: Callable[[str], None]) -> TableRow | None:
    """The table's row for one kernel and problem by the median time of one launch over 16k tokens and 12 heads.

    Of those whose results are right: close to those of a small tile, and bit for bit those of the same tile when its copies
    and products do not overlap.
    """
    timed: list[tuple[float, Compiled]] = []
    for config in candidates(kernel, architecture, variant.precision, variant.head_dim, variant.dropout):
        compiled = compiles(kernel, variant, architecture, config)
        if compiled is None:
            continue
        launch, _ = _run_all(kernel, variant, architecture, config, device)
        if launch.config != config:  # Triton 3.6 gets other stages (tuning.py)
            continue
        milliseconds = triton.testing.do_bench(launch.run, return_mode="median")
        say(f"{kernel} {config}: {milliseconds * 1e3:.1f} us, {compiled.registers} registers")
        timed.append((milliseconds, compiled))
    _, expected = _run_all(kernel, variant, architecture, Config(32, 64), device)
    for best, compiled in sorted(timed, key=lambda entry: entry[0]):
        config = compiled.config
        _, results = _run_all(kernel, variant, architecture, config, device)
        _, one_stage = _run_all(kernel, variant, architecture, dataclasses.replace(config, num_stages=1), device)
        if all(map(torch.equal, results, one_stage)) and all(map(_is_close, results, expected)):
            reason = f"fastest of {len(timed)} on {torch.cuda.get_device_name(device)}, {best * 1e3:.1f} us"
            return _row_of(kernel, architecture, variant, compiled, reason)
        say(f"{kernel} {config}: wrong results")
    return None


def _run_all(
    kernel: str, variant: Variant, architecture: str, config: Config, device: str
) -> tuple[Launch, list[torch.Tensor]]:
    """(the launch of ``kernel``, all results) of a forward and a backward pass over numbers that are always the same."""
    torch.manual_seed(0)
    trial = {name: Config(32, 64) for name in KERNELS} | {kernel: config}
    launches = launches_of(variant, architecture, trial, seq_len=16_384, heads=12, device=device)
    for launch in launches:
        launch.run()
    own = next(launch for launch in launches if launch.kernel.__name__ == kernel)
    results = {
        tensor.data_ptr(): tensor
        for launch in launches
        for name, tensor in launch.arguments.items()
        if name in (*_RESULTS, "target_ptr")
    }
    return own, [tensor.clone() for tensor in results.values()]


def _is_close(got: torch.Tensor, expected: torch.Tensor) -> bool:
    """Whether results differ by no more than what the order of sums and the rounding of weights make of them."""
    finite = expected.isfinite()
    worst = (got - expected)[finite].abs().amax()
    return bool(torch.equal(got.isfinite(), finite) and worst <= _TOLERANCE * expected[finite].abs().amax())


def save(rows: Iterable[TableRow], path: pathlib.Path) -> None:
    """Append rows to a table that ``LONGFORMER_TRITON_CONFIGURATIONS`` may name; each is on disk before the next is sought."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        path.write_text(",".join(COLUMNS) + "\n")
    for row in rows:
        with path.open("a") as file:
            file.write(row.as_text() + "\n")


def table(
    architecture: str,
    precision: str,
    head_dims: Sequence[int],
    say: Callable[[str], None],
    kernels: Sequence[str] = (),
    *,
    known: Iterable[TableRow] = (),
    dilation: int = 1,
    device: str | None = None,
) -> Iterator[TableRow]:
    """Every row of an architecture and precision that is not ``known``, by measuring on ``device`` or else by compiling."""
    found = {row.key for row in known}
    dtype = torch.float16 if precision == "half" else torch.float32
    for kernel in kernels or KERNELS:
        masks_too = (False, True) if kernel in WINDOW_KERNELS else (True,)
        for head_dim, dropout, masks in itertools.product(head_dims, (False, True), masks_too):
            variant = Variant(head_dim, dtype, precision == "tf32", masks, dropout, dilation)
            if _key_of(kernel, architecture, variant) in found:
                continue
            if device is None:
                row = best_by_issue_rates(kernel, architecture, variant, say)
            else:
                row = fastest(kernel, architecture, variant, device, say)
            if row is not None:
                yield row
