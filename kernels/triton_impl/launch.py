"""The host side of the Triton backend: allocations, grids and launches; no autograd, and no value is read back.

Each direction is first a list of :class:`Launch`, then run in order. The same lists, compiled instead of run, are what
``bench inspect`` and the ahead-of-time tests look at, so what they see is what runs.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from longformer_triton.kernels.dropout import Dropout
from longformer_triton.kernels.pattern import AttentionPattern
from longformer_triton.kernels.precision import accumulation_dtype
from longformer_triton.kernels.triton_impl.backward_global import (
    columns_grad_key_value,
    reduce_partials,
    rows_grad_key_value,
    rows_grad_query,
)
from longformer_triton.kernels.triton_impl.backward_key_value import window_grad_key_value
from longformer_triton.kernels.triton_impl.backward_prepare import prepare_rows, text_spans
from longformer_triton.kernels.triton_impl.backward_query import window_grad_query
from longformer_triton.kernels.triton_impl.forward import window_forward
from longformer_triton.kernels.triton_impl.global_rows import rows_combine, rows_forward
from longformer_triton.kernels.triton_impl.tuning import Config, Target, target_of

# query, key, value
States = tuple[Tensor, Tensor, Tensor]

# Sums over the whole text are split until there are about this many programs: four for each multiprocessor of the largest GPUs.
_TARGET_PROGRAMS = 528


@dataclasses.dataclass(frozen=True)
class Launch:
    """One kernel with its grid, its arguments in the order of its signature, and its configuration."""

    kernel: Any
    programs: int
    arguments: dict[str, Any]
    config: Config

    @staticmethod
    def of(kernel: Any, programs: int, config: Config, available: dict[str, Any]) -> Launch:
        """Pick the kernel's arguments out of everything that is available."""
        available = {**available, "BLOCK_M": config.block_m, "BLOCK_N": config.block_n}
        return Launch(kernel, programs, {name: available[name] for name in kernel.arg_names}, config)

    def run(self) -> None:
        """Launch on the current stream."""
        self.kernel[(self.programs,)](**self.arguments, **self.config.options())


def _fits_descriptor(states: Tensor) -> bool:
    """Whether the copy engine can address a tensor: aligned to 16 bytes, rows contiguous, no axis repeated by a stride of 0."""
    size = states.element_size()
    strides = [stride for stride, length in zip(states.stride()[:-1], states.shape[:-1], strict=True) if length > 1]
    return (
        states.stride(-1) == 1
        and states.data_ptr() % 16 == 0
        and all(stride > 0 and stride * size % 16 == 0 for stride in strides)
        and states.shape[-1] * size >= 16
    )


def _descriptor(states: Tensor, block: list[int]) -> TensorDescriptor:
    """Tiles of ``block`` of a tensor; the stride of an axis of length one says nothing, and gets a legal value."""
    aligned = 16 // states.element_size()
    strides = [
        stride if length > 1 or axis == states.dim() - 1 else max(aligned, stride - stride % aligned)
        for axis, (stride, length) in enumerate(zip(states.stride(), states.shape, strict=True))
    ]
    return TensorDescriptor(states, list(states.shape), strides, block)


def _tensor(name: str, states: Tensor) -> dict[str, Any]:
    """A tensor (batch, heads, tokens[, channels]) as pointer and strides."""
    strides = {f"{name}_stride_{axis}": stride for axis, stride in zip("bhnd", states.stride(), strict=False)}
    return {f"{name}_ptr": states, **strides}


