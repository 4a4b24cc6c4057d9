"""The host side of the Triton backend: allocations, grids and launches; no autograd, and no value is read back.

Each direction is first a list of steps, launches of kernels and what PyTorch does between them, then run in order. The launches
of the same lists, compiled instead of run, are what ``bench inspect`` and the ahead-of-time tests look at, so what they see is
what runs. (Absorbed rows are matrix products of PyTorch's, and one small kernel: :mod:`absorbed_rows`.) Of windows that leave
out nothing, PyTorch may compute the forward instead (:mod:`fused_dense`); the list then holds the global rows alone.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from longformer_triton.kernels.dropout import Dropout
from longformer_triton.kernels.layout import QKV, ceil_div, empty_rows
from longformer_triton.kernels.pattern import AttentionPattern
from longformer_triton.kernels.precision import accumulation_dtype
from longformer_triton.kernels.triton_impl import fused_dense
from longformer_triton.kernels.triton_impl.absorbed_rows import rows_backward, rows_forward
from longformer_triton.kernels.triton_impl.backward_global import (
    global_columns_grad_key_value,
    global_rows_grad_key_value,
    global_rows_grad_query,
    reduce_partials,
)
from longformer_triton.kernels.triton_impl.backward_key_value import window_grad_key_value
from longformer_triton.kernels.triton_impl.backward_prepare import prepare_rows
from longformer_triton.kernels.triton_impl.backward_query import window_grad_query
from longformer_triton.kernels.triton_impl.descriptors import fits_descriptor, fitting_copy, uses_descriptors
from longformer_triton.kernels.triton_impl.forward import window_forward
from longformer_triton.kernels.triton_impl.global_rows import global_rows_combine, global_rows_forward
from longformer_triton.kernels.triton_impl.problem import BackwardInputs, Problem, tensor_arguments
from longformer_triton.kernels.triton_impl.steps import HostStep, Launch, Step
from longformer_triton.kernels.triton_impl.tuning import Config, Target, target_of

__all__ = ["attention_backward", "attention_forward", "backward_steps", "forward_steps", "rows_backward", "rows_forward"]

# By the names of kernels' arguments.
Arguments = dict[str, Any]
# Heads that share keys have gradients of their own before these are added up: bytes that key's may take at once, and value's.
_MOST_SUMS_BYTES = 2**30


def _run(steps: Iterator[Step], place: Tensor) -> None:
    """Run steps in order on the device that holds ``place``, current or not; tensors of one may be freed before the next."""
    with torch.cuda.device_of(place):
        for step in steps:
            step.run()


def attention_forward(
    local_qkv: QKV, global_qkv: QKV | None, pattern: AttentionPattern, scale: float, dropout: Dropout | None
) -> tuple[Tensor, Tensor]:
    """(out, lse) of operator ``attention``; ``global_qkv`` are the projections of global tokens, where they have some."""
    query = local_qkv[0]
    dense = fused_dense.forward(local_qkv, pattern, scale, dropout)
    if dense is None:
        out = empty_rows(query)
        lse = query.new_empty(query.shape[:3], dtype=accumulation_dtype(query.dtype))
    else:
        out, lse = dense
    if query.numel():
        target, need_window = target_of(query.device), dense is None
        _run(forward_steps(local_qkv, global_qkv, pattern, scale, dropout, out, lse, target, need_window=need_window), query)
    return out, lse


def forward_steps(
    local_qkv: QKV,
    global_qkv: QKV | None,
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
    problem = Problem(local_qkv, pattern, scale, dropout, target)
    results = {**tensor_arguments("out", out), "lse_ptr": lse}
    if need_window:
        yield from _window_forward_steps(problem, results)
    if global_qkv is not None and problem.num_globals:
        yield from _rows_forward_steps(problem.of_rows(global_qkv), results)


def _window_forward_steps(problem: Problem, results: Arguments) -> Iterator[Step]:
    for run in problem.runs():
        config, tiles = _over_keys(problem, run, "window_forward")
        available = {**problem.arguments, **results, **tiles, **run}
        yield Launch.of(window_forward, problem.window_programs(run, config.block_m), config, available)


def _over_keys(problem: Problem, run: dict[str, int], kernel: str) -> tuple[Config, Arguments]:
    """The configuration of a kernel whose queries walk over the window's keys, and the tiles that it loads of these."""
    by_descriptors = uses_descriptors(problem.target, run["dilation"], problem.key_value.values())
    config = problem.config(kernel, descriptors=by_descriptors)
    return config, problem.tiles(problem.key_value, config.block_n, descriptors=by_descriptors)


