"""Gradient of the queries of windowed attention with global keys: dq_i = scale sum_j ds_ij k_j.

With p and ds as :mod:`backward_prepare` states them, recomputed from the saved log-sum-exp (FlashAttention-2, arXiv 2307.08691,
section 3). One program owns BLOCK_M queries of one head in one strand and walks over the same keys as :mod:`forward`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from longformer_triton.kernels.triton_impl.primitives import (
    CLEAN,
    EDGE,
    HOLES,
    INACTIVE_LSE,
    RUN_TIME_NUMBERS,
    Dropout,
    HeadView,
    at_head,
    is_active,
    keep_pairs,
    keep_tile,
    load_global_keys,
    load_keys_and_values,
    load_rows,
    load_strand,
    sees_outside,
    signed,
    store_rows,
    tile_phases,
    visible_pairs,
    window_program,
)


@triton.jit
def add_grad_query(
    grad_query, query, grad_out, lse_log2, delta, key, value, visible, keep, scale_log2,
    MASKED: tl.constexpr, DROPOUT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """grad_query [M, D] plus ds k over one tile of keys, both without dropout's factor r."""
    ACC: tl.constexpr = grad_query.dtype
    # [M, N] each
    scores = tl.dot(query, tl.trans(key), input_precision=PRECISION, out_dtype=ACC)
    probability = tl.exp2(scores * scale_log2 - lse_log2[:, None])
    grad_probability = tl.dot(grad_out, tl.trans(value), input_precision=PRECISION, out_dtype=ACC)
    if DROPOUT:
        grad_probability = tl.where(keep, grad_probability, 0.0)
    grad_score = probability * (grad_probability - delta[:, None])
    if MASKED:
        grad_score = tl.where(visible, grad_score, 0.0)
    return tl.dot(grad_score.to(key.dtype), key, grad_query, input_precision=PRECISION, out_dtype=ACC)


@triton.jit
def _window_grad_query(
    grad_query, query, grad_out, lse_log2, delta, low, high, query_token, keys, values, key_flags_ptr, begin, tile_begin,
    tile_end, strand, dropout, scale_log2,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr, DROPOUT: tl.constexpr, PRECISION: tl.constexpr,
    CHECK: tl.constexpr, DESCRIPTORS: tl.constexpr,
):  # fmt: skip
    """Add the window's key tiles tile_begin .. tile_end - 1; CHECK says what their pairs need checked."""
    # The copy engine knows no masks, and nothing is pipelined without it, as in :mod:`forward`.
    STAGES: tl.constexpr = 1 if DESCRIPTORS and CHECK == HOLES else None
    for tile in tl.range(tile_begin, tile_end, num_stages=STAGES):
        key_start = begin + tile * BLOCK_N
        # [BLOCK_N, BLOCK_D] each
        key, value, real = load_keys_and_values(
            keys, values, key_start, strand, key_flags_ptr, HEAD_DIM, BLOCK_N, BLOCK_D, CHECK, DESCRIPTORS
        )
        visible = visible_pairs(low, high, key_start, real, BLOCK_N, CHECK)  # [BLOCK_M, BLOCK_N]
        keep = keep_tile(dropout, query_token, key_start, strand.residue, BLOCK_N, DROPOUT)
        grad_query = add_grad_query(
            grad_query, query, grad_out, lse_log2, delta, key, value, visible, keep, scale_log2,
            MASKED=CHECK != CLEAN, DROPOUT=DROPOUT, PRECISION=PRECISION,
        )  # fmt: skip
    return grad_query


