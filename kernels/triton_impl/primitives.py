"""What the kernels share: which program owns what, tile bounds, loads, the mask rule, the softmax update and dropout.

Tiles run over *steps* of a strand. A window of dilation d splits the tokens into d strands, token = residue + step * d, in each
of which the window is contiguous: query step i sees key step j when -left <= j - i <= right. With d = 1 steps are tokens.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

# What a raw score becomes where a key is not visible. Finite, because -inf - -inf is NaN in rows that see nothing yet. A power
# of two, because for such rows score * scale - max * scale must be 0: the compiler fuses the first product, so the second must
# not round.
FLOOR = tl.constexpr(-(2.0**100))
# lse_log2 of a row that takes no part, whose probabilities exp2(score - INACTIVE_LSE) are then 0. See backward_prepare.py.
INACTIVE_LSE = tl.constexpr(1e30)
# The threshold that tells both from other values: well inside, since another type may round them.
FINITE_LIMIT = tl.constexpr(5e29)
LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)

# What a tile has to check of its pairs, in the order of the phases of ``tile_phases``: where the window of a row begins;
# nothing; where it ends; both, and whether tokens lie inside the sequence; these, and whether they are masked.
LOW = tl.constexpr(0)
CLEAN = tl.constexpr(1)
HIGH = tl.constexpr(2)
EDGE = tl.constexpr(3)
HOLES = tl.constexpr(4)

# Whole numbers that change from call to call. Triton would compile kernels anew for those that are 1 or multiples of 16.
RUN_TIME_NUMBERS = (
    "heads", "first_head", "run_heads", "group", "seq_len", "row_stride", "left", "right", "dilation", "num_globals", "splits",
    "parts", "first_slot", "rows", "threshold", "grad_lse_stride_b", "grad_lse_stride_h", "grad_lse_stride_n",
)  # fmt: skip


class Strand(NamedTuple):
    """Every ``dilation``-th token from ``residue`` on; its steps first .. last - 1 hold all real tokens."""

    residue: Any
    dilation: Any
    first: Any
    last: Any


class HeadView(NamedTuple):
    """The rows (tokens, channels) of one head: the address of token 0's, and the elements between rows and channels.

    For the copy engine also a descriptor of the whole (batch, heads, tokens, channels), and where in it these rows are.
    """

    ptr: Any
    stride: Any
    channel_stride: Any = tl.constexpr(1)
    tiles: Any = tl.constexpr(None)
    batch: Any = tl.constexpr(None)
    head: Any = tl.constexpr(None)


class Dropout(NamedTuple):
    """Dropout of one head: the seed, how many of 256 bytes drop, and the head's number in dropout's function."""

    seed_ptr: Any
    threshold: Any
    stream: Any


def tile_phases_of(start, block, other_block, before, after, first, last, has_holes, align):
    """Which tiles of the other axis a tile meets, and what they have to check: plain integers, on the host or jitted.

    The tile owns the steps start .. start + block - 1, of which step i meets the steps i - before .. i + after, cut to
    first .. last - 1. Queries meet keys with (left, right), keys meet queries with (right, left).

    Returns:
        (begin, bounds): tile n covers the steps begin + n * other_block and the following. ``bounds`` are five numbers between
        which four phases run, LOW, CLEAN, HIGH and EDGE or HOLES. In the first three every step is real. Those of the last are
        the tile that the end of the sequence cuts, tiles in which some rows begin and some end, as windows narrower than a
        tile have them, and all tiles where there are holes, or where ``align`` moved the first one out of the sequence.
    """
    low = max(first, start - before)
    high = min(last, start + block + after)
    begin = low - low % align
    # A tile that lies in the padding altogether meets nothing.
    high = high if (start < last) & (start + block > first) else begin
    end = (max(high - begin, 0) + other_block - 1) // other_block
    # From these tiles on, no row begins, some row ends, and some step is past the end of the sequence.
    all_begun = min((max(max(first, start + block - 1 - before) - begin, 0) + other_block - 1) // other_block, end)
    some_end = min(max(min(last, start + after + 1) - begin, 0) // other_block, end)
    past_last = min(max(last - begin, 0) // other_block, end)
    is_unsure = has_holes | (begin < first)
    all_begun = end if is_unsure else all_begun
    some_end = 0 if is_unsure else some_end
    unsure_begin = max(some_end, past_last) if all_begun <= some_end else some_end
    return begin, (0, min(all_begun, some_end), some_end, unsure_begin, end)


tile_phases = triton.jit(tile_phases_of)


@triton.jit
def window_program(first_head, run_heads, seq_len, dilation, BLOCK: tl.constexpr):
    """(batch, head, residue, first step): the tile of BLOCK steps that this program owns, one of ``Problem.window_programs``.

    Tiles run through one strand after the other, each of the longest one's length.
    """
    strand_tiles = tl.cdiv(tl.cdiv(seq_len, dilation), BLOCK)
    tiles = strand_tiles * dilation
    program = tl.program_id(0)
    tile = program % tiles
    head = first_head + (program // tiles) % run_heads
    batch = program // tiles // run_heads
    return batch, head, tile // strand_tiles, (tile % strand_tiles) * BLOCK


@triton.jit
def split_program(first_head, run_heads, num_globals, splits, BLOCK_G: tl.constexpr):
    """(batch, head, first slot, split): the BLOCK_G global tokens and the part of the sequence that this program owns."""
    blocks = tl.cdiv(num_globals, BLOCK_G)
    program = tl.program_id(0)
    block = (program // splits) % blocks
    head = first_head + (program // splits // blocks) % run_heads
    batch = program // splits // blocks // run_heads
    return batch, head, block * BLOCK_G, program % splits


@triton.jit
def split_of(split, splits, first, last, ALIGN: tl.constexpr):
    """(begin, end) of one of ``splits`` parts of the tokens first .. last - 1; parts begin at multiples of ALIGN."""
    length = tl.cdiv(tl.cdiv(last, splits), ALIGN) * ALIGN
    return max(split * length, first - first % ALIGN), min(split * length + length, last)


@triton.jit
def at_head(ptr, stride_b, stride_h, batch, head):
    """The first row of a head of a tensor (batch, heads, ...); offsets are 64 bits wide."""
    return ptr + (batch.to(tl.int64) * stride_b + head.to(tl.int64) * stride_h)


@triton.jit
def steps_before(token, residue, dilation):
    """How many steps of a strand lie before ``token``."""
    return tl.cdiv(max(token - residue, 0), dilation)


@triton.jit
def real_span(span_ptr, batch, seq_len, HAS_MASK: tl.constexpr):
    """(first, last, whether tokens are masked between them): the real tokens of a sample lie in first .. last - 1.

    Without a mask all is known, and yet stays a value of the program: as constants, they would make other code of the loops.
    """
    if HAS_MASK:
        first = tl.load(span_ptr + batch * 3)
        last = tl.load(span_ptr + batch * 3 + 1)
        has_holes = tl.load(span_ptr + batch * 3 + 2) != 0
    else:
        first = seq_len * 0
        last = seq_len
        has_holes = seq_len < 0
    return first, last, has_holes


@triton.jit
def load_strand(span_ptr, batch, seq_len, residue, dilation, HAS_MASK: tl.constexpr):
    """(the strand from ``residue`` on, whether tokens are masked between its first and its last real one)."""
    first, last, has_holes = real_span(span_ptr, batch, seq_len, HAS_MASK)
    first, last = steps_before(first, residue, dilation), steps_before(last, residue, dilation)
    return Strand(residue, dilation, first, last), has_holes


@triton.jit
def real_steps(step, first, last, token, key_flags_ptr, CHECK: tl.constexpr):
    """[BLOCK] bool: steps from ``first`` to ``last`` - 1 and, with HOLES, not masked. ``key_flags_ptr`` is the sample's."""
    real = (step >= first) & (step < last)
    if CHECK == HOLES:
        real = real & (tl.load(key_flags_ptr + token, mask=real, other=0) != 0)
    return real