def _rows_forward_steps(problem: Problem, results: Arguments) -> Iterator[Step]:
    config = problem.config("global_rows_forward")
    blocks = problem.global_blocks(problem.heads)
    splits = problem.splits(blocks, config.block_n)
    available = {
        **problem.arguments,
        **results,
        "splits": splits,
        "partial_out_ptr": problem.partials(problem.heads, splits, problem.head_dim),
        "partial_lse_ptr": problem.partials(problem.heads, splits),
    }
    yield Launch.of(global_rows_forward, blocks * splits, config, available)
    yield Launch.of(global_rows_combine, blocks, problem.config("global_rows_combine"), available)


def attention_backward(
    grad_out: Tensor | None,
    grad_lse: Tensor | None,
    out: Tensor,
    lse: Tensor,
    local_qkv: QKV,
    global_qkv: QKV | None,
    pattern: AttentionPattern,
    scale: float,
    dropout: Dropout | None,
    needs: list[bool],
    grads: list[Tensor],
) -> None:
    """Gradients of operator ``attention``, written into ``grads`` where needed."""
    if local_qkv[0].numel() == 0:
        return
    given = BackwardInputs(grad_out, grad_lse, out, lse)
    _run(backward_steps(given, local_qkv, global_qkv, pattern, scale, dropout, needs, grads, target_of(out.device)), out)


def backward_steps(
    given: BackwardInputs,
    local_qkv: QKV,
    global_qkv: QKV | None,
    pattern: AttentionPattern,
    scale: float,
    dropout: Dropout | None,
    needs: list[bool],
    grads: list[Tensor],
    target: Target,
) -> Iterator[Step]:
    """What fills ``grads`` where needed."""
    problem = Problem(local_qkv, pattern, scale, dropout, target)
    if any(needs[:3]):
        yield from _window_backward_steps(problem, given, global_qkv is not None, needs[:3], grads[:3])
    if global_qkv is None or not any(needs[3:]):
        return
    if problem.num_globals:
        yield from _rows_backward_steps(problem.of_rows(global_qkv), given, needs[3:], grads[3:])
    else:
        yield from (HostStep(grad.zero_) for grad in grads[3:])


def prepare_step(
    problem: Problem, given: BackwardInputs, *, of_globals: bool = False, without_globals: bool = False
) -> tuple[Launch, Arguments]:
    """The launch that makes delta and lse_log2, and the arguments that the launches after it need of it.

    They are of all tokens, of the global tokens alone, or of all others.
    """
    # Rows begin at multiples of 16 bytes, as the copy engine wants them.
    row_stride = problem.num_globals if of_globals else ceil_div(problem.seq_len, 4) * 4
    shape = (problem.batch, problem.heads, row_stride)
    # Where only lse has a gradient, that of out is a zero seen through strides of zero.
    grad_out = given.out.new_zeros(()).expand_as(given.out) if given.grad_out is None else given.grad_out
    # The gradient of a sum does not fit, nor does a piece of a larger one that begins anywhere. A copy that does keeps the
    # backward pass on the copy engine, like the forward pass.
    dilation = min(run["dilation"] for run in problem.runs())
    by_descriptors = not of_globals and uses_descriptors(problem.target, dilation, [problem.query])
    # Kernels multiply a channel's number by its stride in 32 bits.
    if (by_descriptors and not fits_descriptor(grad_out)) or grad_out.stride(-1) * problem.head_dim >= 2**31:
        grad_out = fitting_copy(grad_out)
    prepared = {
        **tensor_arguments("grad_out", grad_out),
        "row_stride": row_stride,
        "delta_ptr": given.lse.new_empty(shape),
        "lse_log2_ptr": given.lse.new_empty(shape),
    }
    available = {
        **problem.arguments,
        **prepared,
        **tensor_arguments("grad_lse", given.lse if given.grad_lse is None else given.grad_lse),
        **tensor_arguments("out", given.out),
        "lse_ptr": given.lse,
        "HAS_GRAD_LSE": given.grad_lse is not None,
        "SKIP_GLOBALS": without_globals and problem.pattern.global_mask is not None,
        "GATHER": of_globals,
    }
    config = problem.config("prepare_rows")
    programs = problem.batch * problem.heads * ceil_div(row_stride, config.block_m)
    return Launch.of(prepare_rows, programs, config, available), prepared


