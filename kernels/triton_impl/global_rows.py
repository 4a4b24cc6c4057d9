"""Rows of global tokens: full attention of a few queries over all real keys, split over the keys (as in flash decoding).

    out_g = softmax_j(scale q_g k_j) v_j        over every real token j (Longformer, arXiv 2004.05150, section 3.1)

One program of :func:`rows_forward` owns BLOCK_G global queries of one head and one split of the keys, and leaves a partial
out and log-sum-exp; :func:`rows_combine` joins the splits in order. With few rows the splits are what fills the machine.
"""

from __future__ import annotations

import triton
import triton.language as tl

from longformer_triton.kernels.triton_impl.primitives import (
    EDGE,
    FLOOR,
    HOLES,
    keep_tile,
    load_rows,
    real_steps,
    softmax_finish,
    softmax_update,
    store_rows,
    text_span,
)


@triton.jit
def split_of(split, splits, first, last, ALIGN: tl.constexpr):
    """(begin, end) of one of ``splits`` parts of the tokens first .. last - 1; parts begin at multiples of ALIGN."""
    length = tl.cdiv(tl.cdiv(last, splits), ALIGN) * ALIGN
    return max(split * length, first - first % ALIGN), min(split * length + length, last)


@triton.jit(do_not_specialize=["heads", "group", "seq_len", "num_globals", "splits", "threshold"])
def rows_forward(
    query_ptr, key_ptr, value_ptr, key_flags_ptr, span_ptr, global_index_ptr, global_count_ptr, seed_ptr,
    partial_out_ptr, partial_lse_ptr,
    query_stride_b, query_stride_h, query_stride_n, key_stride_b, key_stride_h, key_stride_n,
    value_stride_b, value_stride_h, value_stride_n,
    heads, group, seq_len, num_globals, splits, threshold,
    scale_log2, query_sign, rescale,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_G: tl.constexpr, BLOCK_N: tl.constexpr,
    HAS_MASK: tl.constexpr, FLIP_QUERY: tl.constexpr, DROPOUT: tl.constexpr, PRECISION: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """partial_out (batch, heads, splits, num_globals, HEAD_DIM) and partial_lse (..., num_globals), natural log."""
    blocks = tl.cdiv(num_globals, BLOCK_G)
    program = tl.program_id(0)
    split = program % splits
    block = (program // splits) % blocks
    head = (program // splits // blocks) % heads
    batch = program // splits // blocks // heads
    batch_64, head_64, key_head_64 = batch.to(tl.int64), head.to(tl.int64), (head // group).to(tl.int64)
    query_ptr += batch_64 * query_stride_b + head_64 * query_stride_h
    key_ptr += batch_64 * key_stride_b + key_head_64 * key_stride_h
    value_ptr += batch_64 * value_stride_b + key_head_64 * value_stride_h
    key_flags_ptr += batch_64 * seq_len

    count = tl.load(global_count_ptr + batch)
    slot = block * BLOCK_G + tl.arange(0, BLOCK_G)
    alive = slot < count
    token = tl.load(global_index_ptr + batch_64 * num_globals + slot, mask=alive, other=0).to(tl.int32)
    query = load_rows(query_ptr, slot, query_stride_n, alive, 1, HEAD_DIM, BLOCK_D, EDGE)  # [BLOCK_G, BLOCK_D]
    if FLIP_QUERY:
        query = (query * query_sign).to(query.dtype)
    first, last, _ = text_span(span_ptr, batch, seq_len, HAS_MASK)
    begin, end = split_of(split, splits, first, last, BLOCK_N)
    end = end if block * BLOCK_G < count else begin  # a block past the count has nothing to do

    acc = tl.zeros([BLOCK_G, BLOCK_D], ACC)
    row_max = tl.full([BLOCK_G], FLOOR, ACC)
    row_sum = tl.zeros([BLOCK_G], ACC)
    for key_start in tl.range(begin, end, BLOCK_N):
        key_token = key_start + tl.arange(0, BLOCK_N)
        real = real_steps(key_token, first, end, key_token, key_flags_ptr, HOLES if HAS_MASK else EDGE)
        key = load_rows(key_ptr, key_token, key_stride_n, real, 1, HEAD_DIM, BLOCK_D, EDGE)  # [BLOCK_N, BLOCK_D]
        value = load_rows(value_ptr, key_token, value_stride_n, real, 1, HEAD_DIM, BLOCK_D, EDGE)  # [BLOCK_N, BLOCK_D]
        # [BLOCK_G, BLOCK_N]
        scores = tl.dot(query, tl.trans(key), input_precision=PRECISION, out_dtype=ACC)
        scores = tl.where(real[None, :], scores, FLOOR)
        keep = keep_tile(seed_ptr, threshold, token, key_start, batch * heads + head, 0, BLOCK_N, DROPOUT)
        acc, row_max, row_sum = softmax_update(scores, keep, value, acc, row_max, row_sum, scale_log2, DROPOUT, PRECISION)
    out, lse = softmax_finish(acc, row_max, row_sum, scale_log2, rescale, alive)
    row = ((batch_64 * heads + head_64) * splits + split) * num_globals
    written = slot < num_globals
    store_rows(partial_out_ptr + row * HEAD_DIM, slot, HEAD_DIM, out, written, HEAD_DIM, BLOCK_D)
    tl.store(partial_lse_ptr + row + slot, lse, mask=written)


@triton.jit(do_not_specialize=["heads", "seq_len", "num_globals", "splits"])
def rows_combine(
    partial_out_ptr, partial_lse_ptr, global_index_ptr, global_count_ptr, out_ptr, lse_ptr,
    out_stride_b, out_stride_h, out_stride_n,
    heads, seq_len, num_globals, splits,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_G: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Join the splits by their log-sum-exp and write out and lse at the global tokens: BLOCK_G rows of one head a program."""
    blocks = tl.cdiv(num_globals, BLOCK_G)
    program = tl.program_id(0)
    head = (program // blocks) % heads
    batch = program // blocks // heads
    batch_64, head_64 = batch.to(tl.int64), head.to(tl.int64)
    slot = (program % blocks) * BLOCK_G + tl.arange(0, BLOCK_G)
    alive = slot < tl.load(global_count_ptr + batch)
    token = tl.load(global_index_ptr + batch_64 * num_globals + slot, mask=alive, other=0).to(tl.int32)
    row = (batch_64 * heads + head_64) * splits * num_globals

    top = tl.full([BLOCK_G], float("-inf"), ACC)
    for split in tl.range(0, splits):
        lse = tl.load(partial_lse_ptr + row + split * num_globals + slot, mask=alive, other=float("-inf"))
        top = tl.maximum(top, lse)
    top = tl.where(top > float("-inf"), top, 0.0)
    acc = tl.zeros([BLOCK_G, BLOCK_D], ACC)
    total = tl.zeros([BLOCK_G], ACC)
    for split in tl.range(0, splits):
        lse = tl.load(partial_lse_ptr + row + split * num_globals + slot, mask=alive, other=float("-inf"))
        weight = tl.exp(lse - top)
        total += weight
        part_ptr = partial_out_ptr + (row + split * num_globals) * HEAD_DIM
        acc += weight[:, None] * load_rows(part_ptr, slot, HEAD_DIM, alive, 1, HEAD_DIM, BLOCK_D, EDGE)
    store_rows(
        out_ptr + batch_64 * out_stride_b + head_64 * out_stride_h, token, out_stride_n, acc / total[:, None], alive,
        HEAD_DIM, BLOCK_D,
    )  # fmt: skip
    tl.store(lse_ptr + (batch_64 * heads + head_64) * seq_len + token, top + tl.log(total), mask=alive)
