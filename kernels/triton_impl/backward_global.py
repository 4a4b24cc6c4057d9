"""Backward of everything global: key columns that all queries see, and rows that see all keys.

The sums here run over the whole sequence and end in a few rows, so they are split: each program leaves a partial sum in the
accumulation type, and :func:`reduce_partials` adds these in order. No atomics, so results repeat bit for bit.

    columns   dv_g = sum_i f p_ig dout_i      dk_g = scale sum_i ds_ig q_i      over the queries i whose window does not hold g
    rows      dq_g = scale sum_j ds_gj k_j    dv_j = sum_g f p_gj dout_g        dk_j = scale sum_g ds_gj q_g
"""

from __future__ import annotations

import triton
import triton.language as tl

from longformer_triton.kernels.triton_impl.backward_key_value import add_grad_key_value
from longformer_triton.kernels.triton_impl.backward_query import add_grad_query
from longformer_triton.kernels.triton_impl.primitives import (
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
    load_rows,
    real_span,
    real_steps,
    sees_outside,
    signed,
    split_of,
    split_program,
    store_rows,
)


@triton.jit(do_not_specialize=RUN_TIME_NUMBERS)
def global_columns_grad_key_value(
    query_ptr, key_ptr, value_ptr, span_ptr, global_index_ptr, global_count_ptr, seed_ptr,
    grad_out_ptr, delta_ptr, lse_log2_ptr, partial_key_ptr, partial_value_ptr,
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
    batch, head, first_slot, split = split_program(first_head, run_heads, num_globals, splits, BLOCK_G)
    key_head = head // group
    queries = HeadView(at_head(query_ptr, query_stride_b, query_stride_h, batch, head), query_stride_n)
    keys = HeadView(at_head(key_ptr, key_stride_b, key_stride_h, batch, key_head), key_stride_n)
    values = HeadView(at_head(value_ptr, value_stride_b, value_stride_h, batch, key_head), value_stride_n)
    grad_outs = HeadView(
        at_head(grad_out_ptr, grad_out_stride_b, grad_out_stride_h, batch, head), grad_out_stride_n, grad_out_stride_d
    )
    row = (batch.to(tl.int64) * heads + head) * row_stride
    dropout = Dropout(seed_ptr, threshold, batch * heads + head)

    count = tl.load(global_count_ptr + batch)
    slot = first_slot + tl.arange(0, BLOCK_G)
    global_index_ptr += batch.to(tl.int64) * num_globals
    # key_token, real [BLOCK_G]; key, value [BLOCK_G, BLOCK_D]
    key_token, key, value, real = load_global_keys(keys, values, global_index_ptr, slot, count, HEAD_DIM, BLOCK_D)
    first, last, _ = real_span(span_ptr, batch, seq_len, HAS_MASK)
    begin, end = split_of(split, splits, first, last, BLOCK_M)
    end = end if first_slot < count else begin  # a block past the count has nothing to do

    grad_key = tl.zeros([BLOCK_G, BLOCK_D], ACC)
    grad_value = tl.zeros([BLOCK_G, BLOCK_D], ACC)
    for start in tl.range(begin, end, BLOCK_M):
        token = start + tl.arange(0, BLOCK_M)
        inside = (token >= first) & (token < end)
        lse_log2 = tl.load(lse_log2_ptr + row + token, mask=inside, other=INACTIVE_LSE)
        delta = tl.load(delta_ptr + row + token, mask=inside, other=0.0)
        alive = is_active(lse_log2)
        # [BLOCK_M, BLOCK_D] each
        query = signed(load_rows(queries, token, alive, HEAD_DIM, BLOCK_D), query_sign, FLIP_QUERY)
        grad_out = load_rows(grad_outs, token, alive, HEAD_DIM, BLOCK_D)
        # [BLOCK_G, BLOCK_M]
        visible = sees_outside(token[None, :], key_token[:, None], real[:, None], left, right, dilation, IS_CAUSAL)
        keep = keep_pairs(dropout, token[None, :], key_token[:, None], DROPOUT)
        grad_key, grad_value = add_grad_key_value(
            grad_key, grad_value, key, value, query, grad_out, lse_log2, delta, visible & alive[None, :], keep, scale_log2,
            MASKED=True, NEED_KEY=NEED_KEY, NEED_VALUE=NEED_VALUE, DROPOUT=DROPOUT, QUERY_ROWS=False, HOLD_KEPT=True,
            PRECISION=PRECISION,
        )  # fmt: skip
    target = ((batch.to(tl.int64) * heads + head) * splits + split) * num_globals * HEAD_DIM
    written = slot < num_globals
    if NEED_KEY:
        store_rows(HeadView(partial_key_ptr + target, HEAD_DIM), slot, grad_key * key_scale, written, HEAD_DIM, BLOCK_D)
    if NEED_VALUE:
        store_rows(HeadView(partial_value_ptr + target, HEAD_DIM), slot, grad_value * value_scale, written, HEAD_DIM, BLOCK_D)


@triton.jit(do_not_specialize=RUN_TIME_NUMBERS)
def global_rows_grad_query(
    query_ptr, key_ptr, value_ptr, key_flags_ptr, span_ptr, global_index_ptr, global_count_ptr, seed_ptr,
    grad_out_ptr, delta_ptr, lse_log2_ptr, partial_ptr,
    query_stride_b, query_stride_h, query_stride_n, key_stride_b, key_stride_h, key_stride_n,
    value_stride_b, value_stride_h, value_stride_n,
    grad_out_stride_b, grad_out_stride_h, grad_out_stride_n, grad_out_stride_d,
    heads, group, seq_len, num_globals, splits, threshold,
    scale_log2, query_sign, grad_scale,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_G: tl.constexpr, BLOCK_N: tl.constexpr,
    HAS_MASK: tl.constexpr, FLIP_QUERY: tl.constexpr, DROPOUT: tl.constexpr, PRECISION: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """partial (batch, heads, splits, num_globals, HEAD_DIM): dq of BLOCK_G global rows of one head, from one split of keys."""
    batch, head, first_slot, split = split_program(0, heads, num_globals, splits, BLOCK_G)
    key_head = head // group
    queries = HeadView(at_head(query_ptr, query_stride_b, query_stride_h, batch, head), query_stride_n)
    keys = HeadView(at_head(key_ptr, key_stride_b, key_stride_h, batch, key_head), key_stride_n)
    values = HeadView(at_head(value_ptr, value_stride_b, value_stride_h, batch, key_head), value_stride_n)
    grad_outs = HeadView(
        at_head(grad_out_ptr, grad_out_stride_b, grad_out_stride_h, batch, head), grad_out_stride_n, grad_out_stride_d
    )
    key_flags_ptr += batch.to(tl.int64) * seq_len
    row = (batch.to(tl.int64) * heads + head) * num_globals
    dropout = Dropout(seed_ptr, threshold, batch * heads + head)

    count = tl.load(global_count_ptr + batch)
    slot = first_slot + tl.arange(0, BLOCK_G)
    lse_log2 = tl.load(lse_log2_ptr + row + slot, mask=slot < count, other=INACTIVE_LSE)
    delta = tl.load(delta_ptr + row + slot, mask=slot < count, other=0.0)
    alive = is_active(lse_log2)
    token = tl.load(global_index_ptr + batch.to(tl.int64) * num_globals + slot, mask=alive, other=0).to(tl.int32)
    # [BLOCK_G, BLOCK_D] each
    query = signed(load_rows(queries, slot, alive, HEAD_DIM, BLOCK_D), query_sign, FLIP_QUERY)
    grad_out = load_rows(grad_outs, token, alive, HEAD_DIM, BLOCK_D)
    first, last, _ = real_span(span_ptr, batch, seq_len, HAS_MASK)
    begin, end = split_of(split, splits, first, last, BLOCK_N)
    end = end if first_slot < count else begin  # a block past the count has nothing to do

    grad_query = tl.zeros([BLOCK_G, BLOCK_D], ACC)
    for key_start in tl.range(begin, end, BLOCK_N):
        key_token = key_start + tl.arange(0, BLOCK_N)
        real = real_steps(key_token, first, end, key_token, key_flags_ptr, HOLES if HAS_MASK else EDGE)
        # [BLOCK_N, BLOCK_D] each
        key = load_rows(keys, key_token, real, HEAD_DIM, BLOCK_D)
        value = load_rows(values, key_token, real, HEAD_DIM, BLOCK_D)
        keep = keep_tile(dropout, token, key_start, 0, BLOCK_N, DROPOUT)
        grad_query = add_grad_query(
            grad_query, query, grad_out, lse_log2, delta, key, value, real[None, :], keep, scale_log2,
            MASKED=True, DROPOUT=DROPOUT, PRECISION=PRECISION,
        )  # fmt: skip
    target = ((batch.to(tl.int64) * heads + head) * splits + split) * num_globals * HEAD_DIM
    partials = HeadView(partial_ptr + target, HEAD_DIM)
    store_rows(partials, slot, grad_query * grad_scale, slot < num_globals, HEAD_DIM, BLOCK_D)


@triton.jit(do_not_specialize=RUN_TIME_NUMBERS)
def global_rows_grad_key_value(
    query_ptr, key_ptr, value_ptr, key_flags_ptr, global_index_ptr, global_count_ptr, seed_ptr,
    grad_out_ptr, delta_ptr, lse_log2_ptr, grad_key_ptr, grad_value_ptr,
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
    keys = HeadView(at_head(key_ptr, key_stride_b, key_stride_h, batch, key_head), key_stride_n)
    values = HeadView(at_head(value_ptr, value_stride_b, value_stride_h, batch, key_head), value_stride_n)
    global_index_ptr += batch.to(tl.int64) * num_globals
    key_start = (program % blocks) * BLOCK_N
    key_token = key_start + tl.arange(0, BLOCK_N)
    in_sequence = key_token < seq_len
    # Masked keys take part: what they bring, NaN too, stays in their own rows, and these are put to zero in the end.
    # [BLOCK_N, BLOCK_D] each
    key = load_rows(keys, key_token, in_sequence, HEAD_DIM, BLOCK_D)
    value = load_rows(values, key_token, in_sequence, HEAD_DIM, BLOCK_D)
    # Tiles of scores have keys as rows, so that each of four warps owns some. The widest heads need eight warps: there tiles
    # have queries as rows, as dropout has laid out its bytes, and are turned on their way into a product.
    QUERY_ROWS: tl.constexpr = DROPOUT and BLOCK_D > 128
    count = tl.load(global_count_ptr + batch).to(tl.int32)
    grad_key = tl.zeros([BLOCK_N, BLOCK_D], ACC)
    grad_value = tl.zeros([BLOCK_N, BLOCK_D], ACC)
    for member in tl.range(0, group):
        head = key_head * group + member
        queries = HeadView(at_head(query_ptr, query_stride_b, query_stride_h, batch, head), query_stride_n)
        grad_outs = HeadView(
            at_head(grad_out_ptr, grad_out_stride_b, grad_out_stride_h, batch, head), grad_out_stride_n, grad_out_stride_d
        )
        row = (batch.to(tl.int64) * heads + head) * num_globals
        dropout = Dropout(seed_ptr, threshold, batch * heads + head)
        for start in tl.range(0, count, BLOCK_G):
            slot = start + tl.arange(0, BLOCK_G)
            lse_log2 = tl.load(lse_log2_ptr + row + slot, mask=slot < count, other=INACTIVE_LSE)
            delta = tl.load(delta_ptr + row + slot, mask=slot < count, other=0.0)
            alive = is_active(lse_log2)
            token = tl.load(global_index_ptr + slot, mask=alive, other=0).to(tl.int32)
            # [BLOCK_G, BLOCK_D] each
            query = signed(load_rows(queries, slot, alive, HEAD_DIM, BLOCK_D), query_sign, FLIP_QUERY)
            grad_out = load_rows(grad_outs, token, alive, HEAD_DIM, BLOCK_D)
            keep = keep_tile(dropout, token, key_start, 0, BLOCK_N, DROPOUT)
            keep = tl.trans(keep) if DROPOUT and not QUERY_ROWS else keep
            visible = alive[:, None] if QUERY_ROWS else alive[None, :]
            grad_key, grad_value = add_grad_key_value(
                grad_key, grad_value, key, value, query, grad_out, lse_log2, delta, visible, keep, scale_log2,
                MASKED=True, NEED_KEY=NEED_KEY, NEED_VALUE=NEED_VALUE, DROPOUT=DROPOUT, QUERY_ROWS=QUERY_ROWS, HOLD_KEPT=True,
                PRECISION=PRECISION,
            )  # fmt: skip
    key_flags_ptr += batch.to(tl.int64) * seq_len
    real = real_steps(key_token, 0, seq_len, key_token, key_flags_ptr, HOLES if HAS_MASK else EDGE)
    if NEED_KEY:
        grad_keys = HeadView(at_head(grad_key_ptr, grad_key_stride_b, grad_key_stride_h, batch, key_head), grad_key_stride_n)
        store_rows(grad_keys, key_token, tl.where(real[:, None], grad_key * key_scale, 0.0), in_sequence, HEAD_DIM, BLOCK_D)
    if NEED_VALUE:
        grad_values = HeadView(
            at_head(grad_value_ptr, grad_value_stride_b, grad_value_stride_h, batch, key_head), grad_value_stride_n
        )
        store_rows(
            grad_values, key_token, tl.where(real[:, None], grad_value * value_scale, 0.0), in_sequence, HEAD_DIM, BLOCK_D
        )


@triton.jit(do_not_specialize=RUN_TIME_NUMBERS)
def reduce_partials(
    partial_ptr, global_index_ptr, global_count_ptr, target_ptr, target_stride_b, target_stride_h, target_stride_n,
    heads, num_globals, parts,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_G: tl.constexpr, SCATTER: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Sum partial (batch, heads, parts, num_globals, HEAD_DIM) over its parts, in order: BLOCK_G rows of one head a program.

    With SCATTER the sums are added to the target's rows at the global tokens; without, they are its rows, zero past a count.
    """
    batch, head, first_slot, _ = split_program(0, heads, num_globals, 1, BLOCK_G)
    slot = first_slot + tl.arange(0, BLOCK_G)
    alive = slot < tl.load(global_count_ptr + batch)
    acc = tl.zeros([BLOCK_G, BLOCK_D], ACC)
    # Stages, as in ``global_rows_combine``: several parts are on their way at once, and are added in order.
    for part in tl.range(0, parts, num_stages=4):
        target = ((batch.to(tl.int64) * heads + head) * parts + part) * num_globals * HEAD_DIM
        acc += load_rows(HeadView(partial_ptr + target, HEAD_DIM), slot, alive, HEAD_DIM, BLOCK_D)
    targets = HeadView(at_head(target_ptr, target_stride_b, target_stride_h, batch, head), target_stride_n)
    if SCATTER:
        token = tl.load(global_index_ptr + batch.to(tl.int64) * num_globals + slot, mask=alive, other=0).to(tl.int32)
        acc += load_rows(targets, token, alive, HEAD_DIM, BLOCK_D).to(ACC)
        store_rows(targets, token, acc, alive, HEAD_DIM, BLOCK_D)
    else:
        store_rows(targets, slot, acc, slot < num_globals, HEAD_DIM, BLOCK_D)