def _window_backward_steps(
    problem: Problem, given: BackwardInputs, with_rows: bool, needs: list[bool], grads: list[Tensor]
) -> Iterator[Step]:
    """What fills the gradients of query, key and value."""
    launch, prepared = prepare_step(problem, given, without_globals=with_rows)
    yield launch
    need_query, need_key, need_value = needs
    if need_query:
        yield from _query_steps(problem, prepared, grads[0])
    if need_key or need_value:
        yield from _key_value_steps(problem, prepared, need_key, need_value, grads)


def _query_steps(problem: Problem, prepared: Arguments, grad: Tensor) -> Iterator[Step]:
    results = {**tensor_arguments("grad_query", grad), "grad_scale": problem.scale * problem.arguments["rescale"]}
    for run in problem.runs():
        config, tiles = _over_keys(problem, run, "window_grad_query")
        available = {**problem.arguments, **prepared, **results, **tiles, **run}
        yield Launch.of(window_grad_query, problem.window_programs(run, config.block_m), config, available)


def _key_value_results(problem: Problem, need_key: bool, need_value: bool, grads: list[Tensor]) -> Arguments:
    """Where gradients of key and value go, if they are needed; kernels do not write to what stands in for the others."""
    key, value = problem.key_value.values()
    return {
        **tensor_arguments("grad_key", grads[1] if need_key else key),
        **tensor_arguments("grad_value", grads[2] if need_value else value),
        "key_scale": problem.magnitude * problem.arguments["rescale"],
        "value_scale": problem.arguments["rescale"],
        "NEED_KEY": need_key,
        "NEED_VALUE": need_value,
    }


def _key_value_steps(
    problem: Problem, prepared: Arguments, need_key: bool, need_value: bool, grads: list[Tensor]
) -> Iterator[Step]:
    """What fills the gradients of key and value."""
    needed = [name for name, is_needed in (("key", need_key), ("value", need_value)) if is_needed]
    results = _key_value_results(problem, need_key, need_value, grads)
    if problem.group == 1:
        yield from _key_value_launches(problem, prepared, results, range(problem.heads))
    else:
        yield from _grouped_key_value_steps(problem, prepared, results, needed)
    if problem.num_globals:
        yield from _columns_steps(problem, prepared, results, needed)