@triton.jit
def _globals_grad_query(
    grad_query, query, grad_out, lse_log2, delta, query_token, keys, values, global_index_ptr, count, left, right, dilation,
    dropout, scale_log2,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_G: tl.constexpr, IS_CAUSAL: tl.constexpr, DROPOUT: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Add the global keys that lie outside each query's window."""
    # Not pipelined: there are few, and Triton 3.6 leaves out the fence between asynchronous copies by pointers and wgmma.
    for start in tl.range(0, count, BLOCK_G, num_stages=1):
        # token, real [BLOCK_G]; key, value [BLOCK_G, BLOCK_D]
        slot = start + tl.arange(0, BLOCK_G)
        token, key, value, real = load_global_keys(keys, values, global_index_ptr, slot, count, HEAD_DIM, BLOCK_D)
        visible = sees_outside(query_token[:, None], token[None, :], real[None, :], left, right, dilation, IS_CAUSAL)
        keep = keep_pairs(dropout, query_token[:, None], token[None, :], DROPOUT)
        grad_query = add_grad_query(
            grad_query, query, grad_out, lse_log2, delta, key, value, visible, keep, scale_log2,
            MASKED=True, DROPOUT=DROPOUT, PRECISION=PRECISION,
        )  # fmt: skip
    return grad_query


@triton.jit(do_not_specialize=RUN_TIME_NUMBERS)
def window_grad_query(
    query_ptr, key_ptr, value_ptr, key_tiles, value_tiles, key_flags_ptr, span_ptr, global_index_ptr, global_count_ptr,
    seed_ptr, grad_out_ptr, delta_ptr, lse_log2_ptr, grad_query_ptr,
    query_stride_b, query_stride_h, query_stride_n, key_stride_b, key_stride_h, key_stride_n,
    value_stride_b, value_stride_h, value_stride_n,
    grad_out_stride_b, grad_out_stride_h, grad_out_stride_n, grad_out_stride_d,
    grad_query_stride_b, grad_query_stride_h, grad_query_stride_n,
    heads, first_head, run_heads, group, seq_len, row_stride, left, right, dilation, num_globals, threshold,
    scale_log2, query_sign, grad_scale,
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
    grad_outs = HeadView(
        at_head(grad_out_ptr, grad_out_stride_b, grad_out_stride_h, batch, head), grad_out_stride_n, grad_out_stride_d
    )
    grad_queries = HeadView(at_head(grad_query_ptr, grad_query_stride_b, grad_query_stride_h, batch, head), grad_query_stride_n)
    key_flags_ptr += batch.to(tl.int64) * seq_len
    dropout = Dropout(seed_ptr, threshold, batch * heads + head)

    step = start + tl.arange(0, BLOCK_M)
    token = residue + step * dilation
    in_strand = token < seq_len
    row = (batch.to(tl.int64) * heads + head) * row_stride + token
    lse_log2 = tl.load(lse_log2_ptr + row, mask=in_strand, other=INACTIVE_LSE)
    delta = tl.load(delta_ptr + row, mask=in_strand, other=0.0)
    # Rows that take no part may hold NaN: they are not loaded. [BLOCK_M, BLOCK_D] each
    alive = is_active(lse_log2)
    query = signed(load_rows(queries, token, alive, HEAD_DIM, BLOCK_D), query_sign, FLIP_QUERY)
    grad_out = load_rows(grad_outs, token, alive, HEAD_DIM, BLOCK_D)

    grad_query = tl.zeros([BLOCK_M, BLOCK_D], ACC)
    if HAS_GLOBALS:
        global_index_ptr += batch.to(tl.int64) * num_globals
        count = tl.load(global_count_ptr + batch).to(tl.int32)
        grad_query = _globals_grad_query(
            grad_query, query, grad_out, lse_log2, delta, token, keys, values, global_index_ptr, count, left, right, dilation,
            dropout, scale_log2,
            HEAD_DIM, BLOCK_D, BLOCK_G, IS_CAUSAL, DROPOUT, PRECISION,
        )  # fmt: skip
    strand, has_holes = load_strand(span_ptr, batch, seq_len, residue, dilation, HAS_MASK)
    ALIGN: tl.constexpr = 64 if DROPOUT else 1
    UNSURE: tl.constexpr = HOLES if HAS_MASK else EDGE
    begin, bounds = tile_phases(start, BLOCK_M, BLOCK_N, left, right, strand.first, strand.last, has_holes, ALIGN)
    low, high = tl.maximum(step - left, strand.first), tl.minimum(step + right, strand.last - 1)
    for phase in tl.static_range(4):  # a phase is numbered by what it checks
        grad_query = _window_grad_query(
            grad_query, query, grad_out, lse_log2, delta, low, high, token, keys, values, key_flags_ptr, begin, bounds[phase],
            bounds[phase + 1], strand, dropout, scale_log2,
            HEAD_DIM, BLOCK_D, BLOCK_N, DROPOUT, PRECISION, UNSURE if phase == EDGE else phase, DESCRIPTORS,
        )  # fmt: skip
    store_rows(grad_queries, token, grad_query * grad_scale, in_strand, HEAD_DIM, BLOCK_D)
