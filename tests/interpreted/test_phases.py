"""Windows so wide that each phase of a kernel's walk over tiles has some (``primitives.tile_phases``)."""

import pytest
from attention_cases import Case, assert_same, poisoned_allocations

from longformer_triton.kernels.triton_impl.primitives import tile_phases_of

LEFT, RIGHT, LENGTH, ROWS = 50, 80, 165, 16


@pytest.mark.parametrize(
    ("block", "other", "before", "after", "align"),
    [(ROWS, ROWS, LEFT, RIGHT, 1), (ROWS, 64, LEFT, RIGHT, 64), (64, ROWS, RIGHT, LEFT, 4)],
    ids=["without_dropout", "queries", "keys"],
)
def test_each_phase_has_tiles(block, other, before, after, align):
    tiles = [
        tile_phases_of(start, block, other, before, after, 0, LENGTH, False, align)[1] for start in range(0, LENGTH, block)
    ]
    for phase in range(4):
        assert any(bounds[phase] < bounds[phase + 1] for bounds in tiles), phase


@pytest.mark.parametrize("descriptors", [False, True], ids=["pointers", "descriptors"])
@pytest.mark.parametrize("dropout_p", [0.0, 0.3], ids=["", "dropout"])
@pytest.mark.parametrize("padding", ["none", "right", "left"])
def test_each_phase(padding, dropout_p, descriptors, use_tiles):
    """Against the reference, and without a look at what masked tokens hold."""
    use_tiles(ROWS, 64 if dropout_p else ROWS, descriptors=descriptors)
    case = Case(1, 1, 1, LENGTH, 8, (LEFT, RIGHT), padding=padding, globals_="some", dropout_p=dropout_p, seed=3)
    inputs = case.inputs()
    expected = case.results(inputs, "reference")
    if padding != "none":
        masked = case.attention_mask()[:, None, :, None] == 0
        inputs = [states.detach().masked_fill(masked, float("nan")).requires_grad_() for states in inputs]
    with poisoned_allocations():
        got = case.results(inputs, "triton")
    assert_same(got, expected, 1e-12)