@triton.jit
def visible_pairs(low, high, start, real, BLOCK: tl.constexpr, CHECK: tl.constexpr):
    """[rows, BLOCK] bool: whether row r, which meets the steps low[r] .. high[r], meets the steps start .. start + BLOCK - 1.

    Bounds move to the tile, one subtraction a row, and are compared with constants: a distance for each pair would be hoisted
    out of the loop and fill the registers (bench/LOG.md, "row bounds").
    """
    offset = tl.arange(0, BLOCK)[None, :]
    if CHECK == LOW:
        visible = offset >= (low - start)[:, None]
    elif CHECK == HIGH:
        visible = offset <= (high - start)[:, None]
    else:
        visible = (offset >= (low - start)[:, None]) & (offset <= (high - start)[:, None])
    if CHECK == HOLES:
        visible = visible & real[None, :]
    return visible


@triton.jit
def load_rows(rows, token, real, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, CHECK: tl.constexpr = EDGE):
    """[tokens, BLOCK_D]: the rows at ``token``, zero where not ``real`` (looked at from EDGE on) and beyond HEAD_DIM."""
    channel = tl.arange(0, BLOCK_D)
    pointers = rows.ptr + token.to(tl.int64)[:, None] * rows.stride + channel[None, :] * rows.channel_stride
    if CHECK < EDGE:
        if HEAD_DIM == BLOCK_D:
            loaded = tl.load(pointers)
        else:
            loaded = tl.load(pointers, mask=channel[None, :] < HEAD_DIM, other=0.0)
    else:
        loaded = tl.load(pointers, mask=real[:, None] & (channel[None, :] < HEAD_DIM), other=0.0)
    return loaded


