"""Windowed attention with global keys, forward: out = softmax(scale q k^T) v over the visible keys, and its log-sum-exp.

Longformer, arXiv 2004.05150, section 3, by the online softmax of FlashAttention-2. One program owns BLOCK_M queries of one
head, in one strand (see :mod:`primitives`). It gathers the global keys outside the window of each query through their index,
in narrow tiles, then walks over the window: tiles in which windows begin, tiles that all queries see in full, tiles in which
windows end, and tiles that have to be looked at more closely. All keys join one softmax. It reads query, key, value and writes
out and lse for its queries.
"""

from __future__ import annotations

import triton
import triton.language as tl

from longformer_triton.kernels.triton_impl.primitives import (
    CLEAN,
    EDGE,
    FLOOR,
    HOLES,
    RUN_TIME_NUMBERS,
    Dropout,
    HeadView,
    at_head,
    keep_pairs,
    keep_tile,
    load_global_keys,
    load_keys_and_values,
    load_rows,
    load_strand,
    real_steps,
    sees_outside,
    signed,
    softmax_finish,
    softmax_update,
    store_rows,
    tile_phases,
    visible_pairs,
    window_program,
)


@triton.jit
def _attend_window(
    acc, row_max, row_sum, query, low, high, query_token, keys, values, key_flags_ptr, begin, tile_begin, tile_end, strand,
    dropout, scale_log2,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr, DROPOUT: tl.constexpr, PRECISION: tl.constexpr,
    CHECK: tl.constexpr, DESCRIPTORS: tl.constexpr,
):  # fmt: skip
    """Fold the window's key tiles tile_begin .. tile_end - 1 into the softmax; CHECK says what their pairs need checked."""
    # The copy engine knows no masks. What comes by pointers in its place is not pipelined: Triton 3.6 leaves out the fence
    # between asynchronous copies by pointers and wgmma.
    STAGES: tl.constexpr = 1 if DESCRIPTORS and CHECK == HOLES else None
    for tile in tl.range(tile_begin, tile_end, num_stages=STAGES):
        key_start = begin + tile * BLOCK_N
        # [BLOCK_N, BLOCK_D] each
        key, value, real = load_keys_and_values(
            keys, values, key_start, strand, key_flags_ptr, HEAD_DIM, BLOCK_N, BLOCK_D, CHECK, DESCRIPTORS
        )
        # [BLOCK_M, BLOCK_N]
        scores = tl.dot(query, tl.trans(key), input_precision=PRECISION, out_dtype=acc.dtype)
        if CHECK != CLEAN:
            scores = tl.where(visible_pairs(low, high, key_start, real, BLOCK_N, CHECK), scores, FLOOR)
        keep = keep_tile(dropout, query_token, key_start, strand.residue, BLOCK_N, DROPOUT)
        acc, row_max, row_sum = softmax_update(scores, keep, value, acc, row_max, row_sum, scale_log2, DROPOUT, PRECISION)
    return acc, row_max, row_sum


