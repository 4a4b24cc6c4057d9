"""What every backward kernel needs of a row, computed once.

    delta_i = (sum_d dout_id out_id - dlse_i) / r            lse_log2_i = log2(e) lse_i

so that p_ij = exp2(scale log2(e) s_ij - lse_log2_i) and ds_ij = r p_ij (keep_ij dp_ij - delta_i), where dropout keeps or
drops, and what it keeps counts r times: its factor f_ij is r or 0 (FlashAttention-2, arXiv 2307.08691, section 3; the term
dlse lets a gradient flow through lse). The factor r waits until a sum is complete. Rows that take no part, because they are
masked, saw no key, or are global tokens whose window output was replaced, get INACTIVE_LSE: their probabilities are exactly 0.
"""

from __future__ import annotations

import triton
import triton.language as tl

from longformer_triton.kernels.triton_impl.primitives import INACTIVE_LSE, LOG2E, RUN_TIME_NUMBERS, HeadView, at_head, load_rows


@triton.jit(do_not_specialize=RUN_TIME_NUMBERS)
def prepare_rows(
    grad_out_ptr, grad_lse_ptr, out_ptr, lse_ptr, global_mask_ptr, global_index_ptr, global_count_ptr, delta_ptr,
    lse_log2_ptr,
    grad_out_stride_b, grad_out_stride_h, grad_out_stride_n, grad_out_stride_d, grad_lse_stride_b, grad_lse_stride_h,
    grad_lse_stride_n, out_stride_b, out_stride_h, out_stride_n,
    heads, seq_len, row_stride, keep_share,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, HAS_GRAD_LSE: tl.constexpr,
    SKIP_GLOBALS: tl.constexpr, GATHER: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """delta and lse_log2, (batch, heads, row_stride), of BLOCK_M rows of one head.

    The rows are the tokens themselves, without global ones if SKIP_GLOBALS, or with GATHER the global tokens. Rows past
    their number take no part.
    """
    blocks = tl.cdiv(row_stride, BLOCK_M)
    program = tl.program_id(0)
    head = (program // blocks) % heads
    batch = program // blocks // heads
    outs = HeadView(at_head(out_ptr, out_stride_b, out_stride_h, batch, head), out_stride_n)
    grad_outs = HeadView(
        at_head(grad_out_ptr, grad_out_stride_b, grad_out_stride_h, batch, head), grad_out_stride_n, grad_out_stride_d
    )
    row = (program % blocks) * BLOCK_M + tl.arange(0, BLOCK_M)
    if GATHER:
        real = row < tl.load(global_count_ptr + batch)
        token = tl.load(global_index_ptr + batch.to(tl.int64) * row_stride + row, mask=real, other=0).to(tl.int32)
    else:
        real = row < seq_len
        token = row
        if SKIP_GLOBALS:
            real = real & (tl.load(global_mask_ptr + batch.to(tl.int64) * seq_len + token, mask=real, other=1) == 0)
    lse_ptr += (batch.to(tl.int64) * heads + head) * seq_len
    lse = tl.load(lse_ptr + token, mask=real, other=float("-inf"))
    real = real & (lse != float("-inf"))

    # [BLOCK_M, BLOCK_D] each
    out = load_rows(outs, token, real, HEAD_DIM, BLOCK_D)
    grad_out = load_rows(grad_outs, token, real, HEAD_DIM, BLOCK_D)
    delta = tl.sum(out.to(ACC) * grad_out.to(ACC), 1)
    if HAS_GRAD_LSE:
        grad_lse_ptr = at_head(grad_lse_ptr, grad_lse_stride_b, grad_lse_stride_h, batch, head)
        delta -= tl.load(grad_lse_ptr + token.to(tl.int64) * grad_lse_stride_n, mask=real, other=0.0)
    target = (batch.to(tl.int64) * heads + head) * row_stride + row
    tl.store(delta_ptr + target, delta * keep_share, mask=row < row_stride)
    tl.store(lse_log2_ptr + target, tl.where(real, lse * LOG2E, INACTIVE_LSE), mask=row < row_stride)