def _grouped_key_value_steps(problem: Problem, prepared: Arguments, results: Arguments, needed: list[str]) -> Iterator[Step]:
    """The same for heads that share keys, some key heads at a time: each head has sums of its own, which are then added up."""
    group, key_heads = problem.group, problem.heads // problem.group
    of_one = torch.Size((problem.batch, group, problem.seq_len, problem.head_dim)).numel() * problem.acc_dtype.itemsize
    at_once = min(key_heads, max(1, _MOST_SUMS_BYTES // of_one))
    shape = (problem.batch, at_once * group, problem.seq_len, problem.head_dim)
    sums = {name: problem.query.new_empty(shape, dtype=problem.acc_dtype) for name in needed}
    for first in range(0, key_heads, at_once):
        count = min(at_once, key_heads - first)
        own = {name: tensor[:, : count * group] for name, tensor in sums.items()}
        into = {name: value for key, tensor in own.items() for name, value in tensor_arguments(f"grad_{key}", tensor).items()}
        heads = range(first * group, (first + count) * group)
        yield from _key_value_launches(problem, prepared, {**results, **into}, heads)
        for name in needed:
            of_key_heads = results[f"grad_{name}_ptr"][:, first : first + count]
            yield HostStep(functools.partial(_sum_groups, own[name], of_key_heads))


def _key_value_launches(problem: Problem, prepared: Arguments, sums: Arguments, heads: range) -> Iterator[Launch]:
    """The heads whose gradients ``sums`` holds: a launch for each run of one dilation."""
    states = {"query": problem.query, "grad_out": prepared["grad_out_ptr"]}
    numbers = {name: prepared[f"{name}_ptr"].view(-1) for name in ("delta", "lse_log2")}
    for run in problem.runs(heads):
        by_descriptors = uses_descriptors(problem.target, run["dilation"], states.values())
        config = problem.config("window_grad_key_value", descriptors=by_descriptors)
        tiles = problem.tiles({**states, **numbers}, config.block_m, descriptors=by_descriptors)
        begun = run["first_head"] - heads.start
        own = {name: sums[name][:, begun:] for name in ("grad_key_ptr", "grad_value_ptr")} if begun else {}
        available = {**problem.arguments, **prepared, **sums, **own, **tiles, **run}
        yield Launch.of(window_grad_key_value, problem.window_programs(run, config.block_n), config, available)


def _sum_groups(of_heads: Tensor, of_key_heads: Tensor) -> None:
    """Add the gradients (batch, heads, ...) of heads that share keys, into (batch, key_heads, ...)."""
    of_key_heads.copy_(of_heads.unflatten(1, (of_key_heads.shape[1], -1)).sum(2))


def _columns_steps(problem: Problem, prepared: Arguments, results: Arguments, needed: list[str]) -> Iterator[Step]:
    """Add what queries whose windows do not hold them give to global keys."""
    config = problem.config("global_columns_grad_key_value")
    splits = problem.splits(problem.global_blocks(problem.heads), config.block_m)
    partials = {
        name: problem.partials(problem.heads, splits, problem.head_dim) if name in needed else problem.unused
        for name in ("key", "value")
    }
    sums = {"splits": splits, **{f"partial_{name}_ptr": partial for name, partial in partials.items()}}
    for run in problem.runs():
        programs = problem.global_blocks(run["run_heads"]) * splits
        available = {**problem.arguments, **prepared, **results, **sums, **run}
        yield Launch.of(global_columns_grad_key_value, programs, config, available)
    for name in needed:
        target = tensor_arguments("target", results[f"grad_{name}_ptr"])
        yield _reduce_step(problem, partials[name], target, problem.group, splits, scatter=True)


def _reduce_step(problem: Problem, partial: Tensor, target: Arguments, group: int, splits: int, *, scatter: bool) -> Launch:
    """Sum over the splits and over the ``group`` heads that share a target."""
    heads = problem.heads // group
    own = {"partial_ptr": partial, **target, "heads": heads, "parts": group * splits, "SCATTER": scatter}
    config = problem.config("reduce_partials")
    return Launch.of(reduce_partials, problem.global_blocks(heads), config, {**problem.arguments, **own})


def _rows_backward_steps(problem: Problem, given: BackwardInputs, needs: list[bool], grads: list[Tensor]) -> Iterator[Step]:
    """What fills the gradients of query_global, key_global and value_global."""
    launch, prepared = prepare_step(problem, given, of_globals=True)
    yield launch
    need_query, need_key, need_value = needs
    if need_query:
        config = problem.config("global_rows_grad_query")
        blocks = problem.global_blocks(problem.heads)
        splits = problem.splits(blocks, config.block_n)
        partial = problem.partials(problem.heads, splits, problem.head_dim)
        sums = {"partial_ptr": partial, "splits": splits, "grad_scale": problem.scale * problem.arguments["rescale"]}
        yield Launch.of(global_rows_grad_query, blocks * splits, config, {**problem.arguments, **prepared, **sums})
        yield _reduce_step(problem, partial, tensor_arguments("target", grads[0]), 1, splits, scatter=False)
    if need_key or need_value:
        config = problem.config("global_rows_grad_key_value")
        results = _key_value_results(problem, need_key, need_value, grads)
        programs = problem.batch * (problem.heads // problem.group) * ceil_div(problem.seq_len, config.block_n)
        yield Launch.of(global_rows_grad_key_value, programs, config, {**problem.arguments, **prepared, **results})