@triton.jit
def _attend_globals(
    acc, row_max, row_sum, query, query_token, keys, values, global_index_ptr, count, left, right, dilation, dropout,
    scale_log2,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_G: tl.constexpr, IS_CAUSAL: tl.constexpr, DROPOUT: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Fold the global keys that lie outside each query's window into the softmax."""
    # Not pipelined: there are few, and Triton 3.6 leaves out the fence between asynchronous copies by pointers and wgmma.
    for start in tl.range(0, count, BLOCK_G, num_stages=1):
        # token, real [BLOCK_G]; key, value [BLOCK_G, BLOCK_D]
        slot = start + tl.arange(0, BLOCK_G)
        token, key, value, real = load_global_keys(keys, values, global_index_ptr, slot, count, HEAD_DIM, BLOCK_D)
        # [BLOCK_M, BLOCK_G]
        scores = tl.dot(query, tl.trans(key), input_precision=PRECISION, out_dtype=acc.dtype)
        visible = sees_outside(query_token[:, None], token[None, :], real[None, :], left, right, dilation, IS_CAUSAL)
        scores = tl.where(visible, scores, FLOOR)
        keep = keep_pairs(dropout, query_token[:, None], token[None, :], DROPOUT)
        acc, row_max, row_sum = softmax_update(scores, keep, value, acc, row_max, row_sum, scale_log2, DROPOUT, PRECISION)
    return acc, row_max, row_sum


@triton.jit(do_not_specialize=RUN_TIME_NUMBERS)
def window_forward(
    query_ptr, key_ptr, value_ptr, key_tiles, value_tiles, key_flags_ptr, span_ptr, global_index_ptr, global_count_ptr,
    seed_ptr, out_ptr, lse_ptr,
    query_stride_b, query_stride_h, query_stride_n, key_stride_b, key_stride_h, key_stride_n,
    value_stride_b, value_stride_h, value_stride_n, out_stride_b, out_stride_h, out_stride_n,
    heads, first_head, run_heads, group, seq_len, left, right, dilation, num_globals, threshold,
    scale_log2, query_sign, rescale,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_G: tl.constexpr,
    HAS_MASK: tl.constexpr, HAS_GLOBALS: tl.constexpr, IS_CAUSAL: tl.constexpr, FLIP_QUERY: tl.constexpr,
    DROPOUT: tl.constexpr, DESCRIPTORS: tl.constexpr, PRECISION: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """The heads first_head .. first_head + run_heads - 1, which share one dilation. Strides are in elements.

    With DESCRIPTORS, which needs a dilation of 1, key_tiles and value_tiles describe whole tensors in tiles of BLOCK_N rows.
    """
    batch, head, residue, start = window_program(first_head, run_heads, seq_len, dilation, BLOCK_M)
    key_head = head // group
    queries = HeadView(at_head(query_ptr, query_stride_b, query_stride_h, batch, head), query_stride_n)
    keys = HeadView(at_head(key_ptr, key_stride_b, key_stride_h, batch, key_head), key_stride_n, 1, key_tiles, batch, key_head)
    values = HeadView(
        at_head(value_ptr, value_stride_b, value_stride_h, batch, key_head), value_stride_n, 1, value_tiles, batch, key_head
    )
    outs = HeadView(at_head(out_ptr, out_stride_b, out_stride_h, batch, head), out_stride_n)
    lse_ptr += (batch.to(tl.int64) * heads + head) * seq_len
    key_flags_ptr += batch.to(tl.int64) * seq_len
    dropout = Dropout(seed_ptr, threshold, batch * heads + head)

    strand, has_holes = load_strand(span_ptr, batch, seq_len, residue, dilation, HAS_MASK)
    step = start + tl.arange(0, BLOCK_M)
    token = residue + step * dilation
    in_strand = token < seq_len
    query = signed(load_rows(queries, token, in_strand, HEAD_DIM, BLOCK_D), query_sign, FLIP_QUERY)  # [BLOCK_M, BLOCK_D]

    acc = tl.zeros([BLOCK_M, BLOCK_D], ACC)
    row_max = tl.full([BLOCK_M], FLOOR, ACC)
    row_sum = tl.zeros([BLOCK_M], ACC)
    if HAS_GLOBALS:
        global_index_ptr += batch.to(tl.int64) * num_globals
        count = tl.load(global_count_ptr + batch).to(tl.int32)
        acc, row_max, row_sum = _attend_globals(
            acc, row_max, row_sum, query, token, keys, values, global_index_ptr, count, left, right, dilation, dropout,
            scale_log2,
            HEAD_DIM, BLOCK_D, BLOCK_G, IS_CAUSAL, DROPOUT, PRECISION,
        )  # fmt: skip
    ALIGN: tl.constexpr = 64 if DROPOUT else 1
    UNSURE: tl.constexpr = HOLES if HAS_MASK else EDGE
    begin, bounds = tile_phases(start, BLOCK_M, BLOCK_N, left, right, strand.first, strand.last, has_holes, ALIGN)
    low, high = tl.maximum(step - left, strand.first), tl.minimum(step + right, strand.last - 1)
    for phase in tl.static_range(4):  # a phase is numbered by what it checks
        acc, row_max, row_sum = _attend_window(
            acc, row_max, row_sum, query, low, high, token, keys, values, key_flags_ptr, begin, bounds[phase],
            bounds[phase + 1], strand, dropout, scale_log2,
            HEAD_DIM, BLOCK_D, BLOCK_N, DROPOUT, PRECISION, UNSURE if phase == EDGE else phase, DESCRIPTORS,
        )  # fmt: skip

    real = real_steps(step, strand.first, strand.last, token, key_flags_ptr, UNSURE)
    out, lse = softmax_finish(acc, row_max, row_sum, scale_log2, rescale, real)
    store_rows(outs, token, out, in_strand, HEAD_DIM, BLOCK_D)
    tl.store(lse_ptr + token, lse, mask=in_strand)
