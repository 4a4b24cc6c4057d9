"""What the kernels share: tile bounds, loads, the mask rule, the softmax update and dropout, each stated once.

Tiles run over *steps* of a strand. A window of dilation d splits the tokens into d strands, token = residue + step * d, in each
of which the window is contiguous: query step i sees key step j when -left <= j - i <= right. With d = 1 steps are tokens.
"""

from __future__ import annotations

import triton
import triton.language as tl

# What a raw score becomes where a key is not visible. Finite, because -inf - -inf is NaN in rows that see nothing yet. A power
# of two, because for such rows score * scale - max * scale must be 0: the compiler fuses the first product, so the second must
# not round.
FLOOR = tl.constexpr(-(2.0**100))
# The normaliser of a row that takes no part: exp2(score - NOWHERE) is 0. See backward_prepare.py.
NOWHERE = tl.constexpr(1e30)
# What either is told apart by: halfway, since another type may round them.
SOMEWHERE = tl.constexpr(5e29)
LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)

# How much a tile has to check of its pairs: nothing; the window and the ends of the text; these and holes inside the text.
CLEAN = tl.constexpr(0)
EDGE = tl.constexpr(1)
HOLES = tl.constexpr(2)


def tile_phases_of(start, block, other_block, before, after, first, last, has_holes, align):
    """Which tiles of the other axis a tile meets, and which of them need no mask: plain integers, on the host or jitted.

    The tile owns the steps start .. start + block - 1, of which step i meets the steps i - before .. i + after, cut to
    first .. last - 1. Queries meet keys with (left, right), keys meet queries with (right, left).

    Returns:
        (begin, full_begin, full_end, end): tile n covers the steps begin + n * other_block and the following. Of the tiles
        0 .. end - 1, those from full_begin to full_end - 1 are CLEAN; with holes in the text, none is.
    """
    low = max(first, start - before)
    high = min(last, start + block + after)
    begin = low - low % align
    # A tile that lies in the padding altogether meets nothing.
    high = high if (start < last) & (start + block > first) else begin
    end = (max(high - begin, 0) + other_block - 1) // other_block
    full_begin = (max(max(first, start + block - 1 - before) - begin, 0) + other_block - 1) // other_block
    full_end = max(min(last, start + after + 1) - begin, 0) // other_block
    full_begin = end if has_holes else min(full_begin, end)
    full_end = max(full_begin, min(full_end, end))
    return begin, full_begin, full_end, end


tile_phases = triton.jit(tile_phases_of)


@triton.jit
def strand_of(tile, seq_len, dilation, BLOCK: tl.constexpr):
    """(residue, first step) of a tile; tiles run through one strand after the other, each of the longest one's length."""
    tiles = tl.cdiv(tl.cdiv(seq_len, dilation), BLOCK)
    return tile // tiles, (tile % tiles) * BLOCK


@triton.jit
def steps_before(token, residue, dilation):
    """How many steps of a strand lie before ``token``."""
    return tl.cdiv(max(token - residue, 0), dilation)


@triton.jit
def text_span(span_ptr, batch, seq_len, HAS_MASK: tl.constexpr):
    """(first, last, whether tokens are masked between them): the real tokens of a sample lie in first .. last - 1."""
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
def real_steps(step, first, last, token, key_flags_ptr, CHECK: tl.constexpr):
    """[BLOCK] bool: steps that lie in the text and, with HOLES, are not masked there. ``key_flags_ptr`` is the sample's."""
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
    visible = (offset >= (low - start)[:, None]) & (offset <= (high - start)[:, None])
    if CHECK == HOLES:
        visible = visible & real[None, :]
    return visible


@triton.jit
def load_rows(ptr, token, stride, real, channel_stride, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, CHECK: tl.constexpr):
    """[rows, BLOCK_D]: the rows at ``token``, zero where not ``real`` (looked at unless CLEAN) and beyond HEAD_DIM."""
    channel = tl.arange(0, BLOCK_D)
    pointers = ptr + token.to(tl.int64)[:, None] * stride + channel[None, :] * channel_stride
    if CHECK == CLEAN:
        if HEAD_DIM == BLOCK_D:
            rows = tl.load(pointers)
        else:
            rows = tl.load(pointers, mask=channel[None, :] < HEAD_DIM, other=0.0)
    else:
        rows = tl.load(pointers, mask=real[:, None] & (channel[None, :] < HEAD_DIM), other=0.0)
    return rows


@triton.jit
def load_tile(
    tiles, ptr, batch, head, start, token, stride, real, channel_stride,
    HEAD_DIM: tl.constexpr, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr, HAS_MASK: tl.constexpr, CHECK: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
):  # fmt: skip
    """[BLOCK, BLOCK_D]: the rows of consecutive steps, by the copy engine where there is a descriptor for them.

    ``tiles`` describes the whole (batch, heads, seq_len, head_dim) and fills with zeros what lies outside; ``ptr`` is the row
    of token 0. Rows that are not ``real`` are zero unless CLEAN.
    """
    if DESCRIPTORS:
        rows = tiles.load([batch, head, start, 0]).reshape([BLOCK, BLOCK_D])
        if HAS_MASK and CHECK != CLEAN:
            rows = tl.where(real[:, None], rows, 0.0).to(rows.dtype)
    else:
        rows = load_rows(ptr, token, stride, real, channel_stride, HEAD_DIM, BLOCK_D, CHECK)
    return rows


