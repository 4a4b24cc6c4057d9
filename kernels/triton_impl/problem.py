"""One call of the backend as data: what its kernels have in common, and what a backward pass starts from."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterator
from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from longformer_triton.kernels.dropout import Dropout
from longformer_triton.kernels.layout import QKV, ceil_div
from longformer_triton.kernels.pattern import AttentionPattern
from longformer_triton.kernels.precision import accumulation_dtype
from longformer_triton.kernels.triton_impl.descriptors import tiles_of, uses_descriptors
from longformer_triton.kernels.triton_impl.tuning import Config, NotServedError, Target, target_of

# Sums over a whole sequence are split until there are about this many programs: four for each multiprocessor of an H100.
_TARGET_PROGRAMS = 528
# Queries or keys of the largest tile that a table may name.
_LARGEST_BLOCK = 512
# Times these, the floor of masked scores (primitives.FLOOR, -2**100) still is far below any other score, and still is finite.
_SCALES = (1e-20, 1e8)


@functools.lru_cache
def _argument_names(name: str, dim: int) -> tuple[str, ...]:
    return (f"{name}_ptr", *(f"{name}_stride_{axis}" for axis in "bhnd"[:dim]))


def tensor_arguments(name: str, states: Tensor) -> dict[str, Any]:
    """A tensor (batch, heads, tokens[, channels]) as pointer and strides."""
    return dict(zip(_argument_names(name, states.dim()), (states, *states.stride()), strict=True))


def _why_too_far(pattern: AttentionPattern) -> str | None:
    """None when numbers of tokens, those that a last tile reaches beyond the end too, have 32 bits; else the reason."""
    farthest = pattern.seq_len + _LARGEST_BLOCK * min(max(pattern.dilations), pattern.seq_len)
    if farthest < 2**31:
        return None
    return f"32-bit numbers of tokens do not reach for a dilation of {max(pattern.dilations)} in {pattern.seq_len} tokens"


def why_not_served(local_qkv: QKV, pattern: AttentionPattern, *, dropout: bool) -> str | None:
    """None when every kernel that attention of ``local_qkv`` needs, forward and backward, has a configuration; else the reason.

    Asked before each call that leaves the choice of a backend open, so that both directions run on the same one.
    """
    query = local_qkv[0]
    target = target_of(query.device)
    missing = (
        target.missing(
            query.shape[3], target.precision_of(query.dtype), dropout=dropout, padding=pattern.key_mask is not None,
            has_globals=pattern.global_mask is not None, descriptors=descriptors,
        )
        for descriptors in {uses_descriptors(target, min(step, pattern.seq_len), local_qkv) for step in pattern.dilations}
    )  # fmt: skip
    return _why_too_far(pattern) or next(filter(None, missing), None)


class Problem:
    """What all kernels of one call have in common, by the names of their arguments."""

    def __init__(self, states: QKV, pattern: AttentionPattern, scale: float, dropout: Dropout | None, target: Target) -> None:
        query, key, value = states
        reason = _why_too_far(pattern)
        if reason is not None:
            raise NotServedError(reason)
        for name, tensor in (("query", query), ("key", key), ("value", value)):
            if tensor.stride(-1) != 1 and tensor.shape[-1] > 1:
                raise ValueError(
                    f"{name}: got strides {tensor.stride()}, expected neighbouring channels (a last stride of 1), which "
                    f"the Triton kernels load as a whole: pass {name}.contiguous(), or backend='torch'."
                )
        if scale and not _SCALES[0] <= abs(scale) <= _SCALES[1]:
            raise ValueError(
                f"scale: got {scale!r}, expected 0 or a magnitude of {_SCALES[0]:g} to {_SCALES[1]:g}, beyond which the Triton "
                "kernels cannot tell masked scores from others: multiply query by it, or pass backend='torch'."
            )
        self.query, self.pattern, self.dropout, self.target = query, pattern, dropout, target
        self.batch, self.heads, _, self.head_dim = query.shape
        self.seq_len, self.group = key.shape[2], self.heads // key.shape[1]
        self.num_globals = pattern.global_index.shape[1]
        self.acc_dtype, self.precision = accumulation_dtype(query.dtype), target.precision_of(query.dtype)
        # Softmax in base 2 compares raw scores, which needs a positive factor: a sign moves into the query, exactly.
        magnitude = abs(scale) or 1.0
        threshold = 0 if dropout is None else dropout.threshold
        left, right = (min(side, self.seq_len) for side in pattern.band)
        # Stands in for tensors that a launch has no use for.
        unused = self.unused = pattern.global_count
        self.arguments: dict[str, Any] = {
            **tensor_arguments("query", query),
            **tensor_arguments("key", key),
            **tensor_arguments("value", value),
            "key_flags_ptr": unused if pattern.key_flags is None else pattern.key_flags,
            "span_ptr": unused if pattern.key_span is None else pattern.key_span,
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
            "keep_share": (256 - threshold) / 256,
            "HEAD_DIM": self.head_dim,
            "BLOCK_D": max(16, 1 << (self.head_dim - 1).bit_length()),
            "BLOCK_G": 16,
            "HAS_MASK": pattern.key_mask is not None,
            "HAS_GLOBALS": self.num_globals > 0,
            "IS_CAUSAL": pattern.is_causal,
            "FLIP_QUERY": scale <= 0,
            "DROPOUT": dropout is not None,
            "HOLD_KEPT": target.holds_kept(self.precision),
            # Triton's word for how float32 is multiplied; of half precision it takes no notice.
            "PRECISION": "tf32" if self.precision == "tf32" else "ieee",
            "ACC": tl.float64 if query.dtype == torch.float64 else tl.float32,
        }
        self.scale, self.magnitude = scale, magnitude
        self.key_value = {"key": key, "value": value}

    def of_rows(self, global_qkv: QKV) -> Problem:
        """The same for the rows of global tokens."""
        return Problem(global_qkv, self.pattern, self.scale, self.dropout, self.target)

    def config(self, kernel: str, *, descriptors: bool = False) -> Config:
        """The configuration of one of the kernels, whose window tiles come by descriptors or by pointers."""
        masks = self.pattern.key_mask is not None or self.num_globals > 0
        dropout = self.dropout is not None
        return self.target.config(kernel, self.head_dim, self.precision, dropout=dropout, masks=masks, descriptors=descriptors)

    def tiles(self, tensors: dict[str, Tensor], rows: int, *, descriptors: bool) -> dict[str, Any]:
        """The arguments DESCRIPTORS and {name}_tiles: tensors (batch, heads, seq_len, head_dim) in tiles of ``rows`` tokens.

        Or (batch * heads * row_stride,), a number for each token.
        """

        def tile(states: Tensor) -> list[int]:
            return [rows] if states.dim() == 1 else [1, 1, rows, self.arguments["BLOCK_D"]]

        tiles = {f"{name}_tiles": tiles_of(states, tile(states)) if descriptors else None for name, states in tensors.items()}
        return {"DESCRIPTORS": descriptors, **tiles}

    def runs(self, heads: range | None = None) -> Iterator[dict[str, int]]:
        """Neighbouring heads of one dilation, which one launch can serve; of all heads, if not said otherwise."""
        heads = range(self.heads) if heads is None else heads
        dilations = self.pattern.dilations if len(self.pattern.dilations) > 1 else self.pattern.dilations * self.heads
        first = heads.start
        for dilation, run in itertools.groupby(dilations[heads.start : heads.stop]):
            count = len(list(run))
            yield {"first_head": first, "run_heads": count, "dilation": min(dilation, self.seq_len)}
            first += count

    def window_programs(self, run: dict[str, int], block: int) -> int:
        """Programs of a launch over the tokens, for every head of a run."""
        steps = ceil_div(self.seq_len, run["dilation"])
        return self.batch * run["run_heads"] * run["dilation"] * ceil_div(steps, block)

    def global_blocks(self, heads: int) -> int:
        """Programs of a launch over the global tokens."""
        return self.batch * heads * ceil_div(self.num_globals, self.arguments["BLOCK_G"])

    def splits(self, programs: int, block: int) -> int:
        """Into how many parts a sum over the sequence is cut."""
        return max(1, min(_TARGET_PROGRAMS // programs, ceil_div(self.seq_len, 4 * block)))

    def partials(self, heads: int, splits: int, *channels: int) -> Tensor:
        """Uninitialised partial sums of the global tokens, one a split."""
        return self.query.new_empty((self.batch, heads, splits, self.num_globals, *channels), dtype=self.acc_dtype)


@dataclasses.dataclass(frozen=True)
class BackwardInputs:
    """What a backward pass starts from: incoming gradients, None where nothing came in, and what the forward pass gave."""

    grad_out: Tensor | None
    grad_lse: Tensor | None
    out: Tensor
    lse: Tensor
