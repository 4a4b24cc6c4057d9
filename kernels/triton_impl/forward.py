"""Windowed attention with global keys, forward: out = softmax(scale q k^T) v over the visible keys, and its log-sum-exp.

Longformer, arXiv 2004.05150, section 3, by the online softmax of FlashAttention-2. One program owns BLOCK_M queries of one
head, in one strand (see :mod:`primitives`). It gathers the global keys outside the window of each query through their index,
in narrow tiles, then walks over the window: tiles cut by its left edge, tiles that all queries see in full, tiles cut by its
right edge. All keys join one softmax. It reads query, key, value and writes out and lse for its queries.
"""

from __future__ import annotations

import triton
import triton.language as tl

from longformer_triton.kernels.triton_impl.primitives import (
    CLEAN,
    EDGE,
    FLOOR,
    HOLES,
    in_window,
    keep_pairs,
    keep_tile,
    load_rows,
    load_tile,
    real_steps,
    softmax_finish,
    softmax_update,
    steps_before,
    store_rows,
    strand_of,
    text_span,
    tile_phases,
    visible_pairs,
)


@triton.jit
def _attend_window(
    acc, row_max, row_sum, query, low, high, query_token, key_tiles, value_tiles, key_ptr, value_ptr, key_flags_ptr, seed_ptr,
    key_stride_n, value_stride_n, batch, key_head, begin, tile_begin, tile_end, first, last, residue, dilation, stream,
    threshold, scale_log2,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr, HAS_MASK: tl.constexpr, DROPOUT: tl.constexpr,
    PRECISION: tl.constexpr, CHECK: tl.constexpr, DESCRIPTORS: tl.constexpr,
):  # fmt: skip
    """Fold the window's key tiles tile_begin .. tile_end - 1 into the softmax; CHECK says what their pairs need checked."""
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
        # [BLOCK_M, BLOCK_N]
        scores = tl.dot(query, tl.trans(key), input_precision=PRECISION, out_dtype=acc.dtype)
        if CHECK != CLEAN:
            scores = tl.where(visible_pairs(low, high, key_start, real, BLOCK_N, CHECK), scores, FLOOR)
        keep = keep_tile(seed_ptr, threshold, query_token, key_start, stream, residue, BLOCK_N, DROPOUT)
        acc, row_max, row_sum = softmax_update(scores, keep, value, acc, row_max, row_sum, scale_log2, DROPOUT, PRECISION)
    return acc, row_max, row_sum