@triton.jit
def load_tile(
    rows, start, token, real,
    HEAD_DIM: tl.constexpr, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr, CHECK: tl.constexpr, DESCRIPTORS: tl.constexpr,
):  # fmt: skip
    """[BLOCK, BLOCK_D]: the rows of the steps from ``start`` on, zero where not ``real`` from EDGE on.

    With DESCRIPTORS they come by the copy engine, which puts zeros outside of the tensor, but knows nothing of masks.
    """
    if DESCRIPTORS and CHECK != HOLES:
        loaded = rows.tiles.load([rows.batch, rows.head, start, 0]).reshape([BLOCK, BLOCK_D])
    else:
        loaded = load_rows(rows, token, real, HEAD_DIM, BLOCK_D, CHECK)
    return loaded


@triton.jit
def load_keys_and_values(
    keys, values, key_start, strand, key_flags_ptr,
    HEAD_DIM: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, CHECK: tl.constexpr, DESCRIPTORS: tl.constexpr,
):  # fmt: skip
    """(key, value [BLOCK_N, BLOCK_D], real [BLOCK_N]) of the steps from ``key_start`` on."""
    step = key_start + tl.arange(0, BLOCK_N)
    token = strand.residue + step * strand.dilation
    real = real_steps(step, strand.first, strand.last, token, key_flags_ptr, CHECK)
    key = load_tile(keys, key_start, token, real, HEAD_DIM, BLOCK_N, BLOCK_D, CHECK, DESCRIPTORS)
    value = load_tile(values, key_start, token, real, HEAD_DIM, BLOCK_N, BLOCK_D, CHECK, DESCRIPTORS)
    return key, value, real


