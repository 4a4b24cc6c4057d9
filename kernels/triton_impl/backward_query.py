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
    NOWHERE,
    in_window,
    keep_pairs,
    keep_tile,
    load_rows,
    load_tile,
    real_steps,
    steps_before,
    store_rows,
    strand_of,
    takes_part,
    text_span,
    tile_phases,
    visible_pairs,
)


@triton.jit
def add_grad_query(
    grad_query, query, grad_out, normaliser, delta, key, value, visible, keep, scale_log2,
    MASKED: tl.constexpr, DROPOUT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """grad_query [M, D] plus ds k over one tile of keys, in units of what dropout makes of a kept probability."""
    ACC: tl.constexpr = grad_query.dtype
    # [M, N] each
    scores = tl.dot(query, tl.trans(key), input_precision=PRECISION, out_dtype=ACC)
    probability = tl.exp2(scores * scale_log2 - normaliser[:, None])
    grad_probability = tl.dot(grad_out, tl.trans(value), input_precision=PRECISION, out_dtype=ACC)
    if DROPOUT:
        grad_probability = tl.where(keep, grad_probability, 0.0)
    grad_score = probability * (grad_probability - delta[:, None])
    if MASKED:
        grad_score = tl.where(visible, grad_score, 0.0)
    return tl.dot(grad_score.to(key.dtype), key, grad_query, input_precision=PRECISION, out_dtype=ACC)


@triton.jit
def _window_grad_query(
    grad_query, query, grad_out, normaliser, delta, low, high, query_token, key_tiles, value_tiles, key_ptr, value_ptr,
    key_flags_ptr, seed_ptr, key_stride_n, value_stride_n, batch, key_head, begin, tile_begin, tile_end, first, last, residue,
    dilation, stream, threshold, scale_log2,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr, HAS_MASK: tl.constexpr, DROPOUT: tl.constexpr,
    PRECISION: tl.constexpr, CHECK: tl.constexpr, DESCRIPTORS: tl.constexpr,
):  # fmt: skip
    """Add the window's key tiles tile_begin .. tile_end - 1; CHECK says what their pairs need checked."""
    for tile in tl.range(tile_begin, tile_end):
        key_start = begin + tile * BLOCK_N
        step = key_start + tl.arange(0, BLOCK_N)
        token = residue + step * dilation
        real = real_steps(step, first, last, token, key_flags_ptr, CHECK)
        # [BLOCK_N, BLOCK_D] each
        key = load_tile(
            key_tiles, key_ptr, batch, key_head, key_start, token, key_stride_n, real, 1,
            HEAD_DIM, BLOCK_N, BLOCK_D, HAS_MASK, CHECK, DESCRIPTORS,
        )  # fmt: skip
        value = load_tile(
            value_tiles, value_ptr, batch, key_head, key_start, token, value_stride_n, real, 1,
            HEAD_DIM, BLOCK_N, BLOCK_D, HAS_MASK, CHECK, DESCRIPTORS,
        )  # fmt: skip
        visible = visible_pairs(low, high, key_start, real, BLOCK_N, CHECK)  # [BLOCK_M, BLOCK_N]
        keep = keep_tile(seed_ptr, threshold, query_token, key_start, stream, residue, BLOCK_N, DROPOUT)
        grad_query = add_grad_query(
            grad_query, query, grad_out, normaliser, delta, key, value, visible, keep, scale_log2,
            CHECK != CLEAN, DROPOUT, PRECISION,
        )  # fmt: skip
    return grad_query


@triton.jit(do_not_specialize=[
    "heads", "first_head", "run_heads", "group", "seq_len", "row_stride", "left", "right", "dilation", "num_globals",
    "threshold",
])  # fmt: skip
def window_grad_query(
    query_ptr, key_ptr, value_ptr, key_tiles, value_tiles, key_flags_ptr, span_ptr, global_index_ptr, global_count_ptr,
    seed_ptr, grad_out_ptr, delta_ptr, normaliser_ptr, grad_query_ptr,
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
    tiles = tl.cdiv(tl.cdiv(seq_len, dilation), BLOCK_M) * dilation
    program = tl.program_id(0)
    head = first_head + (program // tiles) % run_heads
    batch = program // tiles // run_heads
    residue, start = strand_of(program % tiles, seq_len, dilation, BLOCK_M)
    batch_64, head_64, key_head_64 = batch.to(tl.int64), head.to(tl.int64), (head // group).to(tl.int64)
    key_ptr += batch_64 * key_stride_b + key_head_64 * key_stride_h
    value_ptr += batch_64 * value_stride_b + key_head_64 * value_stride_h
    key_flags_ptr += batch_64 * seq_len
    stream = batch * heads + head

    step = start + tl.arange(0, BLOCK_M)
    token = residue + step * dilation
    in_strand = token < seq_len
    row = (batch_64 * heads + head_64) * row_stride + token
    normaliser = tl.load(normaliser_ptr + row, mask=in_strand, other=NOWHERE)
    delta = tl.load(delta_ptr + row, mask=in_strand, other=0.0)
    # Rows that take no part may hold NaN: they are not loaded.
    alive = takes_part(normaliser)
    query = load_rows(
        query_ptr + batch_64 * query_stride_b + head_64 * query_stride_h, token, query_stride_n, alive, 1,
        HEAD_DIM, BLOCK_D, EDGE,
    )  # fmt: skip
    if FLIP_QUERY:
        query = (query * query_sign).to(query.dtype)
    grad_out = load_rows(
        grad_out_ptr + batch_64 * grad_out_stride_b + head_64 * grad_out_stride_h, token, grad_out_stride_n, alive,
        grad_out_stride_d, HEAD_DIM, BLOCK_D, EDGE,
    )  # fmt: skip

    grad_query = tl.zeros([BLOCK_M, BLOCK_D], ACC)
    if HAS_GLOBALS:
        global_index_ptr += batch_64 * num_globals
        count = tl.load(global_count_ptr + batch).to(tl.int32)
        # Not pipelined: there are few, and Triton 3.6 leaves out the fence between asynchronous copies by pointers and wgmma.
        for slot_start in tl.range(0, count, BLOCK_G, num_stages=1):
            slot = slot_start + tl.arange(0, BLOCK_G)
            real = slot < count
            key_token = tl.load(global_index_ptr + slot, mask=real, other=0).to(tl.int32)
            key = load_rows(key_ptr, key_token, key_stride_n, real, 1, HEAD_DIM, BLOCK_D, EDGE)  # [BLOCK_G, BLOCK_D]
            value = load_rows(value_ptr, key_token, value_stride_n, real, 1, HEAD_DIM, BLOCK_D, EDGE)  # [BLOCK_G, BLOCK_D]
            visible = real[None, :] & (in_window(token[:, None], key_token[None, :], left, right, dilation) == 0)
            if IS_CAUSAL:
                visible = visible & (key_token[None, :] <= token[:, None])
            keep = keep_pairs(seed_ptr, threshold, token[:, None], key_token[None, :], stream, DROPOUT)
            grad_query = add_grad_query(
                grad_query, query, grad_out, normaliser, delta, key, value, visible, keep, scale_log2,
                True, DROPOUT, PRECISION,
            )  # fmt: skip
    first_token, last_token, has_holes = text_span(span_ptr, batch, seq_len, HAS_MASK)
    first, last = steps_before(first_token, residue, dilation), steps_before(last_token, residue, dilation)
    ALIGN: tl.constexpr = 64 if DROPOUT else 1
    begin, full_begin, full_end, end = tile_phases(start, BLOCK_M, BLOCK_N, left, right, first, last, has_holes, ALIGN)
    low, high = tl.maximum(step - left, first), tl.minimum(step + right, last - 1)
    for phase in tl.static_range(3):
        # In this order: the left edge, the tiles that are seen in full, the right edge.
        tile_begin = 0 if phase == 0 else full_begin if phase == 1 else full_end
        tile_end = full_begin if phase == 0 else full_end if phase == 1 else end
        grad_query = _window_grad_query(
            grad_query, query, grad_out, normaliser, delta, low, high, token, key_tiles, value_tiles, key_ptr, value_ptr,
            key_flags_ptr, seed_ptr, key_stride_n, value_stride_n, batch, head // group, begin, tile_begin, tile_end, first,
            last, residue, dilation, stream, threshold, scale_log2,
            HEAD_DIM, BLOCK_D, BLOCK_N, HAS_MASK, DROPOUT, PRECISION, CLEAN if phase == 1 else HOLES if HAS_MASK else EDGE,
            DESCRIPTORS,
        )  # fmt: skip
    grad_query_ptr += batch_64 * grad_query_stride_b + head_64 * grad_query_stride_h
    store_rows(grad_query_ptr, token, grad_query_stride_n, grad_query * grad_scale, in_strand, HEAD_DIM, BLOCK_D)
