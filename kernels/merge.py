"""Joining attention over disjoint sets of keys: softmax over a union from the softmax over its parts.

With lse_k the log-sum-exp of part k, the whole has lse = log sum_k exp(lse_k) and out = sum_k exp(lse_k - lse) out_k (the
combine step of flash decoding and of ring attention, arXiv 2310.01889).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def merge_attention(parts: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Join attention outputs over disjoint key sets into the attention over all of them; differentiable in every input.

    Args:
        parts: pairs (out, lse): out (batch, heads, seq_len, head_dim), lse (batch, heads, seq_len), natural log, as
            ``sliding_window_attention(..., return_lse=True)`` returns them. A part whose lse is -inf in a row saw no key there.

    Returns:
        (out, lse) of the union, in the dtypes of the parts. Rows that no part saw a key in are 0 and -inf.

    Raises:
        TypeError: parts is not a sequence of pairs of tensors, or their dtypes are no floats or differ.
        ValueError: parts is empty, or shapes or devices differ.
    """
    _check(parts)
    stacked = torch.stack([lse for _, lse in parts])
    seen = stacked != -torch.inf
    any_seen = seen.any(0)
    # Finite stand-ins where nothing was seen keep exp(-inf - -inf) = NaN out of values and gradients.
    top = torch.where(any_seen, stacked.amax(0), 0.0).detach()
    weight = torch.where(seen, torch.exp(torch.where(seen, stacked, 0.0) - top), 0.0)
    total = torch.where(any_seen, weight.sum(0), 1.0)
    out = torch.zeros_like(parts[0][0], dtype=stacked.dtype)
    for part_weight, part_seen, (part_out, _) in zip(weight, seen, parts, strict=True):
        value = torch.where(part_seen[..., None], part_out.to(stacked.dtype), 0.0)
        out = out + (part_weight / total)[..., None] * value
    lse = torch.where(any_seen, top + torch.log(total), -torch.inf)
    return out.to(parts[0][0].dtype), lse


def _check(parts: Sequence[tuple[Tensor, Tensor]]) -> None:
    if not isinstance(parts, (list, tuple)) or not all(isinstance(part, (list, tuple)) and len(part) == 2 for part in parts):
        got = [type(part).__name__ for part in parts] if isinstance(parts, (list, tuple)) else type(parts).__name__
        raise TypeError(f"parts: got {got}, expected a list of pairs (out, lse), as return_lse=True gives them.")
    if not parts:
        raise ValueError("parts: got an empty list, expected at least one pair (out, lse).")
    for number, part in enumerate(parts):
        if not all(isinstance(member, Tensor) for member in part):
            got = ", ".join(type(member).__name__ for member in part)
            raise TypeError(f"parts[{number}]: got ({got}), expected two tensors (out, lse), as return_lse=True gives them.")
    out, lse = parts[0]
    for number, (part_out, part_lse) in enumerate(parts):
        if part_out.shape != out.shape or part_lse.shape != out.shape[:-1]:
            raise ValueError(
                f"parts[{number}]: got out {tuple(part_out.shape)} and lse {tuple(part_lse.shape)}, "
                f"expected {tuple(out.shape)} and {tuple(out.shape[:-1])} like the first."
            )
        for name, got, first in (("out", part_out, out), ("lse", part_lse, lse)):
            if not got.is_floating_point() or got.dtype != first.dtype:
                wanted = f"{first.dtype} like the first" if first.is_floating_point() else "a float type"
                raise TypeError(f"parts[{number}]: got {name} of dtype {got.dtype}, expected {wanted}: cast it.")
            if got.device != out.device:
                raise ValueError(f"parts[{number}]: got {name} on {got.device}, expected {out.device} like the first: move it.")
