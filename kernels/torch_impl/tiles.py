"""The arithmetic of one block of queries against sets of keys, in PyTorch: what :mod:`blockwise` runs in a loop.

Forward, with s = scale q k^T over every key of every set:

    lse = log sum_j exp(s_j)        p_j = exp(s_j - lse)        out = sum_j f_j p_j v_j

where f is the dropout factor (1 without dropout). Backward, with delta = <dout, out> - dlse (+ dkept * kept):

    dv_j = f_j p_j dout    ds_j = p_j (f_j (<dout, v_j> + dkept) - delta)    dq = scale sum_j ds_j k_j    dk_j = scale ds_j q

(FlashAttention-2, arXiv 2307.08691, section 3), where p is divided by its sum, which is 1 but for rounding. Exponentials are
taken in base 2, which is the faster function on CPUs too.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from longformer_triton.kernels.workspace import Workspace

LOG2E = math.log2(math.e)
# Finite: exp2 of -inf takes a slow path on CPUs, and -inf - -inf would be NaN in rows that see nothing.
FLOOR = -1e30
# A row with this log-sum-exp has no probability anywhere, and so no gradient.
NO_PROBABILITY = 1e30


class KeySet(NamedTuple):
    """Keys that a block of queries attends to; the sets of one block are disjoint."""

    key: Tensor  # [heads, keys, head_dim]
    value: Tensor  # [heads, keys, value_dim]
    bias: Tensor | None  # [queries, keys] or [1, keys], 0 where visible, FLOOR where not; None: all visible
    factor: Tensor | None  # [heads, queries, keys], dropout's 0 or 256 / (256 - t); None: no dropout


class Needs(NamedTuple):
    """Which gradients are wanted."""

    query: bool
    key: bool
    value: bool


def floor_where(hidden: Tensor, dtype: torch.dtype) -> Tensor:
    """FLOOR where hidden, 0 elsewhere."""
    return torch.zeros(hidden.shape, dtype=dtype, device=hidden.device).masked_fill_(hidden, FLOOR)


def bias_from(visible: Tensor, dtype: torch.dtype) -> Tensor | None:
    """0 where visible, FLOOR elsewhere; None when everything is visible."""
    return None if bool(visible.all()) else floor_where(~visible, dtype)


def _scores_log2(query: Tensor, keys: KeySet, scale: float, out: Tensor) -> Tensor:
    """[heads, queries, keys]: scale * log2(e) * q k^T, FLOOR where a key is not visible."""
    # With beta = 0 the first argument only stands there: its values, NaN included, are not read.
    bias, beta = (out, 0) if keys.bias is None else (keys.bias.expand(out.shape), 1)
    return torch.baddbmm(bias, query, keys.key.transpose(1, 2), beta=beta, alpha=scale * LOG2E, out=out)


def _row_sums(parts: Sequence[Tensor]) -> Tensor:
    """[heads, queries, 1]: the sum over the keys of all sets."""
    return functools.reduce(torch.add, [part.sum(-1, keepdim=True) for part in parts])


def forward_tile(
    query: Tensor, key_sets: Sequence[KeySet], scale: float, workspace: Workspace, *, want_kept: bool = False
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Attention of one block of queries.

    Args:
        query: [heads, queries, head_dim], in the accumulation type.
        key_sets: at least one, each with at least one key. A row that sees no key gets finite nonsense.
        scale: factor on the scores.
        workspace: scratch tensors to reuse.
        want_kept: whether to compute ``kept``.

    Returns:
        out [heads, queries, value_dim], valid until the workspace is used again; lse [heads, queries], natural log; kept
        [heads, queries], the sum of the probabilities after dropout, or None if not wanted or without dropout.
    """
    # Of each set [heads, queries, keys], then overwritten by unnormalised probabilities
    heads, rows, _ = query.shape
    probabilities = [
        _scores_log2(query, keys, scale, workspace.take(f"scores {number}", query, heads, rows, keys.key.shape[1]))
        for number, keys in enumerate(key_sets)
    ]
    row_max = functools.reduce(torch.maximum, [scores.amax(-1, keepdim=True) for scores in probabilities])
    for scores in probabilities:
        scores.sub_(row_max).exp2_()
    row_sum = _row_sums(probabilities)
    for part, keys in zip(probabilities, key_sets, strict=True):
        if keys.factor is not None:
            part.mul_(keys.factor)
    has_dropout = any(keys.factor is not None for keys in key_sets)
    kept = _row_sums(probabilities).div_(row_sum).squeeze(-1) if want_kept and has_dropout else None
    value_dim = key_sets[0].value.shape[2]
    out = torch.bmm(probabilities[0], key_sets[0].value, out=workspace.take("out", query, heads, rows, value_dim))
    for part, keys in zip(probabilities[1:], key_sets[1:], strict=True):
        out.baddbmm_(part, keys.value)
    out.div_(row_sum)
    lse = row_max.add_(row_sum.log2_()).mul_(1 / LOG2E).squeeze(-1)
    return out, lse, kept


