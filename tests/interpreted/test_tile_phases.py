"""The arithmetic of tiles, as plain integers: every visible pair is met, and each phase checks what its tiles need."""

import math

from hypothesis import assume, given
from hypothesis import strategies as st

from longformer_triton.kernels.triton_impl.primitives import CLEAN, EDGE, FLOOR, HIGH, HOLES, LOW, tile_phases_of

BLOCKS = st.sampled_from([1, 4, 16, 32])
TILES = {
    "tile": st.integers(0, 8), "block": BLOCKS, "other": BLOCKS, "before": st.integers(0, 80), "after": st.integers(0, 80),
    "first": st.integers(0, 60), "length": st.integers(0, 90), "align": st.sampled_from([1, 4, 64]),
}  # fmt: skip


def test_phases_are_numbered_by_what_they_check():
    assert [check.value for check in (LOW, CLEAN, HIGH, EDGE, HOLES)] == [0, 1, 2, 3, 4]


@given(**TILES, has_holes=st.booleans())
def test_phases(tile, block, other, before, after, first, length, has_holes, align):
    start, last = tile * block, first + length
    begin, bounds = tile_phases_of(start, block, other, before, after, first, last, has_holes, align)
    end = bounds[-1]
    assert begin >= 0
    assert begin % align == 0
    assert bounds[0] == 0
    assert list(bounds) == sorted(bounds)
    own = [i for i in range(start, start + block) if first <= i < last]

    def visible(i, j):
        return first <= j < last and -before <= j - i <= after

    def steps(number):
        return range(begin + number * other, begin + (number + 1) * other)

    met = range(begin, begin + end * other)
    for i in own:
        assert all(j in met for j in range(i - before, i + after + 1) if visible(i, j))
    low, clean, high = (
        [(i, j) for number in range(*bounds[phase : phase + 2]) for j in steps(number) for i in own]
        for phase in (LOW.value, CLEAN.value, HIGH.value)
    )
    assert all(first <= j < last for _, j in (*low, *clean, *high)), "tiles that are not checked for it are real"
    assert all(visible(i, j) for i, j in clean)
    assert all(visible(i, j) == (j >= i - before) for i, j in low), "no window ends"
    assert all(visible(i, j) == (j <= i + after) for i, j in high), "no window begins"
    if has_holes:
        assert bounds[3] == 0, "all tiles are in the last phase"
    # No tile at the ends meets nothing at all, beyond what alignment costs.
    if end and align == 1:
        every = range(start, start + block)
        assert any(visible(i, j) for i in every for j in steps(0))
        assert any(visible(i, j) for i in every for j in steps(end - 1))


@given(**TILES)
def test_wide_windows_check_both_ends_in_one_tile_at_most(tile, block, other, before, after, first, length, align):
    assume(before + 1 >= block + other and before + after + 2 >= block + other)
    start, last = tile * block, first + length
    begin, bounds = tile_phases_of(start, block, other, before, after, first, last, False, align)
    assume(begin >= first)
    assert bounds[4] - bounds[3] <= 1
    if start + block + after <= last:
        assert bounds[4] == bounds[3], "that which the end of the sequence cuts"


def test_the_floor_is_a_power_of_two():
    """A row that sees nothing yet has score = max = FLOOR, and a GPU computes fma(score, scale, -round(max * scale)).

    With -1e30 that is the rounding of the product, 8e20 at head_dim 64: exp2 of it is infinite, and the row becomes NaN. The
    interpreter fuses nothing and cannot show it.
    """
    assert FLOOR.value < 0
    assert math.frexp(FLOOR.value)[0] == -0.5
