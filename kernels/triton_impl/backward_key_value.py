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
    HIGH,
    HOLES,
    INACTIVE_LSE,
    LOW,
    RUN_TIME_NUMBERS,
    Dropout,
    HeadView,
    at_head,
    drop,
    is_active,
    keep_tile,
    load_row_numbers,
    load_rows,
    load_strand,
    load_tile,
    real_steps,
    signed,
    store_rows,
    tile_phases,
    visible_pairs,
    window_program,
)


@triton.jit
def add_grad_key_value(
    grad_key, grad_value, key, value, query, grad_out, lse_log2, delta, visible, keep, scale_log2,
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
    lse_log2 = lse_log2[:, None] if QUERY_ROWS else lse_log2[None, :]
    probability = tl.exp2(scores * scale_log2 - lse_log2)
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
    grad_key, grad_value, key, value, key_step, key_start, queries, grad_outs, lse_log2_ptr, delta_ptr, lse_log2_tiles,
    delta_tiles, row, begin, tile_begin, tile_end, left, right, strand, dropout, scale_log2, query_sign,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, FLIP_QUERY: tl.constexpr,
    NEED_KEY: tl.constexpr, NEED_VALUE: tl.constexpr, DROPOUT: tl.constexpr, HOLD_KEPT: tl.constexpr,
    PRECISION: tl.constexpr, CHECK: tl.constexpr, DESCRIPTORS: tl.constexpr,
):  # fmt: skip
    """Add the query tiles tile_begin .. tile_end - 1 of one query head; CHECK says what their pairs need checked."""
    # The copy engine knows no masks, and nothing is pipelined without it, as in :mod:`forward`.
    STAGES: tl.constexpr = 1 if DESCRIPTORS and CHECK == HOLES else None
    for tile in tl.range(tile_begin, tile_end, num_stages=STAGES):
        query_start = begin + tile * BLOCK_M
        step = query_start + tl.arange(0, BLOCK_M)
        token = strand.residue + step * strand.dilation
        real = (step >= strand.first) & (step < strand.last)
        # [BLOCK_M] each
        if DESCRIPTORS:
            lse_log2 = lse_log2_tiles.load([row + query_start])
            delta = delta_tiles.load([row + query_start])
            # Past the end of the head these are the next one's, whose NaN no mask on probabilities would stop.
            delta = tl.where(real, delta, 0.0) if CHECK >= EDGE else delta
        else:
            lse_log2 = load_row_numbers(lse_log2_ptr + row, token, real, INACTIVE_LSE, CHECK)
            delta = load_row_numbers(delta_ptr + row, token, real, 0.0, CHECK)
        # Masked queries may hold NaN: they are not loaded, or put to zero. [BLOCK_M, BLOCK_D] each
        alive = real & is_active(lse_log2) if CHECK == HOLES else real
        query = load_tile(queries, query_start, token, alive, HEAD_DIM, BLOCK_M, BLOCK_D, CHECK, DESCRIPTORS)
        grad_out = load_tile(grad_outs, query_start, token, alive, HEAD_DIM, BLOCK_M, BLOCK_D, CHECK, DESCRIPTORS)
        query = signed(query, query_sign, FLIP_QUERY)
        # Dropout's bytes are laid out for scores with query rows; without it, transposed scores feed both products as they are.
        QUERY_ROWS: tl.constexpr = DROPOUT
        keep = keep_tile(dropout, token, key_start, strand.residue, BLOCK_N, DROPOUT)
        if QUERY_ROWS:
            low, high = tl.maximum(step - left, strand.first), tl.minimum(step + right, strand.last - 1)
            # Keys that a query comes too early for lie beyond the end of its window.
            OF_KEYS: tl.constexpr = HIGH if CHECK == LOW else LOW if CHECK == HIGH else EDGE
            visible = visible_pairs(low, high, key_start, real, BLOCK_N, OF_KEYS)  # [BLOCK_M, BLOCK_N]
            visible = visible & real[:, None] if CHECK >= EDGE else visible
        else:
            low, high = tl.maximum(key_step - right, strand.first), tl.minimum(key_step + left, strand.last - 1)
            OF_QUERIES: tl.constexpr = EDGE if CHECK == HOLES else CHECK
            visible = visible_pairs(low, high, query_start, real, BLOCK_M, OF_QUERIES)  # [BLOCK_N, BLOCK_M]
        grad_key, grad_value = add_grad_key_value(
            grad_key, grad_value, key, value, query, grad_out, lse_log2, delta, visible, keep, scale_log2,
            MASKED=CHECK != CLEAN, NEED_KEY=NEED_KEY, NEED_VALUE=NEED_VALUE, DROPOUT=DROPOUT, QUERY_ROWS=QUERY_ROWS,
            HOLD_KEPT=HOLD_KEPT, PRECISION=PRECISION,
        )  # fmt: skip
    return grad_key, grad_value


