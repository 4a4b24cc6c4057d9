"""Backward of everything global: key columns that all queries see, and rows that see all keys.

The sums here run over the whole text and end in a few rows, so they are split: each program leaves a partial sum in the
accumulation type, and :func:`reduce_partials` adds these in order. No atomics, so results repeat bit for bit.

    columns   dv_g = sum_i f p_ig dout_i      dk_g = scale sum_i ds_ig q_i      over the queries i whose window does not hold g
    rows      dq_g = scale sum_j ds_gj k_j    dv_j = sum_g f p_gj dout_g        dk_j = scale sum_g ds_gj q_g
"""

from __future__ import annotations

import triton
import triton.language as tl

from longformer_triton.kernels.triton_impl.backward_key_value import add_grad_key_value
from longformer_triton.kernels.triton_impl.backward_query import add_grad_query
from longformer_triton.kernels.triton_impl.global_rows import split_of
from longformer_triton.kernels.triton_impl.primitives import (
    EDGE,
    HOLES,
    NOWHERE,
    in_window,
    keep_pairs,
    keep_tile,
    load_rows,
    real_steps,
    store_rows,
    takes_part,
    text_span,
)


@triton.jit(do_not_specialize=[
    "heads", "first_head", "run_heads", "group", "seq_len", "row_stride", "left", "right", "dilation", "num_globals", "splits",
    "threshold",
])  # fmt: skip
def columns_grad_key_value(
    query_ptr, key_ptr, value_ptr, span_ptr, global_index_ptr, global_count_ptr, seed_ptr,
    grad_out_ptr, delta_ptr, normaliser_ptr, partial_key_ptr, partial_value_ptr,
    query_stride_b, query_stride_h, query_stride_n, key_stride_b, key_stride_h, key_stride_n,
    value_stride_b, value_stride_h, value_stride_n,
    grad_out_stride_b, grad_out_stride_h, grad_out_stride_n, grad_out_stride_d,
    heads, first_head, run_heads, group, seq_len, row_stride, left, right, dilation, num_globals, splits, threshold,
    scale_log2, query_sign, key_scale, value_scale,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_G: tl.constexpr,
    HAS_MASK: tl.constexpr, IS_CAUSAL: tl.constexpr, FLIP_QUERY: tl.constexpr, NEED_KEY: tl.constexpr, NEED_VALUE: tl.constexpr,
    DROPOUT: tl.constexpr, PRECISION: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """partial_key, partial_value (batch, heads, splits, num_globals, HEAD_DIM): what one split of the queries adds.

    One program owns BLOCK_G global keys, one query head among those that share one dilation, and one split.
    """
    blocks = tl.cdiv(num_globals, BLOCK_G)
    program = tl.program_id(0)
    split = program % splits
    block = (program // splits) % blocks
    head = first_head + (program // splits // blocks) % run_heads
    batch = program // splits // blocks // run_heads
    batch_64, head_64, key_head_64 = batch.to(tl.int64), head.to(tl.int64), (head // group).to(tl.int64)
    query_ptr += batch_64 * query_stride_b + head_64 * query_stride_h
    grad_out_ptr += batch_64 * grad_out_stride_b + head_64 * grad_out_stride_h
    row = (batch_64 * heads + head_64) * row_stride

    count = tl.load(global_count_ptr + batch)
    slot = block * BLOCK_G + tl.arange(0, BLOCK_G)
    real = slot < count
    key_token = tl.load(global_index_ptr + batch_64 * num_globals + slot, mask=real, other=0).to(tl.int32)
    key = load_rows(
        key_ptr + batch_64 * key_stride_b + key_head_64 * key_stride_h, key_token, key_stride_n, real, 1,
        HEAD_DIM, BLOCK_D, EDGE,
    )  # fmt: skip
    value = load_rows(
        value_ptr + batch_64 * value_stride_b + key_head_64 * value_stride_h, key_token, value_stride_n, real, 1,
        HEAD_DIM, BLOCK_D, EDGE,
    )  # fmt: skip
    first, last, _ = text_span(span_ptr, batch, seq_len, HAS_MASK)
    begin, end = split_of(split, splits, first, last, BLOCK_M)
    end = end if block * BLOCK_G < count else begin  # a block past the count has nothing to do

    grad_key = tl.zeros([BLOCK_G, BLOCK_D], ACC)
    grad_value = tl.zeros([BLOCK_G, BLOCK_D], ACC)
    for start in tl.range(begin, end, BLOCK_M):
        token = start + tl.arange(0, BLOCK_M)
        inside = (token >= first) & (token < end)
        normaliser = tl.load(normaliser_ptr + row + token, mask=inside, other=NOWHERE)
        delta = tl.load(delta_ptr + row + token, mask=inside, other=0.0)
        alive = takes_part(normaliser)
        query = load_rows(query_ptr, token, query_stride_n, alive, 1, HEAD_DIM, BLOCK_D, EDGE)  # [BLOCK_M, BLOCK_D]
        grad_out = load_rows(grad_out_ptr, token, grad_out_stride_n, alive, grad_out_stride_d, HEAD_DIM, BLOCK_D, EDGE)
        if FLIP_QUERY:
            query = (query * query_sign).to(query.dtype)
        # [BLOCK_G, BLOCK_M]
        visible = real[:, None] & (in_window(token[None, :], key_token[:, None], left, right, dilation) == 0) & alive[None, :]
        if IS_CAUSAL:
            visible = visible & (key_token[:, None] <= token[None, :])
        keep = keep_pairs(seed_ptr, threshold, token[None, :], key_token[:, None], batch * heads + head, DROPOUT)
        grad_key, grad_value = add_grad_key_value(
            grad_key, grad_value, key, value, query, grad_out, normaliser, delta, visible, keep, scale_log2,
            True, NEED_KEY, NEED_VALUE, DROPOUT, False, True, PRECISION,
        )  # fmt: skip
    target = ((batch_64 * heads + head_64) * splits + split) * num_globals * HEAD_DIM
    written = slot < num_globals
    if NEED_KEY:
        store_rows(partial_key_ptr + target, slot, HEAD_DIM, grad_key * key_scale, written, HEAD_DIM, BLOCK_D)
    if NEED_VALUE:
        store_rows(partial_value_ptr + target, slot, HEAD_DIM, grad_value * value_scale, written, HEAD_DIM, BLOCK_D)


@triton.jit(do_not_specialize=["heads", "group", "seq_len", "num_globals", "splits", "threshold"])
def rows_grad_query(
    query_ptr, key_ptr, value_ptr, key_flags_ptr, span_ptr, global_index_ptr, global_count_ptr, seed_ptr,
    grad_out_ptr, delta_ptr, normaliser_ptr, partial_ptr,
    query_stride_b, query_stride_h, query_stride_n, key_stride_b, key_stride_h, key_stride_n,
    value_stride_b, value_stride_h, value_stride_n,
    grad_out_stride_b, grad_out_stride_h, grad_out_stride_n, grad_out_stride_d,
    heads, group, seq_len, num_globals, splits, threshold,
    scale_log2, query_sign, grad_scale,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_G: tl.constexpr, BLOCK_N: tl.constexpr,
    HAS_MASK: tl.constexpr, FLIP_QUERY: tl.constexpr, DROPOUT: tl.constexpr, PRECISION: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """partial (batch, heads, splits, num_globals, HEAD_DIM): dq of BLOCK_G global rows of one head, from one split of keys."""
    blocks = tl.cdiv(num_globals, BLOCK_G)
    program = tl.program_id(0)
    split = program % splits
    block = (program // splits) % blocks
    head = (program // splits // blocks) % heads
    batch = program // splits // blocks // heads
    batch_64, head_64, key_head_64 = batch.to(tl.int64), head.to(tl.int64), (head // group).to(tl.int64)
    key_ptr += batch_64 * key_stride_b + key_head_64 * key_stride_h
    value_ptr += batch_64 * value_stride_b + key_head_64 * value_stride_h
    key_flags_ptr += batch_64 * seq_len
    row = (batch_64 * heads + head_64) * num_globals

    count = tl.load(global_count_ptr + batch)
    slot = block * BLOCK_G + tl.arange(0, BLOCK_G)
    normaliser = tl.load(normaliser_ptr + row + slot, mask=slot < count, other=NOWHERE)
    delta = tl.load(delta_ptr + row + slot, mask=slot < count, other=0.0)
    alive = takes_part(normaliser)
    token = tl.load(global_index_ptr + batch_64 * num_globals + slot, mask=alive, other=0).to(tl.int32)
    query = load_rows(
        query_ptr + batch_64 * query_stride_b + head_64 * query_stride_h, slot, query_stride_n, alive, 1,
        HEAD_DIM, BLOCK_D, EDGE,
    )  # fmt: skip
    if FLIP_QUERY:
        query = (query * query_sign).to(query.dtype)
    grad_out = load_rows(
        grad_out_ptr + batch_64 * grad_out_stride_b + head_64 * grad_out_stride_h, token, grad_out_stride_n, alive,
        grad_out_stride_d, HEAD_DIM, BLOCK_D, EDGE,
    )  # fmt: skip
    first, last, _ = text_span(span_ptr, batch, seq_len, HAS_MASK)
    begin, end = split_of(split, splits, first, last, BLOCK_N)
    end = end if block * BLOCK_G < count else begin  # a block past the count has nothing to do

    grad_query = tl.zeros([BLOCK_G, BLOCK_D], ACC)
    for key_start in tl.range(begin, end, BLOCK_N):
        key_token = key_start + tl.arange(0, BLOCK_N)
        real = real_steps(key_token, first, end, key_token, key_flags_ptr, HOLES if HAS_MASK else EDGE)
        key = load_rows(key_ptr, key_token, key_stride_n, real, 1, HEAD_DIM, BLOCK_D, EDGE)  # [BLOCK_N, BLOCK_D]
        value = load_rows(value_ptr, key_token, value_stride_n, real, 1, HEAD_DIM, BLOCK_D, EDGE)  # [BLOCK_N, BLOCK_D]
        keep = keep_tile(seed_ptr, threshold, token, key_start, batch * heads + head, 0, BLOCK_N, DROPOUT)
        grad_query = add_grad_query(
            grad_query, query, grad_out, normaliser, delta, key, value, real[None, :], keep, scale_log2,
            True, DROPOUT, PRECISION,
        )  # fmt: skip
    target = ((batch_64 * heads + head_64) * splits + split) * num_globals * HEAD_DIM
    store_rows(partial_ptr + target, slot, HEAD_DIM, grad_query * grad_scale, slot < num_globals, HEAD_DIM, BLOCK_D)


@triton.jit(do_not_specialize=["heads", "group", "seq_len", "num_globals", "threshold"])
def rows_grad_key_value(
    query_ptr, key_ptr, value_ptr, key_flags_ptr, global_index_ptr, global_count_ptr, seed_ptr,
    grad_out_ptr, delta_ptr, normaliser_ptr, grad_key_ptr, grad_value_ptr,
    query_stride_b, query_stride_h, query_stride_n, key_stride_b, key_stride_h, key_stride_n,
    value_stride_b, value_stride_h, value_stride_n,
    grad_out_stride_b, grad_out_stride_h, grad_out_stride_n, grad_out_stride_d,
    grad_key_stride_b, grad_key_stride_h, grad_key_stride_n, grad_value_stride_b, grad_value_stride_h, grad_value_stride_n,
    heads, group, seq_len, num_globals, threshold,
    scale_log2, query_sign, key_scale, value_scale,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_G: tl.constexpr, BLOCK_N: tl.constexpr,
    HAS_MASK: tl.constexpr, FLIP_QUERY: tl.constexpr, NEED_KEY: tl.constexpr, NEED_VALUE: tl.constexpr,
    DROPOUT: tl.constexpr, PRECISION: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """dk and dv of the rows' own key and value projections: one program owns BLOCK_N tokens of one key head."""
    blocks = tl.cdiv(seq_len, BLOCK_N)
    key_heads = heads // group
    program = tl.program_id(0)
    key_head = (program // blocks) % key_heads
    batch = program // blocks // key_heads
    batch_64, key_head_64 = batch.to(tl.int64), key_head.to(tl.int64)
    key_start = (program % blocks) * BLOCK_N
    key_token = key_start + tl.arange(0, BLOCK_N)
    in_text = key_token < seq_len
    # Masked keys take part: what they bring, NaN too, stays in their own rows, and these are put to zero in the end.
    key = load_rows(
        key_ptr + batch_64 * key_stride_b + key_head_64 * key_stride_h, key_token, key_stride_n, in_text, 1,
        HEAD_DIM, BLOCK_D, EDGE,
    )  # fmt: skip
    value = load_rows(
        value_ptr + batch_64 * value_stride_b + key_head_64 * value_stride_h, key_token, value_stride_n, in_text, 1,
        HEAD_DIM, BLOCK_D, EDGE,
    )  # fmt: skip
    # Rows of scores are keys, of which four warps have their own. The widest heads need eight, and turn the other way what
    # dropout has laid out by queries.
    QUERY_ROWS: tl.constexpr = DROPOUT and BLOCK_D > 128
    count = tl.load(global_count_ptr + batch).to(tl.int32)
    grad_key = tl.zeros([BLOCK_N, BLOCK_D], ACC)
    grad_value = tl.zeros([BLOCK_N, BLOCK_D], ACC)
    for member in tl.range(0, group):
        head = key_head * group + member
        head_64 = key_head_64 * group + member
        row = (batch_64 * heads + head_64) * num_globals
        for start in tl.range(0, count, BLOCK_G):
            slot = start + tl.arange(0, BLOCK_G)
            normaliser = tl.load(normaliser_ptr + row + slot, mask=slot < count, other=NOWHERE)
            delta = tl.load(delta_ptr + row + slot, mask=slot < count, other=0.0)
            alive = takes_part(normaliser)
            token = tl.load(global_index_ptr + batch_64 * num_globals + slot, mask=alive, other=0).to(tl.int32)
            query = load_rows(
                query_ptr + batch_64 * query_stride_b + head_64 * query_stride_h, slot, query_stride_n, alive, 1,
                HEAD_DIM, BLOCK_D, EDGE,
            )  # fmt: skip
            if FLIP_QUERY:
                query = (query * query_sign).to(query.dtype)
            grad_out = load_rows(
                grad_out_ptr + batch_64 * grad_out_stride_b + head_64 * grad_out_stride_h, token, grad_out_stride_n, alive,
                grad_out_stride_d, HEAD_DIM, BLOCK_D, EDGE,
            )  # fmt: skip
            keep = keep_tile(seed_ptr, threshold, token, key_start, batch * heads + head, 0, BLOCK_N, DROPOUT)
            keep = tl.trans(keep) if DROPOUT and not QUERY_ROWS else keep
            visible = alive[:, None] if QUERY_ROWS else alive[None, :]
            grad_key, grad_value = add_grad_key_value(
                grad_key, grad_value, key, value, query, grad_out, normaliser, delta, visible, keep,
                scale_log2, True, NEED_KEY, NEED_VALUE, DROPOUT, QUERY_ROWS, True, PRECISION,
            )  # fmt: skip
    real = real_steps(key_token, 0, seq_len, key_token, key_flags_ptr + batch_64 * seq_len, HOLES if HAS_MASK else EDGE)
    if NEED_KEY:
        grad_key = tl.where(real[:, None], grad_key * key_scale, 0.0)
        grad_key_ptr += batch_64 * grad_key_stride_b + key_head_64 * grad_key_stride_h
        store_rows(grad_key_ptr, key_token, grad_key_stride_n, grad_key, in_text, HEAD_DIM, BLOCK_D)
    if NEED_VALUE:
        grad_value = tl.where(real[:, None], grad_value * value_scale, 0.0)
        grad_value_ptr += batch_64 * grad_value_stride_b + key_head_64 * grad_value_stride_h
        store_rows(grad_value_ptr, key_token, grad_value_stride_n, grad_value, in_text, HEAD_DIM, BLOCK_D)


@triton.jit(do_not_specialize=["heads", "num_globals", "parts"])
def reduce_partials(
    partial_ptr, global_index_ptr, global_count_ptr, target_ptr, target_stride_b, target_stride_h, target_stride_n,
    heads, num_globals, parts,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_G: tl.constexpr, SCATTER: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Sum partial (batch, heads, parts, num_globals, HEAD_DIM) over its parts, in order: BLOCK_G rows of one head a program.

    With SCATTER the sums are added to the target's rows at the global tokens; without, they are its rows, zero past a count.
    """
    blocks = tl.cdiv(num_globals, BLOCK_G)
    program = tl.program_id(0)
    head = (program // blocks) % heads
    batch = program // blocks // heads
    batch_64, head_64 = batch.to(tl.int64), head.to(tl.int64)
    slot = (program % blocks) * BLOCK_G + tl.arange(0, BLOCK_G)
    alive = slot < tl.load(global_count_ptr + batch)
    acc = tl.zeros([BLOCK_G, BLOCK_D], ACC)
    for part in tl.range(0, parts):
        rows_ptr = partial_ptr + ((batch_64 * heads + head_64) * parts + part) * num_globals * HEAD_DIM
        acc += load_rows(rows_ptr, slot, HEAD_DIM, alive, 1, HEAD_DIM, BLOCK_D, EDGE)
    target_ptr += batch_64 * target_stride_b + head_64 * target_stride_h
    if SCATTER:
        token = tl.load(global_index_ptr + batch_64 * num_globals + slot, mask=alive, other=0).to(tl.int32)
        acc += load_rows(target_ptr, token, target_stride_n, alive, 1, HEAD_DIM, BLOCK_D, EDGE).to(ACC)
        store_rows(target_ptr, token, target_stride_n, acc, alive, HEAD_DIM, BLOCK_D)
    else:
        store_rows(target_ptr, slot, target_stride_n, acc, slot < num_globals, HEAD_DIM, BLOCK_D)