@triton.jit
def _attend_globals(
    acc, row_max, row_sum, query, query_token, key_ptr, value_ptr, global_index_ptr, count, seed_ptr, key_stride_n,
    value_stride_n, left, right, dilation, stream, threshold, scale_log2,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_G: tl.constexpr, IS_CAUSAL: tl.constexpr, DROPOUT: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Fold the global keys that lie outside each query's window into the softmax."""
    # Not pipelined: there are few, and Triton 3.6 leaves out the fence between asynchronous copies by pointers and wgmma.
    for start in tl.range(0, count, BLOCK_G, num_stages=1):
        slot = start + tl.arange(0, BLOCK_G)
        real = slot < count
        token = tl.load(global_index_ptr + slot, mask=real, other=0).to(tl.int32)
        key = load_rows(key_ptr, token, key_stride_n, real, 1, HEAD_DIM, BLOCK_D, EDGE)  # [BLOCK_G, BLOCK_D]
        value = load_rows(value_ptr, token, value_stride_n, real, 1, HEAD_DIM, BLOCK_D, EDGE)  # [BLOCK_G, BLOCK_D]
        # [BLOCK_M, BLOCK_G]
        scores = tl.dot(query, tl.trans(key), input_precision=PRECISION, out_dtype=acc.dtype)
        visible = real[None, :] & (in_window(query_token[:, None], token[None, :], left, right, dilation) == 0)
        if IS_CAUSAL:
            visible = visible & (token[None, :] <= query_token[:, None])
        scores = tl.where(visible, scores, FLOOR)
        keep = keep_pairs(seed_ptr, threshold, query_token[:, None], token[None, :], stream, DROPOUT)
        acc, row_max, row_sum = softmax_update(scores, keep, value, acc, row_max, row_sum, scale_log2, DROPOUT, PRECISION)
    return acc, row_max, row_sum


@triton.jit(do_not_specialize=[
    "heads", "first_head", "run_heads", "group", "seq_len", "left", "right", "dilation", "num_globals", "threshold",
])  # fmt: skip
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
    tiles = tl.cdiv(tl.cdiv(seq_len, dilation), BLOCK_M) * dilation
    program = tl.program_id(0)
    head = first_head + (program // tiles) % run_heads
    batch = program // tiles // run_heads
    residue, start = strand_of(program % tiles, seq_len, dilation, BLOCK_M)
    batch_64, head_64, key_head_64 = batch.to(tl.int64), head.to(tl.int64), (head // group).to(tl.int64)
    query_ptr += batch_64 * query_stride_b + head_64 * query_stride_h
    key_ptr += batch_64 * key_stride_b + key_head_64 * key_stride_h
    value_ptr += batch_64 * value_stride_b + key_head_64 * value_stride_h
    out_ptr += batch_64 * out_stride_b + head_64 * out_stride_h
    lse_ptr += (batch_64 * heads + head_64) * seq_len
    key_flags_ptr += batch_64 * seq_len
    stream = batch * heads + head

    first_token, last_token, has_holes = text_span(span_ptr, batch, seq_len, HAS_MASK)
    first, last = steps_before(first_token, residue, dilation), steps_before(last_token, residue, dilation)
    step = start + tl.arange(0, BLOCK_M)
    token = residue + step * dilation
    in_strand = token < seq_len
    query = load_rows(query_ptr, token, query_stride_n, in_strand, 1, HEAD_DIM, BLOCK_D, EDGE)  # [BLOCK_M, BLOCK_D]
    if FLIP_QUERY:
        query = (query * query_sign).to(query.dtype)

    acc = tl.zeros([BLOCK_M, BLOCK_D], ACC)
    row_max = tl.full([BLOCK_M], FLOOR, ACC)
    row_sum = tl.zeros([BLOCK_M], ACC)
    if HAS_GLOBALS:
        count = tl.load(global_count_ptr + batch).to(tl.int32)
        acc, row_max, row_sum = _attend_globals(
            acc, row_max, row_sum, query, token, key_ptr, value_ptr, global_index_ptr + batch_64 * num_globals, count, seed_ptr,
            key_stride_n, value_stride_n, left, right, dilation, stream, threshold, scale_log2,
            HEAD_DIM, BLOCK_D, BLOCK_G, IS_CAUSAL, DROPOUT, PRECISION,
        )  # fmt: skip
    ALIGN: tl.constexpr = 64 if DROPOUT else 1
    begin, full_begin, full_end, end = tile_phases(start, BLOCK_M, BLOCK_N, left, right, first, last, has_holes, ALIGN)
    low, high = tl.maximum(step - left, first), tl.minimum(step + right, last - 1)
    for phase in tl.static_range(3):
        # In this order: the left edge, the tiles that are seen in full, the right edge.
        tile_begin = 0 if phase == 0 else full_begin if phase == 1 else full_end
        tile_end = full_begin if phase == 0 else full_end if phase == 1 else end
        acc, row_max, row_sum = _attend_window(
            acc, row_max, row_sum, query, low, high, token, key_tiles, value_tiles, key_ptr, value_ptr, key_flags_ptr, seed_ptr,
            key_stride_n, value_stride_n, batch, head // group, begin, tile_begin, tile_end, first, last, residue, dilation,
            stream, threshold, scale_log2,
            HEAD_DIM, BLOCK_D, BLOCK_N, HAS_MASK, DROPOUT, PRECISION, CLEAN if phase == 1 else HOLES if HAS_MASK else EDGE,
            DESCRIPTORS,
        )  # fmt: skip

    real = real_steps(step, first, last, token, key_flags_ptr, HOLES if HAS_MASK else EDGE)
    out, lse = softmax_finish(acc, row_max, row_sum, scale_log2, rescale, real)
    store_rows(out_ptr, token, out_stride_n, out, in_strand, HEAD_DIM, BLOCK_D)
    tl.store(lse_ptr + token, lse, mask=in_strand)
