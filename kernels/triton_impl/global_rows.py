"""Rows of global tokens: full attention of a few queries over all real keys, split over the keys (as in flash decoding).

    out_g = softmax_j(scale q_g k_j) v_j        over every real token j (Longformer, arXiv 2004.05150, section 3.1)

One program of :func:`global_rows_forward` owns BLOCK_G global queries of one head and one split of the keys, and leaves a
partial out and log-sum-exp; :func:`global_rows_combine` joins the splits in order. With few rows the splits are what fills the
machine.
"""

from __future__ import annotations

import triton
import triton.language as tl

from longformer_triton.kernels.triton_impl.primitives import (
    EDGE,
    FLOOR,
    HOLES,
    RUN_TIME_NUMBERS,
    Dropout,
    HeadView,
    at_head,
    keep_tile,
    load_rows,
    real_span,
    real_steps,
    signed,
    softmax_finish,
    softmax_update,
    split_of,
    split_program,
    store_rows,
)


@triton.jit(do_not_specialize=RUN_TIME_NUMBERS)
def global_rows_forward(
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
    batch, head, first_slot, split = split_program(0, heads, num_globals, splits, BLOCK_G)
    key_head = head // group
    queries = HeadView(at_head(query_ptr, query_stride_b, query_stride_h, batch, head), query_stride_n)
    keys = HeadView(at_head(key_ptr, key_stride_b, key_stride_h, batch, key_head), key_stride_n)
    values = HeadView(at_head(value_ptr, value_stride_b, value_stride_h, batch, key_head), value_stride_n)
    key_flags_ptr += batch.to(tl.int64) * seq_len
    dropout = Dropout(seed_ptr, threshold, batch * heads + head)

    count = tl.load(global_count_ptr + batch)
    slot = first_slot + tl.arange(0, BLOCK_G)
    alive = slot < count
    token = tl.load(global_index_ptr + batch.to(tl.int64) * num_globals + slot, mask=alive, other=0).to(tl.int32)
    query = signed(load_rows(queries, slot, alive, HEAD_DIM, BLOCK_D), query_sign, FLIP_QUERY)  # [BLOCK_G, BLOCK_D]
    first, last, _ = real_span(span_ptr, batch, seq_len, HAS_MASK)
    begin, end = split_of(split, splits, first, last, BLOCK_N)
    end = end if first_slot < count else begin  # a block past the count has nothing to do

    acc = tl.zeros([BLOCK_G, BLOCK_D], ACC)
    row_max = tl.full([BLOCK_G], FLOOR, ACC)
    row_sum = tl.zeros([BLOCK_G], ACC)
    for key_start in tl.range(begin, end, BLOCK_N):
        key_token = key_start + tl.arange(0, BLOCK_N)
        real = real_steps(key_token, first, end, key_token, key_flags_ptr, HOLES if HAS_MASK else EDGE)
        # [BLOCK_N, BLOCK_D] each
        key = load_rows(keys, key_token, real, HEAD_DIM, BLOCK_D)
        value = load_rows(values, key_token, real, HEAD_DIM, BLOCK_D)
        # [BLOCK_G, BLOCK_N]
        scores = tl.dot(query, tl.trans(key), input_precision=PRECISION, out_dtype=ACC)
        scores = tl.where(real[None, :], scores, FLOOR)
        keep = keep_tile(dropout, token, key_start, 0, BLOCK_N, DROPOUT)
        acc, row_max, row_sum = softmax_update(scores, keep, value, acc, row_max, row_sum, scale_log2, DROPOUT, PRECISION)
    out, lse = softmax_finish(acc, row_max, row_sum, scale_log2, rescale, alive)
    row = ((batch.to(tl.int64) * heads + head) * splits + split) * num_globals
    written = slot < num_globals
    store_rows(HeadView(partial_out_ptr + row * HEAD_DIM, HEAD_DIM), slot, out, written, HEAD_DIM, BLOCK_D)
    tl.store(partial_lse_ptr + row + slot, lse, mask=written)


@triton.jit(do_not_specialize=RUN_TIME_NUMBERS)
def global_rows_combine(
    partial_out_ptr, partial_lse_ptr, global_index_ptr, global_count_ptr, out_ptr, lse_ptr,
    out_stride_b, out_stride_h, out_stride_n,
    heads, seq_len, num_globals, splits,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_G: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Join the splits by their log-sum-exp and write out and lse at the global tokens: BLOCK_G rows of one head a program."""
    batch, head, first_slot, _ = split_program(0, heads, num_globals, 1, BLOCK_G)
    slot = first_slot + tl.arange(0, BLOCK_G)
    alive = slot < tl.load(global_count_ptr + batch)
    token = tl.load(global_index_ptr + batch.to(tl.int64) * num_globals + slot, mask=alive, other=0).to(tl.int32)
    row = (batch.to(tl.int64) * heads + head) * splits * num_globals

    # Numbers of a row stay columns, [BLOCK_G, 1], which spread over its channels without shared memory and its barriers.
    column, alive_column = slot[:, None], alive[:, None]
    top = tl.full([BLOCK_G, 1], FLOOR, ACC)
    total = tl.zeros([BLOCK_G, 1], ACC)
    acc = tl.zeros([BLOCK_G, BLOCK_D], ACC)
    # Stages, because there is nothing to compute meanwhile: several splits are on their way at once.
    for split in tl.range(0, splits, num_stages=4):
        parts = row + split * num_globals
        lse = tl.load(partial_lse_ptr + parts + column, mask=alive_column, other=float("-inf"))
        part = load_rows(HeadView(partial_out_ptr + parts * HEAD_DIM, HEAD_DIM), slot, alive, HEAD_DIM, BLOCK_D)
        new_top = tl.maximum(top, lse)
        correction, weight = tl.exp(top - new_top), tl.exp(lse - new_top)
        acc = acc * correction + part * weight
        total = total * correction + weight
        top = new_top
    outs = HeadView(at_head(out_ptr, out_stride_b, out_stride_h, batch, head), out_stride_n)
    store_rows(outs, token, acc / total, alive, HEAD_DIM, BLOCK_D)
    lse_ptr += (batch.to(tl.int64) * heads + head) * seq_len
    tl.store(lse_ptr + token[:, None], top + tl.log(total), mask=alive_column)
