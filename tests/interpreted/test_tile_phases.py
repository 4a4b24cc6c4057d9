"""The arithmetic of tiles, as plain integers: every visible pair is met, and unchecked tiles hold visible pairs only."""

import math

from hypothesis import given
from hypothesis import strategies as st

from longformer_triton.kernels.triton_impl.primitives import FLOOR, tile_phases_of

BLOCKS = st.sampled_from([1, 4, 16, 32])


@given(
    tile=st.integers(0, 8), block=BLOCKS, other=BLOCKS, before=st.integers(0, 80), after=st.integers(0, 80),
    first=st.integers(0, 60), length=st.integers(0, 90), has_holes=st.booleans(), align=st.sampled_from([1, 4, 64]),
)  # fmt: skip
def test_phases(tile, block, other, before, after, first, length, has_holes, align):
    start, last = tile * block, first + length
    begin, (_, full_begin, full_end, end) = tile_phases_of(start, block, other, before, after, first, last, has_holes, align)
    assert begin >= 0
    assert begin % align == 0
    assert 0 <= full_begin <= full_end <= end
    own = range(start, start + block)

    def visible(i, j):
        return first <= j < last and -before <= j - i <= after

    met = range(begin, begin + end * other)
    for i in own:
        if first <= i < last:
            assert all(j in met for j in range(i - before, i + after + 1) if visible(i, j))
    for tile_number in range(full_begin, full_end):
        keys = range(begin + tile_number * other, begin + (tile_number + 1) * other)
        assert all(visible(i, j) for i in own for j in keys)
    if has_holes:
        assert full_begin == full_end
    # No tile at the ends meets nothing at all, beyond what alignment costs.
    if end and align == 1:
        assert any(visible(i, j) for i in own for j in range(begin, begin + other))
        assert any(visible(i, j) for i in own for j in range(begin + (end - 1) * other, begin + end * other))


def test_the_floor_is_a_power_of_two():
    """A row that sees nothing yet has score = max = FLOOR, and a GPU computes fma(score, scale, -round(max * scale)).

    With -1e30 that is the rounding of the product, 8e20 at head_dim 64: exp2 of it is infinite, and the row becomes NaN. The
    interpreter fuses nothing and cannot show it.
    """
    assert FLOOR.value < 0
    assert math.frexp(FLOOR.value)[0] == -0.5
