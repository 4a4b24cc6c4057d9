"""The host side of the Triton backend: allocations, grids and launches; no autograd, and no value is read back.

Each direction is first a list of steps, launches of kernels and what PyTorch does between them, then run in order. The launches
of the same lists, compiled instead of run, are what ``bench inspect`` and the ahead-of-time tests look at, so what they see is
what runs. Of windows that leave out nothing, PyTorch may compute the forward instead (:mod:`fused_dense`); the list then holds
the global rows alone.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from longformer_triton.kernels.dropout import Dropout
from longformer_triton.kernels.pattern import AttentionPattern
from longformer_triton.kernels.precision import accumulation_dtype
from longformer_triton.kernels.states import States, ceil_div, empty_rows
from longformer_triton.kernels.triton_impl import fused_dense, global_rows
from longformer_triton.kernels.triton_impl.backward_global import (
    columns_grad_key_value,
    reduce_partials,
    rows_grad_key_value,
    rows_grad_query,
)
from longformer_triton.kernels.triton_impl.backward_key_value import window_grad_key_value
from longformer_triton.kernels.triton_impl.backward_query import window_grad_query
from longformer_triton.kernels.triton_impl.forward import window_forward
from longformer_triton.kernels.triton_impl.problem import Given, Problem, tensor_arguments
from longformer_triton.kernels.triton_impl.steps import HostStep, Launch, Step
from longformer_triton.kernels.triton_impl.tuning import Target, target_of
from longformer_triton.kernels.triton_impl.wide_rows import rows_backward, rows_forward

__all__ = ["attention_backward", "attention_forward", "backward_steps", "forward_steps", "rows_backward", "rows_forward"]


def _run(steps: Iterator[Step], place: Tensor) -> None:
    """Run steps in order on the device that holds ``place``, current or not; tensors of one may be freed before the next."""
    with torch.cuda.device_of(place):
        for step in steps:
            step.run()


def attention_forward(
    window: States, rows: States | None, pattern: AttentionPattern, scale: float, dropout: Dropout | None
) -> tuple[Tensor, Tensor]:
    """(out, lse) of operator ``attention``; ``rows`` are the projections of global tokens, where they have some."""
    query = window[0]
    dense = fused_dense.forward(window, pattern, scale, dropout)
    if dense is None:
        out = empty_rows(query)
        lse = query.new_empty(query.shape[:3], dtype=accumulation_dtype(query.dtype))
    else:
        out, lse = dense
    if query.numel():
        target, need_window = target_of(query.device), dense is None
        _run(forward_steps(window, rows, pattern, scale, dropout, out, lse, target, need_window=need_window), query)
    return out, lse


def forward_steps(
    window: States,
    rows: States | None,
    pattern: AttentionPattern,
    scale: float,
    dropout: Dropout | None,
    out: Tensor,
    lse: Tensor,
    target: Target,
    *,
    need_window: bool = True,
) -> Iterator[Step]:
    """What fills ``out`` and ``lse``; global rows alone where these hold the window's results already."""
    problem = Problem(window, pattern, scale, dropout, target)
    results = {**tensor_arguments("out", out), "lse_ptr": lse}
    if need_window:
        config, tiles = problem.config_and_tiles("window_forward", "block_n", problem.key_value)
        for run in problem.runs():
            available = {**problem.arguments, **results, **run, **tiles}
            yield Launch.of(window_forward, problem.window_programs(run, config.block_m), config, available)
    if rows is not None and problem.num_globals:
        problem = problem.of_rows(rows)
        yield from _rows_forward_steps(problem, results)


def _rows_forward_steps(problem: Problem, results: dict[str, Any]) -> Iterator[Step]:
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
    yield Launch.of(global_rows.rows_forward, blocks * splits, config, available)
    yield Launch.of(global_rows.rows_combine, blocks, problem.config("rows_combine"), available)


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
    _run(backward_steps(given, window, rows, pattern, scale, dropout, needs, grads, target_of(out.device)), out)


def backward_steps(
    given: Given,
    window: States,
    rows: States | None,
    pattern: AttentionPattern,
    scale: float,
    dropout: Dropout | None,
    needs: list[bool],
    grads: list[Tensor],
    target: Target,
) -> Iterator[Step]:
    """What fills ``grads`` where needed."""
    problem = Problem(window, pattern, scale, dropout, target)
    if any(needs[:3]):
        yield from _window_backward_steps(problem, given, rows is not None, needs[:3], grads[:3])
    if rows is None or not any(needs[3:]):
        return
    if problem.num_globals:
        yield from _rows_backward_steps(problem.of_rows(rows), given, needs[3:], grads[3:])
    else:
        yield from (HostStep(grad.zero_) for grad in grads[3:])


def _window_backward_steps(
    problem: Problem, given: Given, with_rows: bool, needs: list[bool], grads: list[Tensor]
) -> Iterator[Step]:
    """What fills the gradients of query, key and value."""
    launch, prepared = given.prepare(problem, without_globals=with_rows)
    yield launch
    available = {**problem.arguments, **prepared}
    need_query, need_key, need_value = needs
    if need_query:
        config, tiles = problem.config_and_tiles("window_grad_query", "block_n", problem.key_value)
        available.update(
            {**tensor_arguments("grad_query", grads[0]), "grad_scale": problem.scale * problem.arguments["rescale"]}
        )
        for run in problem.runs():
            yield Launch.of(
                window_grad_query, problem.window_programs(run, config.block_m), config, {**available, **run, **tiles}
            )
    if need_key or need_value:
        yield from _key_value_steps(problem, available, need_key, need_value, grads)


