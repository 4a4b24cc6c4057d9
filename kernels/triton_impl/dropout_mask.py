"""What dropout keeps of rows of global tokens whose products are left to cuBLAS (:mod:`absorbed_rows`).

    keep_gj = 1 where dropout keeps the probability of key j in the row of global token g, else 0

One program owns BLOCK_M rows and BLOCK_N keys of one head. It reads where the global tokens are, and writes these numbers.
"""

from __future__ import annotations

import triton
import triton.language as tl

from longformer_triton.kernels.triton_impl.primitives import RUN_TIME_NUMBERS, Dropout, keep_tile


@triton.jit(do_not_specialize=RUN_TIME_NUMBERS)
def dropout_mask(
    keep_ptr, global_index_ptr, seed_ptr,
    heads, seq_len, num_globals, first_slot, rows, threshold,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """keep (batch, heads, rows, seq_len) of the global tokens first_slot .. first_slot + rows - 1 of each sample."""
    key_blocks, row_blocks = tl.cdiv(seq_len, BLOCK_N), tl.cdiv(rows, BLOCK_M)
    program = tl.program_id(0)
    key_start = (program % key_blocks) * BLOCK_N
    row = (program // key_blocks) % row_blocks * BLOCK_M + tl.arange(0, BLOCK_M)
    stream = program // key_blocks // row_blocks
    batch = stream // heads
    real = row < rows
    # A place in the list that is not in use holds -1: its row is dead, and any number will do.
    token = tl.load(global_index_ptr + batch.to(tl.int64) * num_globals + first_slot + row, mask=real, other=0).to(tl.int32)
    keep = keep_tile(Dropout(seed_ptr, threshold, stream), token, key_start, 0, BLOCK_N, True)  # [BLOCK_M, BLOCK_N]
    key = key_start + tl.arange(0, BLOCK_N)
    target = (stream.to(tl.int64) * rows + row)[:, None] * seq_len + key[None, :]
    tl.store(keep_ptr + target, tl.where(keep, 1.0, 0.0), mask=real[:, None] & (key < seq_len)[None, :])