def join_keys(out: Tensor, lse: Tensor, query: Tensor, keys: KeySet, scale: float, workspace: Workspace) -> None:
    """Let more keys take part in a softmax that has been computed over others.

    Args:
        out: [heads, queries, value_dim], overwritten.
        lse: [heads, queries], natural log, overwritten.
        query: [heads, queries, head_dim], in the accumulation type.
        keys: the new keys; dropout is not for them.
        scale: factor on the scores.
        workspace: scratch tensors to reuse.
    """
    heads, rows, _ = query.shape
    # Of the new keys, and of all the old ones together: log-sum-exp, then shares of the softmax.
    new = _scores_log2(query, keys, scale, workspace.take("scores", query, heads, rows, keys.key.shape[1]))
    old = lse.unsqueeze(-1) * LOG2E
    row_max = torch.maximum(old, new.amax(-1, keepdim=True))
    old.sub_(row_max).exp2_()
    new.sub_(row_max).exp2_()
    row_sum = old + new.sum(-1, keepdim=True)
    joined = out.to(query.dtype)
    joined.mul_(old.div_(row_sum)).baddbmm_(new.div_(row_sum), keys.value)
    if joined is not out:
        out.copy_(joined)
    lse.copy_(row_max.add_(row_sum.log2_()).mul_(1 / LOG2E).squeeze(-1))


def backward_tile(
    query: Tensor,
    grad_out: Tensor,
    lse: Tensor,
    delta: Tensor,
    key_sets: Sequence[KeySet],
    scale: float,
    needs: Needs,
    workspace: Workspace,
    grad_kept: Tensor | None = None,
) -> tuple[Tensor | None, list[tuple[Tensor | None, Tensor | None]]]:
    """Gradients of :func:`forward_tile`; nothing that comes in is overwritten.

    Args:
        query: [heads, queries, head_dim].
        grad_out: [heads, queries, value_dim].
        lse: [heads, queries], natural log; a huge value gives a row no probability and so no gradient.
        delta: [heads, queries], as in the module's formula.
        key_sets: as in the forward pass.
        scale: as in the forward pass.
        needs: which gradients to compute.
        workspace: scratch tensors to reuse.
        grad_kept: [heads, queries], gradient of ``kept``.

    Returns:
        dquery, and for each key set (dkey, dvalue), valid until the workspace is used again; None where not needed.
    """
    lse_log2 = (lse * LOG2E).unsqueeze(-1)
    scaled_query = query * scale
    grad_query = None
    grads: list[tuple[Tensor | None, Tensor | None]] = []
    heads, rows, head_dim = query.shape
    probabilities = [
        _scores_log2(query, keys, scale, workspace.take(f"probability {number}", query, heads, rows, keys.key.shape[1]))
        .sub_(lse_log2)
        .exp2_()
        for number, keys in enumerate(key_sets)
    ]
    # Divided by their sum, probabilities keep errors of lse, whose scores were sums in another order, out of gradients. Rather
    # than they, what they are multiplied by is divided, which is less. Silenced rows have no probabilities.
    row_sum = _row_sums(probabilities).clamp_(min=0.5)
    grad_out, delta = grad_out / row_sum, delta.unsqueeze(-1) / row_sum
    grad_kept = None if grad_kept is None else grad_kept.unsqueeze(-1) / row_sum
    for number, (keys, probability) in enumerate(zip(key_sets, probabilities, strict=True)):
        shape = probability.shape
        grad_key = grad_value = None
        if needs.value:
            weight = probability
            if keys.factor is not None:
                weight = torch.mul(probability, keys.factor, out=workspace.take("weight", query, *shape))
            buffer = workspace.take(f"grad_value {number}", query, heads, shape[2], keys.value.shape[2])
            grad_value = torch.bmm(weight.transpose(1, 2), grad_out, out=buffer)
        if needs.query or needs.key:
            # [heads, queries, keys], turned step by step from dP into dS
            grad_score = torch.bmm(grad_out, keys.value.transpose(1, 2), out=workspace.take("grad_score", query, *shape))
            if grad_kept is not None:
                grad_score.add_(grad_kept)
            if keys.factor is not None:
                grad_score.mul_(keys.factor)
            grad_score.sub_(delta).mul_(probability)
            if needs.query:
                if grad_query is None:
                    grad_query = torch.bmm(grad_score, keys.key, out=workspace.take("grad_query", query, *query.shape))
                else:
                    grad_query.baddbmm_(grad_score, keys.key)
            if needs.key:
                buffer = workspace.take(f"grad_key {number}", query, heads, shape[2], head_dim)
                grad_key = torch.bmm(grad_score.transpose(1, 2), scaled_query, out=buffer)
        grads.append((grad_key, grad_value))
    return (None if grad_query is None else grad_query.mul_(scale)), grads