@triton.jit
def load_row_numbers(ptr, token, real, other, CHECK: tl.constexpr):
    """[rows]: one number for each row, loaded once a warp and then spread through shared memory.

    Each is loaded four times and reduced: the compiler takes a load of fewer elements than threads for a cheap one, and then
    repeats it in the layout of the scores, with a pointer in every thread for every column (bench/LOG.md, "row numbers").
    """
    pointers = ptr + token[:, None] + tl.arange(0, 4)[None, :] * 0
    if CHECK == CLEAN:
        numbers = tl.load(pointers)
    else:
        numbers = tl.load(pointers, mask=(real[:, None] & (tl.arange(0, 4)[None, :] >= 0)), other=other)
    return tl.max(numbers, 1)


@triton.jit
def takes_part(normaliser):
    """[rows] bool: rows whose normaliser is not NOWHERE. NaN takes part, so that gradients tell of it too."""
    return (normaliser >= SOMEWHERE) == 0


@triton.jit
def store_rows(ptr, token, stride, rows, real, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """Store [rows, BLOCK_D] at ``token`` where ``real``, rounded to the pointer's type."""
    channel = tl.arange(0, BLOCK_D)
    pointers = ptr + token.to(tl.int64)[:, None] * stride + channel[None, :]
    tl.store(pointers, rows.to(ptr.dtype.element_ty), mask=real[:, None] & (channel[None, :] < HEAD_DIM))


@triton.jit
def in_window(query_token, key_token, left, right, dilation):
    """The rule of ``pattern.in_band`` for [queries, 1] and [1, keys]: divisions run over vectors, not over the tile."""
    distance = key_token // dilation - query_token // dilation
    return (distance >= -left) & (distance <= right) & (key_token % dilation == query_token % dilation)


@triton.jit
def drop(probability, keep, scale):
    """``probability`` where ``keep``, else a zero that the compiler does not see through, made of the finite number ``scale``.

    Where it knows the zero, it selects after rounding to half precision, which then goes number by number instead of in pairs
    (bench/LOG.md, "a zero unknown").
    """
    return tl.where(keep, probability, scale - scale)


@triton.jit
def softmax_update(scores, keep, value, acc, row_max, row_sum, scale_log2, DROPOUT: tl.constexpr, PRECISION: tl.constexpr):
    """One step of the online softmax (FlashAttention-2, arXiv 2307.08691, algorithm 1), in base 2.

    ``scores`` [M, N] are raw, FLOOR where not visible; ``acc`` [M, D] and ``row_sum`` [M] are relative to exp2(row_max *
    scale_log2), which needs scale_log2 > 0. Dropout thins what is summed into ``acc``, not the normaliser.
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
    seen = real & ((row_max > -SOMEWHERE) | (row_sum != row_sum))
    out = tl.where(seen[:, None], acc * (rescale / row_sum)[:, None], 0.0)
    lse = tl.where(seen, (row_max * scale_log2 + tl.log2(row_sum)) * LN2, float("-inf"))
    return out, lse


@triton.jit
def keep_tile(seed_ptr, threshold, query, key_start, stream, residue, BLOCK_N: tl.constexpr, DROPOUT: tl.constexpr):
    """[M, BLOCK_N] bool: which probabilities of consecutive keys dropout keeps (``dropout.py`` states the function).

    ``query`` [M] are tokens, ``key_start`` a step, a multiple of 64. One Philox call serves 16 keys of one query: its four
    words, then their bytes, are joined as new axes, which a permutation puts into the order of the keys.
    """
    keep = None
    if DROPOUT:
        CALLS: tl.constexpr = BLOCK_N // 16
        call = key_start // 16 + tl.arange(0, CALLS)
        # [M, CALLS] each
        zero = query.to(tl.int32)[:, None] * 0 + call.to(tl.int32)[None, :] * 0
        row = query.to(tl.int32)[:, None] + zero
        column = call.to(tl.int32)[None, :] + zero
        word0, word1, word2, word3 = tl.philox(tl.load(seed_ptr), row, column, zero + stream, zero + residue, 7)
        # Axes: query, call, low bit of the word's number, high bit
        words = tl.join(tl.join(word0, word1), tl.join(word2, word3))
        # A byte moved to the top decides the comparison with threshold * 2**24, whatever follows it. New axes: e, k % 2
        top = tl.join(tl.join(words << 24, words << 16), tl.join(words << 8, words))
        kept = top >= (threshold.to(tl.uint32) << 24)
        # Key = 64 J + 16 word + 8 (k % 2) + 2 c + e, the call being 4 J + c
        kept = tl.reshape(kept, [query.shape[0], CALLS // 4, 4, 2, 2, 2, 2])
        keep = tl.reshape(tl.permute(kept, [0, 1, 4, 3, 6, 2, 5]), [query.shape[0], BLOCK_N])
    return keep


@triton.jit
def keep_pairs(seed_ptr, threshold, query, key, stream, DROPOUT: tl.constexpr):
    """[M, N] bool for tokens [M, 1] and [1, N] at arbitrary positions, undilated: one Philox call a pair, for narrow tiles."""
    keep = None
    if DROPOUT:
        zero = (query * 0 + key * 0).to(tl.int32)
        call = 4 * (key // 64) + (key % 8) // 2
        word0, word1, word2, word3 = tl.philox(
            tl.load(seed_ptr), query.to(tl.int32) + zero, call.to(tl.int32) + zero, zero + stream, zero, 7
        )
        byte = 2 * ((key % 64) // 8) + key % 2
        number = byte // 4
        word = tl.where(number == 0, word0, tl.where(number == 1, word1, tl.where(number == 2, word2, word3)))
        keep = ((word >> (8 * (byte % 4)).to(tl.uint32)) & 0xFF) >= threshold.to(tl.uint32)
    return keep