@triton.jit(do_not_specialize=RUN_TIME_NUMBERS)
def window_grad_key_value(
    query_ptr, key_ptr, value_ptr, query_tiles, grad_out_tiles, delta_tiles, lse_log2_tiles, key_flags_ptr, span_ptr,
    seed_ptr, grad_out_ptr, delta_ptr, lse_log2_ptr, grad_key_ptr, grad_value_ptr,
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
    """The query heads first_head .. first_head + run_heads - 1, which share one dilation; grad_key and grad_value begin there.

    Strides are in elements. With DESCRIPTORS, which needs a dilation of 1, the four tiles describe whole tensors in tiles of
    BLOCK_M rows.
    """
    batch, head, residue, start = window_program(first_head, run_heads, seq_len, dilation, BLOCK_N)
    key_head = head // group
    queries = HeadView(
        at_head(query_ptr, query_stride_b, query_stride_h, batch, head), query_stride_n, 1, query_tiles, batch, head
    )
    keys = HeadView(at_head(key_ptr, key_stride_b, key_stride_h, batch, key_head), key_stride_n)
    values = HeadView(at_head(value_ptr, value_stride_b, value_stride_h, batch, key_head), value_stride_n)
    grad_outs = HeadView(
        at_head(grad_out_ptr, grad_out_stride_b, grad_out_stride_h, batch, head), grad_out_stride_n, grad_out_stride_d,
        grad_out_tiles, batch, head,
    )  # fmt: skip
    key_flags_ptr += batch.to(tl.int64) * seq_len
    # A descriptor's coordinates are 32 bits wide; descriptors.py sees to it that they fit.
    row = (batch * heads + head) * row_stride if DESCRIPTORS else (batch.to(tl.int64) * heads + head) * row_stride
    dropout = Dropout(seed_ptr, threshold, batch * heads + head)

    strand, has_holes = load_strand(span_ptr, batch, seq_len, residue, dilation, HAS_MASK)
    step = start + tl.arange(0, BLOCK_N)
    token = residue + step * dilation
    # Masked keys are real here: what they bring, NaN too, stays in their own rows, and these are put to zero in the end.
    real = real_steps(step, strand.first, strand.last, token, key_flags_ptr, EDGE)
    # [BLOCK_N, BLOCK_D] each
    key = load_rows(keys, token, real, HEAD_DIM, BLOCK_D)
    value = load_rows(values, token, real, HEAD_DIM, BLOCK_D)
    grad_key = tl.zeros([BLOCK_N, BLOCK_D], ACC)
    grad_value = tl.zeros([BLOCK_N, BLOCK_D], ACC)
    # Keys meet the queries right steps before to left steps after themselves. The copy engine takes row numbers by 16 bytes.
    ALIGN: tl.constexpr = 4 if DESCRIPTORS else 1
    UNSURE: tl.constexpr = HOLES if HAS_MASK else EDGE
    begin, bounds = tile_phases(start, BLOCK_N, BLOCK_M, right, left, strand.first, strand.last, has_holes, ALIGN)
    for phase in tl.static_range(4):  # a phase is numbered by what it checks
        grad_key, grad_value = _window_grad_key_value(
            grad_key, grad_value, key, value, step, start, queries, grad_outs, lse_log2_ptr, delta_ptr, lse_log2_tiles,
            delta_tiles, row, begin, bounds[phase], bounds[phase + 1], left, right, strand, dropout, scale_log2, query_sign,
            HEAD_DIM, BLOCK_D, BLOCK_M, BLOCK_N, FLIP_QUERY, NEED_KEY, NEED_VALUE, DROPOUT, HOLD_KEPT, PRECISION,
            UNSURE if phase == EDGE else phase, DESCRIPTORS,
        )  # fmt: skip
    in_strand = token < seq_len
    real = real_steps(step, strand.first, strand.last, token, key_flags_ptr, UNSURE)
    grad_head = head - first_head
    if NEED_KEY:
        grad_keys = HeadView(at_head(grad_key_ptr, grad_key_stride_b, grad_key_stride_h, batch, grad_head), grad_key_stride_n)
        store_rows(grad_keys, token, tl.where(real[:, None], grad_key * key_scale, 0.0), in_strand, HEAD_DIM, BLOCK_D)
    if NEED_VALUE:
        grad_values = HeadView(
            at_head(grad_value_ptr, grad_value_stride_b, grad_value_stride_h, batch, grad_head), grad_value_stride_n
        )
        store_rows(grad_values, token, tl.where(real[:, None], grad_value * value_scale, 0.0), in_strand, HEAD_DIM, BLOCK_D)