@triton.jit
def load_global_keys(keys, values, index_ptr, slot, count, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """(token, key, value, real): keys and values [slots, BLOCK_D] of the global tokens in ``slot``, real below ``count``."""
    real = slot < count
    token = tl.load(index_ptr + slot, mask=real, other=0).to(tl.int32)
    key = load_rows(keys, token, real, HEAD_DIM, BLOCK_D)
    value = load_rows(values, token, real, HEAD_DIM, BLOCK_D)
    return token, key, value, real


@triton.jit
def signed(query, query_sign, FLIP_QUERY: tl.constexpr):
    """``query`` with the sign of a scale that is not positive: softmax in base 2 compares raw scores, and needs one that is."""
    return (query * query_sign).to(query.dtype) if FLIP_QUERY else query


@triton.jit
def load_row_numbers(ptr, token, real, other, CHECK: tl.constexpr):
    """[rows]: one number for each row, spread through shared memory.

    Four threads load each, and their maximum is taken: a load of fewer elements than threads counts as cheap with the compiler,
    which then repeats it in the layout of the scores, with a pointer in every thread for every column (bench/LOG.md, "row
    numbers").
    """
    pointers = ptr + token[:, None] + tl.arange(0, 4)[None, :] * 0
    if CHECK < EDGE:
        numbers = tl.load(pointers)
    else:
        numbers = tl.load(pointers, mask=(real[:, None] & (tl.arange(0, 4)[None, :] >= 0)), other=other)
    return tl.max(numbers, 1)


@triton.jit
def is_active(lse_log2):
    """[rows] bool: rows whose lse_log2 is not INACTIVE_LSE. NaN takes part, so that gradients tell of it too."""
    return (lse_log2 >= FINITE_LIMIT) == 0


@triton.jit
def store_rows(rows, token, tile, real, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """Store ``tile`` [tokens, BLOCK_D] at ``token`` where ``real``, rounded to the tensor's type; channels are neighbours."""
    channel = tl.arange(0, BLOCK_D)
    pointers = rows.ptr + token.to(tl.int64)[:, None] * rows.stride + channel[None, :]
    tl.store(pointers, tile.to(rows.ptr.dtype.element_ty), mask=real[:, None] & (channel[None, :] < HEAD_DIM))


@triton.jit
def in_band(query_token, key_token, left, right, dilation):
    """The rule of ``pattern.in_band`` for [queries, 1] and [1, keys]: divisions run over vectors, not over the tile."""
    distance = key_token // dilation - query_token // dilation
    return (distance >= -left) & (distance <= right) & (key_token % dilation == query_token % dilation)


@triton.jit
def sees_outside(query_token, key_token, real, left, right, dilation, IS_CAUSAL: tl.constexpr):
    """Whether queries see global keys that lie outside their windows; those inside count there. ``real``: keys that count."""
    visible = real & (in_band(query_token, key_token, left, right, dilation) == 0)
    if IS_CAUSAL:
        visible = visible & (key_token <= query_token)
    return visible


@triton.jit
def drop(probability, keep, any_finite):
    """``probability`` where ``keep``, else a zero that the compiler does not see through: a run-time number less itself.

    Where it knows the zero, it selects after rounding to half precision, which then goes number by number instead of in pairs
    (bench/LOG.md, "a zero unknown").
    """
    return tl.where(keep, probability, any_finite - any_finite)


@triton.jit
def softmax_update(scores, keep, value, acc, row_max, row_sum, scale_log2, DROPOUT: tl.constexpr, PRECISION: tl.constexpr):
    """One step of the online softmax (FlashAttention-2, arXiv 2307.08691, algorithm 1), in base 2.

    ``scores`` [M, N] are raw, FLOOR where not visible; ``acc`` [M, D] and ``row_sum`` [M] are relative to exp2(row_max *
    scale_log2), which needs scale_log2 > 0. Dropout thins what is summed into ``acc``, not ``row_sum``.
    """
    new_max = tl.maximum(row_max, tl.max(scores, 1))
    correction = tl.exp2((row_max - new_max) * scale_log2)
    probability = tl.exp2(scores * scale_log2 - (new_max * scale_log2)[:, None])
    row_sum = row_sum * correction + tl.sum(probability, 1)
    if DROPOUT:
        probability = drop(probability, keep, scale_log2)
    acc = acc * correction[:, None]
    acc = tl.dot(probability.to(value.dtype), value, acc, input_precision=PRECISION, out_dtype=acc.dtype)
    return acc, new_max, row_sum


@triton.jit
def softmax_finish(acc, row_max, row_sum, scale_log2, rescale, real):
    """(out [M, D], lse [M], natural log) of an online softmax; 0 and -inf in rows that are not ``real`` or saw no key.

    NaN in a query or key, which a maximum passes over, has made its way into the sum, and must be seen.
    """
    seen = real & ((row_max > -FINITE_LIMIT) | (row_sum != row_sum))
    out = tl.where(seen[:, None], acc * (rescale / row_sum)[:, None], 0.0)
    lse = tl.where(seen, (row_max * scale_log2 + tl.log2(row_sum)) * LN2, float("-inf"))
    return out, lse


@triton.jit
def keep_tile(dropout, query, key_start, residue, BLOCK_N: tl.constexpr, DROPOUT: tl.constexpr):
    """[M, BLOCK_N] bool: which probabilities of consecutive keys dropout keeps (``dropout.py`` states the function).

    ``query`` [M] are tokens, ``key_start`` a step of the strand of ``residue``, a multiple of 64 as is BLOCK_N. One Philox call
    serves 16 keys of one query: its four words, then their bytes, are joined as new axes, which a permutation puts into the
    order of the keys.
    """
    keep = None
    if DROPOUT:
        tl.static_assert(BLOCK_N % 64 == 0)
        CALLS: tl.constexpr = BLOCK_N // 16
        call = key_start // 16 + tl.arange(0, CALLS)
        # [M, CALLS] each
        zero = query.to(tl.int32)[:, None] * 0 + call.to(tl.int32)[None, :] * 0
        row = query.to(tl.int32)[:, None] + zero
        column = call.to(tl.int32)[None, :] + zero
        word0, word1, word2, word3 = tl.philox(tl.load(dropout.seed_ptr), row, column, zero + dropout.stream, zero + residue, 7)
        # Axes: query, call, low bit of the word's number, high bit
        words = tl.join(tl.join(word0, word1), tl.join(word2, word3))
        # A byte moved to the top decides the comparison with threshold * 2**24, whatever follows it. New axes: e, k % 2
        top = tl.join(tl.join(words << 24, words << 16), tl.join(words << 8, words))
        kept = top >= (dropout.threshold.to(tl.uint32) << 24)
        # Key = 64 J + 16 word + 8 (k % 2) + 2 c + e, the call being 4 J + c
        kept = tl.reshape(kept, [query.shape[0], CALLS // 4, 4, 2, 2, 2, 2])
        keep = tl.reshape(tl.permute(kept, [0, 1, 4, 3, 6, 2, 5]), [query.shape[0], BLOCK_N])
    return keep


@triton.jit
def keep_pairs(dropout, query, key, DROPOUT: tl.constexpr):
    """[M, N] bool for tokens [M, 1] and [1, N] at arbitrary positions, undilated: one Philox call a pair, for narrow tiles."""
    keep = None
    if DROPOUT:
        zero = (query * 0 + key * 0).to(tl.int32)
        call = 4 * (key // 64) + (key % 8) // 2
        word0, word1, word2, word3 = tl.philox(
            tl.load(dropout.seed_ptr), query.to(tl.int32) + zero, call.to(tl.int32) + zero, zero + dropout.stream, zero, 7
        )
        byte = 2 * ((key % 64) // 8) + key % 2
        number = byte // 4
        word = tl.where(number == 0, word0, tl.where(number == 1, word1, tl.where(number == 2, word2, word3)))
        keep = ((word >> (8 * (byte % 4)).to(tl.uint32)) & 0xFF) >= dropout.threshold.to(tl.uint32)
    return keep
