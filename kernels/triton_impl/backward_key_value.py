"""Gradients of the keys and values inside windows: dv_j = sum_i f_ij p_ij dout_i and dk_j = scale sum_i ds_ij q_i.

With p and ds as :mod:`backward_prepare` states them. One program owns BLOCK_N keys of one head in one strand, and walks over
the queries whose windows hold them: no atomics, so the sums have one order. Heads that share keys get sums of their own, which
:mod:`launch` adds up: a loop over them in here would cost 25 to 50 registers a thread (bench/LOG.md, "a loop too many").
"""

from __future__ import annotations

import triton
import triton.language as tl

from longformer_triton.kernels.triton_impl.primitives import (
    CLEAN,
    EDGE,
    HOLES,
    NOWHERE,
    drop,
    keep_tile,
    load_row_numbers,
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
def add_grad_key_value(
    grad_key, grad_value, key, value, query, grad_out, normaliser, delta, visible, keep, scale_log2,
    MASKED: tl.constexpr, NEED_KEY: tl.constexpr, NEED_VALUE: tl.constexpr, DROPOUT: tl.constexpr, QUERY_ROWS: tl.constexpr,
    HOLD_KEPT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """grad_key, grad_value [N, D] plus what one tile of queries [M, D] adds, both without dropout's factor r.

    Scores, ``visible`` and ``keep`` are [N, M], or [M, N] with QUERY_ROWS. With HOLD_KEPT the probabilities that dropout keeps
    serve both gradients: fewer instructions, more registers.
    """
    ACC: tl.constexpr = grad_key.dtype
    rows, columns = (query, key) if QUERY_ROWS else (key, query)
    scores = tl.dot(rows, tl.trans(columns), input_precision=PRECISION, out_dtype=ACC)
    normaliser = normaliser[:, None] if QUERY_ROWS else normaliser[None, :]
    probability = tl.exp2(scores * scale_log2 - normaliser)
    if MASKED:
        probability = tl.where(visible, probability, 0.0)
    kept = drop(probability, keep, scale_log2) if DROPOUT else probability
    if NEED_VALUE:
        weight = kept.to(grad_out.dtype)
        weight = tl.trans(weight) if QUERY_ROWS else weight
        grad_value = tl.dot(weight, grad_out, grad_value, input_precision=PRECISION, out_dtype=ACC)
    if NEED_KEY:
        rows, columns = (grad_out, value) if QUERY_ROWS else (value, grad_out)
        grad_probability = tl.dot(rows, tl.trans(columns), input_precision=PRECISION, out_dtype=ACC)
        delta = delta[:, None] if QUERY_ROWS else delta[None, :]
        if DROPOUT and HOLD_KEPT:
            grad_score = kept * grad_probability - probability * delta
        elif DROPOUT:
            grad_score = tl.where(keep, probability * grad_probability, 0.0) - probability * delta
        else:
            grad_score = probability * (grad_probability - delta)
        grad_score = grad_score.to(query.dtype)
        grad_score = tl.trans(grad_score) if QUERY_ROWS else grad_score
        grad_key = tl.dot(grad_score, query, grad_key, input_precision=PRECISION, out_dtype=ACC)
    return grad_key, grad_value


@triton.jit
def _window_grad_key_value(
    grad_key, grad_value, key, value, key_step, key_start, query_tiles, grad_out_tiles, normaliser_tiles, delta_tiles,
    query_ptr, grad_out_ptr, normaliser_ptr, delta_ptr, seed_ptr,
    query_stride_n, grad_out_stride_n, grad_out_stride_d, batch, head, row, begin, tile_begin, tile_end, first, last, left,
    right, residue, dilation, stream, threshold, scale_log2, query_sign,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, HAS_MASK: tl.constexpr,
    FLIP_QUERY: tl.constexpr, NEED_KEY: tl.constexpr, NEED_VALUE: tl.constexpr, DROPOUT: tl.constexpr,
    HOLD_KEPT: tl.constexpr, PRECISION: tl.constexpr, CHECK: tl.constexpr, DESCRIPTORS: tl.constexpr,
):  # fmt: skip
    """Add the query tiles tile_begin .. tile_end - 1 of one query head; CHECK says what their pairs need checked."""
    for tile in tl.range(tile_begin, tile_end):
        query_start = begin + tile * BLOCK_M
        step = query_start + tl.arange(0, BLOCK_M)
        token = residue + step * dilation
        real = (step >= first) & (step < last)
        # [BLOCK_M] each
        if DESCRIPTORS:
            normaliser = normaliser_tiles.load([row + query_start])
            delta = delta_tiles.load([row + query_start])
        else:
            normaliser = load_row_numbers(normaliser_ptr + row, token, real, NOWHERE, CHECK)
            delta = load_row_numbers(delta_ptr + row, token, real, 0.0, CHECK)
        # Masked queries may hold NaN: they are not loaded, or put to zero.
        alive = real & (takes_part(normaliser)) if CHECK == HOLES else real
        # [BLOCK_M, BLOCK_D] each
        query = load_tile(
            query_tiles, query_ptr, batch, head, query_start, token, query_stride_n, alive, 1,
            HEAD_DIM, BLOCK_M, BLOCK_D, HAS_MASK, CHECK, DESCRIPTORS,
        )  # fmt: skip
        grad_out = load_tile(
            grad_out_tiles, grad_out_ptr, batch, head, query_start, token, grad_out_stride_n, alive, grad_out_stride_d,
            HEAD_DIM, BLOCK_M, BLOCK_D, HAS_MASK, CHECK, DESCRIPTORS,
        )  # fmt: skip
        if FLIP_QUERY:
            query = (query * query_sign).to(query.dtype)
        # Dropout's bytes are laid out for scores with query rows; without it, transposed scores feed both products as they are.
        keep = keep_tile(seed_ptr, threshold, token, key_start, stream, residue, BLOCK_N, DROPOUT)
        if DROPOUT:
            low, high = tl.maximum(step - left, first), tl.minimum(step + right, last - 1)
            visible = visible_pairs(low, high, key_start, real, BLOCK_N, EDGE) & real[:, None]  # [BLOCK_M, BLOCK_N]
        else:
            low, high = tl.maximum(key_step - right, first), tl.minimum(key_step + left, last - 1)
            visible = visible_pairs(low, high, query_start, real, BLOCK_M, EDGE)  # [BLOCK_N, BLOCK_M]
        grad_key, grad_value = add_grad_key_value(
            grad_key, grad_value, key, value, query, grad_out, normaliser, delta, visible, keep, scale_log2,
            CHECK != CLEAN, NEED_KEY, NEED_VALUE, DROPOUT, DROPOUT, HOLD_KEPT, PRECISION,
        )  # fmt: skip
    return grad_key, grad_value


@triton.jit(do_not_specialize=[
    "heads", "first_head", "run_heads", "group", "seq_len", "row_stride", "left", "right", "dilation", "threshold",
])  # fmt: skip
def window_grad_key_value(
    query_ptr, key_ptr, value_ptr, query_tiles, grad_out_tiles, delta_tiles, normaliser_tiles, key_flags_ptr, span_ptr,
    seed_ptr, grad_out_ptr, delta_ptr, normaliser_ptr, grad_key_ptr, grad_value_ptr,
    query_stride_b, query_stride_h, query_stride_n, key_stride_b, key_stride_h, key_stride_n,
    value_stride_b, value_stride_h, value_stride_n,
    grad_out_stride_b, grad_out_stride_h, grad_out_stride_n, grad_out_stride_d,
    grad_key_stride_b, grad_key_stride_h, grad_key_stride_n, grad_value_stride_b, grad_value_stride_h, grad_value_stride_n,
    heads, first_head, run_heads, group, seq_len, row_stride, left, right, dilation, threshold,
    scale_log2, query_sign, key_scale, value_scale,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    HAS_MASK: tl.constexpr, FLIP_QUERY: tl.constexpr, NEED_KEY: tl.constexpr, NEED_VALUE: tl.constexpr,
    DROPOUT: tl.constexpr, HOLD_KEPT: tl.constexpr, DESCRIPTORS: tl.constexpr, PRECISION: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """The query heads first_head .. first_head + run_heads - 1, which share one dilation; grad_key and grad_value have as many.

    Strides are in elements. With DESCRIPTORS, which needs a dilation of 1, the four tiles describe whole tensors in tiles of
    BLOCK_M rows.
    """
    tiles = tl.cdiv(tl.cdiv(seq_len, dilation), BLOCK_N) * dilation
    program = tl.program_id(0)
    head = first_head + (program // tiles) % run_heads
    batch = program // tiles // run_heads
    residue, start = strand_of(program % tiles, seq_len, dilation, BLOCK_N)
    batch_64, head_64, key_head_64 = batch.to(tl.int64), head.to(tl.int64), (head // group).to(tl.int64)
    key_flags_ptr += batch_64 * seq_len

    first_token, last_token, has_holes = text_span(span_ptr, batch, seq_len, HAS_MASK)
    first, last = steps_before(first_token, residue, dilation), steps_before(last_token, residue, dilation)
    step = start + tl.arange(0, BLOCK_N)
    token = residue + step * dilation
    # Masked keys are real here: what they bring, NaN too, stays in their own rows, and these are put to zero in the end.
    real = real_steps(step, first, last, token, key_flags_ptr, EDGE)
    key = load_rows(
        key_ptr + batch_64 * key_stride_b + key_head_64 * key_stride_h, token, key_stride_n, real, 1, HEAD_DIM, BLOCK_D, EDGE
    )  # [BLOCK_N, BLOCK_D]
    value = load_rows(
        value_ptr + batch_64 * value_stride_b + key_head_64 * value_stride_h, token, value_stride_n, real, 1,
        HEAD_DIM, BLOCK_D, EDGE,
    )  # fmt: skip
    grad_key = tl.zeros([BLOCK_N, BLOCK_D], ACC)
    grad_value = tl.zeros([BLOCK_N, BLOCK_D], ACC)
    # Keys meet the queries right steps before to left steps after themselves. The copy engine takes row numbers by 16 bytes.
    ALIGN: tl.constexpr = 4 if DESCRIPTORS else 1
    begin, full_begin, full_end, end = tile_phases(start, BLOCK_N, BLOCK_M, right, left, first, last, has_holes, ALIGN)
    # A descriptor's coordinates are 32 bits wide; problem.py sees to it that they fit.
    row = (batch * heads + head) * row_stride if DESCRIPTORS else (batch_64 * heads + head_64) * row_stride
    for phase in tl.static_range(3):
        # In this order: the left edge, the tiles that are seen in full, the right edge.
        tile_begin = 0 if phase == 0 else full_begin if phase == 1 else full_end
        tile_end = full_begin if phase == 0 else full_end if phase == 1 else end
        grad_key, grad_value = _window_grad_key_value(
            grad_key, grad_value, key, value, step, start, query_tiles, grad_out_tiles, normaliser_tiles, delta_tiles,
            query_ptr + batch_64 * query_stride_b + head_64 * query_stride_h,
            grad_out_ptr + batch_64 * grad_out_stride_b + head_64 * grad_out_stride_h, normaliser_ptr, delta_ptr, seed_ptr,
            query_stride_n, grad_out_stride_n, grad_out_stride_d, batch, head, row, begin, tile_begin, tile_end,
            first, last, left, right, residue, dilation, batch * heads + head, threshold, scale_log2, query_sign,
            HEAD_DIM, BLOCK_D, BLOCK_M, BLOCK_N, HAS_MASK, FLIP_QUERY, NEED_KEY, NEED_VALUE, DROPOUT, HOLD_KEPT, PRECISION,
            CLEAN if phase == 1 else HOLES if HAS_MASK else EDGE, DESCRIPTORS,
        )  # fmt: skip
    in_strand = token < seq_len
    real = real_steps(step, first, last, token, key_flags_ptr, HOLES if HAS_MASK else EDGE)
    if NEED_KEY:
        grad_key = tl.where(real[:, None], grad_key * key_scale, 0.0)
        grad_key_ptr += batch_64 * grad_key_stride_b + head_64 * grad_key_stride_h
        store_rows(grad_key_ptr, token, grad_key_stride_n, grad_key, in_strand, HEAD_DIM, BLOCK_D)
    if NEED_VALUE:
        grad_value = tl.where(real[:, None], grad_value * value_scale, 0.0)
        grad_value_ptr += batch_64 * grad_value_stride_b + head_64 * grad_value_stride_h
        store_rows(grad_value_ptr, token, grad_value_stride_n, grad_value, in_strand, HEAD_DIM, BLOCK_D)
