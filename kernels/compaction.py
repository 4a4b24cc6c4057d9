"""From a mask of global tokens to their positions: one operator, so that compiled graphs hold it as one node.

The number of global tokens is data, so the width of the result is too. With ``max_globals`` the width is given and nothing is
read back from the device; without it the fake kernel hands the compiler a size that is known only at run time.
"""

from __future__ import annotations

import torch
from torch import Tensor


@torch.library.custom_op(
    "longformer_triton::global_index", mutates_args=(), schema="(Tensor global_mask, SymInt? max_globals) -> (Tensor, Tensor)"
)
def global_index(global_mask: Tensor, max_globals: int | None) -> tuple[Tensor, Tensor]:
    """Positions of the True entries of each row, ascending.

    Args:
        global_mask: (batch, seq_len) bool.
        max_globals: the width G of the result; None takes the largest count of the batch.

    Returns:
        index (batch, G) int64, padded with -1; count (batch,) int64.
    """
    batch, seq_len = global_mask.shape
    count = global_mask.sum(1)
    if max_globals is None:
        width = int(count.max()) if batch else 0
    else:
        width = max_globals
        torch._assert_async(
            (count <= width).all(),
            f"a sample has more global tokens than max_globals={width}: pass the most of any sample, or None to count them",
        )
    # Rank r goes to column r; everything that is not global goes to one column more, which is cut off.
    column = torch.where(global_mask, global_mask.cumsum(1) - 1, width).clamp_max(width)
    position = torch.arange(seq_len, device=global_mask.device).expand(batch, seq_len)
    index = torch.full((batch, width + 1), -1, dtype=torch.int64, device=global_mask.device).scatter_(1, column, position)
    return index[:, :width].contiguous(), count


@global_index.register_fake
def _(global_mask: Tensor, max_globals: int | None) -> tuple[Tensor, Tensor]:
    batch, seq_len = global_mask.shape
    width: int | torch.SymInt
    if max_globals is None:
        width = torch.library.get_ctx().new_dynamic_size()
        torch._check(width <= seq_len)
    else:
        width = max_globals
    return global_mask.new_empty((batch, width), dtype=torch.int64), global_mask.new_empty((batch,), dtype=torch.int64)