def _grad_key_value_arguments(
    problem: Problem, available: dict[str, Any], need_key: bool, need_value: bool, grads: list[Tensor]
) -> dict[str, Any]:
    """Where gradients of key and value go, if they are needed."""
    return {
        **tensor_arguments("grad_key", grads[1] if need_key else available["key_ptr"]),
        **tensor_arguments("grad_value", grads[2] if need_value else available["value_ptr"]),
        "key_scale": problem.magnitude * problem.arguments["rescale"],
        "value_scale": problem.arguments["rescale"],
        "NEED_KEY": need_key,
        "NEED_VALUE": need_value,
    }


def _key_value_steps(
    problem: Problem, available: dict[str, Any], need_key: bool, need_value: bool, grads: list[Tensor]
) -> Iterator[Step]:
    """What fills the gradients of key and value; heads that share keys have sums of their own first."""
    available = {**available, **_grad_key_value_arguments(problem, available, need_key, need_value, grads)}
    needed = [name for name, is_needed in (("key", need_key), ("value", need_value)) if is_needed]
    sums = dict(available)
    if problem.group > 1:
        shape = (problem.batch, problem.heads, problem.seq_len, problem.head_dim)
        for name in needed:
            sums.update(tensor_arguments(f"grad_{name}", problem.query.new_empty(shape, dtype=problem.accumulate)))
    rows = {"query": sums["query_ptr"], "grad_out": sums["grad_out_ptr"]}
    numbers = {name: sums[f"{name}_ptr"].view(-1) for name in ("delta", "normaliser")}
    config, tiles = problem.config_and_tiles("window_grad_key_value", "block_m", rows, numbers)
    for run in problem.runs():
        yield Launch.of(window_grad_key_value, problem.window_programs(run, config.block_n), config, {**sums, **run, **tiles})
    if problem.group > 1:
        for name in needed:
            yield HostStep(functools.partial(_sum_groups, sums[f"grad_{name}_ptr"], available[f"grad_{name}_ptr"]))
    if problem.num_globals:
        yield from _columns_steps(problem, available, needed)


def _sum_groups(of_heads: Tensor, of_key_heads: Tensor) -> None:
    """Add the gradients (batch, heads, ...) of heads that share keys, into (batch, key_heads, ...)."""
    of_key_heads.copy_(of_heads.unflatten(1, (of_key_heads.shape[1], -1)).sum(2))


def _columns_steps(problem: Problem, available: dict[str, Any], needed: list[str]) -> Iterator[Step]:
    """Add what queries whose windows do not hold them give to global keys."""
    config = problem.config("columns_grad_key_value")
    splits = problem.splits(problem.global_blocks(problem.heads), config.block_m)
    partials = {f"partial_{name}_ptr": available["global_count_ptr"] for name in ("key", "value")}
    partials.update({f"partial_{name}_ptr": problem.partials(problem.heads, splits, problem.head_dim) for name in needed})
    available = {**available, **partials, "splits": splits}
    for run in problem.runs():
        programs = problem.global_blocks(run["run_heads"]) * splits
        yield Launch.of(columns_grad_key_value, programs, config, {**available, **run})
    for name in needed:
        target = tensor_arguments("target", available[f"grad_{name}_ptr"])
        yield _reduce_launch(problem, available[f"partial_{name}_ptr"], target, problem.group, splits, scatter=True)


def _reduce_launch(
    problem: Problem, partial: Tensor, target: dict[str, Any], group: int, splits: int, *, scatter: bool
) -> Launch:
    """Sum over the splits and over the ``group`` heads that share a target."""
    heads = problem.heads // group
    own = {"partial_ptr": partial, **target, "heads": heads, "parts": group * splits, "SCATTER": scatter}
    return Launch.of(
        reduce_partials, problem.global_blocks(heads), problem.config("reduce_partials"), {**problem.arguments, **own}
    )


def _rows_backward_steps(problem: Problem, given: Given, needs: list[bool], grads: list[Tensor]) -> Iterator[Step]:
    """What fills the gradients of query_global, key_global and value_global."""
    launch, prepared = given.prepare(problem, of_globals=True)
    yield launch
    available = {**problem.arguments, **prepared}
    need_query, need_key, need_value = needs
    if need_query:
        config = problem.config("rows_grad_query")
        blocks = problem.global_blocks(problem.heads)
        splits = problem.splits(blocks, config.block_n)
        partial = problem.partials(problem.heads, splits, problem.head_dim)
        grad_scale = problem.scale * problem.arguments["rescale"]
        available.update({"partial_ptr": partial, "splits": splits, "grad_scale": grad_scale})
        yield Launch.of(rows_grad_query, blocks * splits, config, available)
        yield _reduce_launch(problem, partial, tensor_arguments("target", grads[0]), 1, splits, scatter=False)
    if need_key or need_value:
        config = problem.config("rows_grad_key_value")
        available.update(_grad_key_value_arguments(problem, available, need_key, need_value, grads))
        programs = problem.batch * (problem.heads // problem.group) * ceil_div(problem.seq_len, config.block_n)
        yield Launch.of(rows_grad_key_value, programs, config, available)