class Problem:
    """What all kernels of one call have in common, by the names of their arguments."""

    def __init__(
        self, states: States, pattern: AttentionPattern, scale: float, dropout: Dropout | None, target: Target
    ) -> None:
        query, key, value = states
        self.query, self.pattern, self.dropout, self.target = query, pattern, dropout, target
        self.batch, self.heads, _, self.head_dim = query.shape
        self.seq_len, self.group = key.shape[2], self.heads // key.shape[1]
        self.num_globals = pattern.global_index.shape[1]
        self.accumulate = accumulation_dtype(query.dtype)
        # Softmax in base 2 compares raw scores, which needs a positive factor: a sign moves into the query, exactly.
        magnitude = abs(scale) or 1.0
        threshold = 0 if dropout is None else dropout.threshold
        left, right = (min(side, self.seq_len) for side in pattern.band)
        unused = pattern.global_count
        self.arguments: dict[str, Any] = {
            **_tensor("query", query),
            **_tensor("key", key),
            **_tensor("value", value),
            "key_mask_ptr": unused if pattern.key_mask is None else pattern.key_mask.contiguous().view(torch.uint8),
            "span_ptr": unused,
            "global_mask_ptr": unused if pattern.global_mask is None else pattern.global_mask.contiguous().view(torch.uint8),
            "global_index_ptr": pattern.global_index,
            "global_count_ptr": pattern.global_count,
            "seed_ptr": unused if dropout is None else dropout.seed,
            "heads": self.heads,
            "group": self.group,
            "seq_len": self.seq_len,
            "left": left,
            "right": right,
            "num_globals": self.num_globals,
            "threshold": threshold,
            "scale_log2": magnitude * math.log2(math.e),
            "query_sign": float((scale > 0) - (scale < 0)),
            "rescale": 256 / (256 - threshold),
            "HEAD_DIM": self.head_dim,
            "BLOCK_D": max(16, triton.next_power_of_2(self.head_dim)),
            "BLOCK_G": 16,
            "HAS_MASK": pattern.key_mask is not None,
            "HAS_GLOBALS": self.num_globals > 0,
            "IS_CAUSAL": pattern.is_causal,
            "FLIP_QUERY": scale <= 0,
            "DROPOUT": dropout is not None,
            "PRECISION": _precision(query.dtype),
            "ACC": tl.float64 if query.dtype == torch.float64 else tl.float32,
        }
        self.scale, self.magnitude = scale, magnitude
        self.key_value = {"key": key, "value": value}

    def spans(self) -> Iterator[Launch]:
        """Where each text begins and ends, which the kernels of this call read."""
        if self.pattern.key_mask is not None:
            self.arguments["span_ptr"] = self.query.new_empty((self.batch, 3), dtype=torch.int32)
            yield Launch.of(text_spans, self.batch, Config(1, 1), {**self.arguments, "BLOCK": 1024})

    def of_rows(self, rows: States) -> Problem:
        """The same for the rows of global tokens, once the spans are known."""
        problem = Problem(rows, self.pattern, self.scale, self.dropout, self.target)
        problem.arguments["span_ptr"] = self.arguments["span_ptr"]
        return problem

    def config(self, kernel: str) -> Config:
        """The configuration of one of the kernels for this problem."""
        precision = self.arguments["PRECISION"]
        return self.target.config(kernel, self.head_dim, self.query.dtype, precision, self.dropout is not None)

    def runs(self) -> Iterator[dict[str, int]]:
        """Neighbouring heads of one dilation, which one launch can serve."""
        dilations = self.pattern.dilations if len(self.pattern.dilations) > 1 else self.pattern.dilations * self.heads
        first = 0
        for dilation, run in itertools.groupby(dilations):
            count = len(list(run))
            yield {"first_head": first, "run_heads": count, "dilation": min(dilation, self.seq_len)}
            first += count

    def tiles_of(self, sources: dict[str, Tensor], block: int, run: dict[str, int]) -> dict[str, Any]:
        """The arguments DESCRIPTORS and {name}_tiles: descriptors where the device and every tensor allow them."""
        use = (
            self.target.descriptors
            and run["dilation"] == 1
            and all(_fits_descriptor(states) for states in sources.values() if states.dim() > 1)
            and self.batch * self.heads * self.seq_len < 2**31
        )
        blocks = {4: [1, 1, block, self.arguments["BLOCK_D"]], 1: [block]}
        return {
            "DESCRIPTORS": use,
            **{f"{name}_tiles": _descriptor(states, blocks[states.dim()]) if use else None for name, states in sources.items()},
        }

    def tiles(self, run: dict[str, int], block: int) -> int:
        """Programs of a launch over the tokens, for every head of a run."""
        steps = triton.cdiv(self.seq_len, run["dilation"])
        return self.batch * run["run_heads"] * run["dilation"] * triton.cdiv(steps, block)

    def global_blocks(self, heads: int) -> int:
        return self.batch * heads * triton.cdiv(self.num_globals, self.arguments["BLOCK_G"])

    def splits(self, programs: int, block: int) -> int:
        """Into how many parts a sum over the text is cut."""
        return max(1, min(_TARGET_PROGRAMS // programs, triton.cdiv(self.seq_len, 4 * block)))

    def partials(self, heads: int, splits: int, *channels: int) -> Tensor:
        return self.query.new_empty((self.batch, heads, splits, self.num_globals, *channels), dtype=self.accumulate)


def _precision(dtype: torch.dtype) -> str:
    """float32 products are exact unless PyTorch was told that TF32 will do (``torch.set_float32_matmul_precision``)."""
    return "tf32" if dtype == torch.float32 and torch.get_float32_matmul_precision() != "highest" else "ieee"


def _run(launches: Iterator[Launch]) -> None:
    for launch in launches:
        launch.run()


def attention_forward(
    window: States, rows: States | None, pattern: AttentionPattern, scale: float, dropout: Dropout | None
) -> tuple[Tensor, Tensor]:
    """(out, lse) of operator ``attention``; ``rows`` are the projections of global tokens, where they have some."""
    query = window[0]
    out = torch.empty_like(query)
    lse = query.new_empty(query.shape[:3], dtype=accumulation_dtype(query.dtype))
    if query.numel():
        _run(forward_launches(window, rows, pattern, scale, dropout, out, lse, target_of(query.device)))
    return out, lse


def forward_launches(
    window: States,
    rows: States | None,
    pattern: AttentionPattern,
    scale: float,
    dropout: Dropout | None,
    out: Tensor,
    lse: Tensor,
    target: Target,
) -> Iterator[Launch]:
    """The launches that fill ``out`` and ``lse``."""
    problem = Problem(window, pattern, scale, dropout, target)
    yield from problem.spans()
    results = {**_tensor("out", out), "lse_ptr": lse}
    config = problem.config("forward")
    for run in problem.runs():
        tiles = problem.tiles_of(problem.key_value, config.block_n, run)
        available = {**problem.arguments, **results, **run, **tiles}
        yield Launch.of(window_forward, problem.tiles(run, config.block_m), config, available)
    if rows is not None and problem.num_globals:
        problem = problem.of_rows(rows)
        yield from _rows_forward_launches(problem, results)


def _rows_forward_launches(problem: Problem, results: dict[str, Any]) -> Iterator[Launch]:
    config = problem.config("rows_forward")
    blocks = problem.global_blocks(problem.heads)
    splits = problem.splits(blocks, config.block_n)
    available = {
        **problem.arguments,
        **results,
        "splits": splits,
        "partial_out_ptr": problem.partials(problem.heads, splits, problem.head_dim),
        "partial_lse_ptr": problem.partials(problem.heads, splits),
    }
    yield Launch.of(rows_forward, blocks * splits, config, available)
    yield Launch.of(rows_combine, blocks, problem.config("rows_combine"), available)


def attention_backward(
    grad_out: Tensor | None,
    grad_lse: Tensor | None,
    out: Tensor,
    lse: Tensor,
    window: States,
    rows: States | None,
    pattern: AttentionPattern,
    scale: float,
    dropout: Dropout | None,
    needs: list[bool],
    grads: list[Tensor],
) -> None:
    """Gradients of operator ``attention``, written into ``grads`` where needed."""
    if window[0].numel() == 0:
        return
    given = Given(grad_out, grad_lse, out, lse)
    _run(backward_launches(given, window, rows, pattern, scale, dropout, needs, grads, target_of(out.device)))


def backward_launches(
    given: Given,
    window: States,
    rows: States | None,
    pattern: AttentionPattern,
    scale: float,
    dropout: Dropout | None,
    needs: list[bool],
    grads: list[Tensor],
    target: Target,
) -> Iterator[Launch]:
    """The launches that fill ``grads`` where needed."""
    problem = Problem(window, pattern, scale, dropout, target)
    yield from problem.spans()
    if any(needs[:3]):
        yield from _window_backward_launches(problem, given, rows is not None, needs[:3], grads[:3])
    if rows is None or not any(needs[3:]):
        return
    if problem.num_globals:
        yield from _rows_backward_launches(problem.of_rows(rows), given, needs[3:], grads[3:])
    else:
        for grad in grads[3:]:
            grad.zero_()


@dataclasses.dataclass(frozen=True)
class Given:
    """What a backward pass starts from."""

    grad_out: Tensor | None
    grad_lse: Tensor | None
    out: Tensor
    lse: Tensor

    def prepared(self, problem: Problem, num_rows: int, kind: str, available: dict[str, Any]) -> Iterator[Launch]:
        """delta and normaliser of ``num_rows`` rows of each head, which are then available."""
        # Rows begin at multiples of 16 bytes, as the copy engine wants them.
        row_stride = num_rows if kind == "rows" else triton.cdiv(num_rows, 4) * 4
        shape = (problem.batch, problem.heads, row_stride)
        zeros = self.out if self.grad_out is None else self.grad_out
        available.update(
            {
                **_tensor("grad_out", zeros),
                **_tensor("grad_lse", self.lse if self.grad_lse is None else self.grad_lse),
                **_tensor("out", self.out),
                "lse_ptr": self.lse,
                "row_stride": row_stride,
                "delta_ptr": self.lse.new_empty(shape),
                "normaliser_ptr": self.lse.new_empty(shape),
            }
        )
        config = problem.config("prepare")
        own = {
            "HAS_GRAD_OUT": self.grad_out is not None,
            "HAS_GRAD_LSE": self.grad_lse is not None,
            "HAS_GLOBAL_ROWS": kind == "window with rows" and problem.pattern.global_mask is not None,
            "GATHER": kind == "rows",
        }
        programs = problem.batch * problem.heads * triton.cdiv(row_stride, config.block_m)
        yield Launch.of(prepare_rows, programs, config, {**available, **own})


def _window_backward_launches(
    problem: Problem, given: Given, with_rows: bool, needs: list[bool], grads: list[Tensor]
) -> Iterator[Launch]:
    """The launches that fill the gradients of query, key and value."""
    available = dict(problem.arguments)
    yield from given.prepared(problem, problem.seq_len, "window with rows" if with_rows else "window", available)
    need_query, need_key, need_value = needs
    if need_query:
        config = problem.config("backward_query")
        available.update({**_tensor("grad_query", grads[0]), "grad_scale": problem.scale})
        for run in problem.runs():
            tiles = problem.tiles_of(problem.key_value, config.block_n, run)
            yield Launch.of(window_grad_query, problem.tiles(run, config.block_m), config, {**available, **run, **tiles})
    if need_key or need_value:
        yield from _key_value_launches(problem, available, need_key, need_value, grads)


def _key_value_launches(
    problem: Problem, available: dict[str, Any], need_key: bool, need_value: bool, grads: list[Tensor]
) -> Iterator[Launch]:
    available.update(
        {
            **_tensor("grad_key", grads[1] if need_key else available["key_ptr"]),
            **_tensor("grad_value", grads[2] if need_value else available["value_ptr"]),
            "grad_scale": problem.magnitude,
            "NEED_KEY": need_key,
            "NEED_VALUE": need_value,
        }
    )
    runs = list(problem.runs())
    config = problem.config("backward_key_value")
    # Query heads of one group whose dilations differ have strands that do not line up: each head then gets sums of its own.
    mixed = problem.group > 1 and len(runs) > 1
    sums = dict(available)
    if mixed:
        shape = (problem.batch, problem.heads, problem.seq_len, problem.head_dim)
        for name, needed in (("grad_key", need_key), ("grad_value", need_value)):
            if needed:
                sums.update(_tensor(name, problem.query.new_empty(shape, dtype=problem.accumulate)))
    members = 1 if mixed else problem.group
    for run in runs:
        programs = problem.tiles(run, config.block_n) // members
        rows = {"query": sums["query_ptr"], "grad_out": sums["grad_out_ptr"]}
        numbers = {name: sums[f"{name}_ptr"].view(-1) for name in ("delta", "normaliser")}
        tiles = problem.tiles_of({**rows, **numbers}, config.block_m, run)
        yield Launch.of(window_grad_key_value, programs, config, {**sums, **run, **tiles, "members": members})
    if mixed:
        for name, needed in (("grad_key_ptr", need_key), ("grad_value_ptr", need_value)):
            if needed:
                available[name].copy_(sums[name].unflatten(1, (-1, problem.group)).sum(2))
    if problem.num_globals:
        yield from _columns_launches(problem, available)


def _columns_launches(problem: Problem, available: dict[str, Any]) -> Iterator[Launch]:
    """Add what queries whose windows do not hold them give to global keys."""
    config = problem.config("columns")
    splits = problem.splits(problem.global_blocks(problem.heads), config.block_m)
    needed = [name for name in ("key", "value") if available[f"NEED_{name.upper()}"]]
    partials = {f"partial_{name}_ptr": available["global_count_ptr"] for name in ("key", "value")}
    partials.update({f"partial_{name}_ptr": problem.partials(problem.heads, splits, problem.head_dim) for name in needed})
    available = {**available, **partials, "splits": splits}
    for run in problem.runs():
        programs = problem.global_blocks(run["run_heads"]) * splits
        yield Launch.of(columns_grad_key_value, programs, config, {**available, **run})
    for name in needed:
        target = _tensor("target", available[f"grad_{name}_ptr"])
        yield _reduce_launch(problem, available[f"partial_{name}_ptr"], target, problem.group, splits, scatter=True)


def _reduce_launch(
    problem: Problem, partial: Tensor, target: dict[str, Any], group: int, splits: int, *, scatter: bool
) -> Launch:
    """Sum over the splits and over the ``group`` heads that share a target."""
    heads = problem.heads // group
    own = {"partial_ptr": partial, **target, "heads": heads, "parts": group * splits, "SCATTER": scatter}
    return Launch.of(
        reduce_partials, problem.global_blocks(heads), problem.config("reduce"), {**problem.arguments, **own}
    )


def _rows_backward_launches(problem: Problem, given: Given, needs: list[bool], grads: list[Tensor]) -> Iterator[Launch]:
    """The launches that fill the gradients of query_global, key_global and value_global."""
    available = dict(problem.arguments)
    yield from given.prepared(problem, problem.num_globals, "rows", available)
    need_query, need_key, need_value = needs
    if need_query:
        config = problem.config("rows_backward_query")
        blocks = problem.global_blocks(problem.heads)
        splits = problem.splits(blocks, config.block_n)
        partial = problem.partials(problem.heads, splits, problem.head_dim)
        available.update({"partial_ptr": partial, "splits": splits, "grad_scale": problem.scale})
        yield Launch.of(rows_grad_query, blocks * splits, config, available)
        yield _reduce_launch(problem, partial, _tensor("target", grads[0]), 1, splits, scatter=False)
    if need_key or need_value:
        config = problem.config("rows_backward_key_value")
        available.update(
            {
                **_tensor("grad_key", grads[1] if need_key else available["key_ptr"]),
                **_tensor("grad_value", grads[2] if need_value else available["value_ptr"]),
                "grad_scale": problem.magnitude,
                "NEED_KEY": need_key,
                "NEED_VALUE": need_value,
            }
        )
        programs = problem.batch * (problem.heads // problem.group) * triton.cdiv(problem.seq_len, config.block_n)
        yield Launch.of(rows_grad_key_value, programs, config, available)
