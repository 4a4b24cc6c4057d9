"""Who attends to whom: the meanings of the masks, the compact indices, the counts and the picture."""

import dataclasses
import re
import xml.etree.ElementTree as ET

import hypothesis
import numpy
import pytest
import torch
from attention_cases import random_cases
from hypothesis import strategies as st

from longformer_triton.kernels import AttentionPattern, sliding_window_attention
from longformer_triton.kernels.pattern import in_band, key_range


def test_no_masks_means_all_real_and_none_global():
    pattern = AttentionPattern.from_masks(shape=(2, 5), window=1)
    assert pattern.key_mask is None
    assert pattern.global_mask is None
    assert pattern.global_index.shape == (2, 0)
    assert pattern.global_count.tolist() == [0, 0]
    assert (pattern.batch, pattern.seq_len, pattern.window, pattern.dilation) == (2, 5, (1, 1), 1)
    assert pattern.device == torch.device("cpu")


def test_two_means_real_and_global():
    """Hugging Face's merged mask: 0 padding, 1 local, 2 global."""
    pattern = AttentionPattern.from_masks(torch.tensor([[2, 1, 1, 2, 0]]), window=1)
    assert pattern.key_mask.tolist() == [[True, True, True, True, False]]
    assert pattern.global_mask.tolist() == [[True, False, False, True, False]]
    assert pattern.global_index.tolist() == [[0, 3]]


def test_two_and_a_global_mask_add_up():
    pattern = AttentionPattern.from_masks(torch.tensor([[2, 1, 1, 1]]), torch.tensor([[0, 0, 1, 0]]), window=1)
    assert pattern.global_index.tolist() == [[0, 2]]


def test_masked_beats_global():
    pattern = AttentionPattern.from_masks(torch.tensor([[1, 1, 0]]), torch.tensor([[1, 0, 1]]), window=1)
    assert pattern.global_mask.tolist() == [[True, False, False]]
    assert pattern.global_index.tolist() == [[0]]
    assert pattern.global_count.tolist() == [1]


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int32, torch.int64, torch.float16, torch.float32], ids=str)
def test_masks_of_any_type(dtype):
    real, marked = torch.tensor([[1, 1, 1, 0]]).to(dtype), torch.tensor([[0, 1, 0, 1]]).to(dtype)
    pattern = AttentionPattern.from_masks(real, marked, window=1)
    assert pattern.key_mask.tolist() == [[True, True, True, False]]
    assert pattern.global_index.tolist() == [[1]]


def test_positions_ascend_and_are_padded_with_minus_one():
    marks = torch.zeros(4, 9, dtype=torch.bool)
    marks[0, [7, 2, 5]] = True
    marks[1, 8] = True
    marks[3, [0, 8]] = True
    pattern = AttentionPattern.from_masks(None, marks, window=1)
    assert pattern.global_index.tolist() == [[2, 5, 7], [8, -1, -1], [-1, -1, -1], [0, 8, -1]]
    assert pattern.global_count.tolist() == [3, 1, 0, 2]
    assert pattern.global_index.is_contiguous()


def test_max_globals_gives_the_width():
    marks = torch.tensor([[0, 1, 0, 1]])
    pattern = AttentionPattern.from_masks(None, marks, window=1, max_globals=4)
    assert pattern.global_index.tolist() == [[1, 3, -1, -1]]
    assert AttentionPattern.from_masks(None, marks * 0, window=1, max_globals=2).global_index.tolist() == [[-1, -1]]


@pytest.mark.parametrize("mask", [None, torch.ones(2, 5), torch.ones(2, 5, dtype=torch.bool)], ids=["none", "float", "bool"])
def test_max_globals_gives_the_width_where_nothing_is_global(mask):
    pattern = AttentionPattern.from_masks(mask, shape=(2, 5), window=1, max_globals=3)
    assert pattern.global_index.tolist() == [[-1] * 3] * 2
    assert pattern.global_count.tolist() == [0, 0]


def test_numbers_may_be_numpys():
    """As loops over arrays give them; the pattern holds Python's, which operators take."""
    two, three = numpy.array([2, 3])
    marks = torch.tensor([[1, 0, 0, 0, 0, 0, 0, 0, 0]])
    got = AttentionPattern.from_masks(
        None, marks, shape=(two - 1, numpy.int32(9)), window=(two, three), dilation=two, max_globals=two
    )
    expected = AttentionPattern.from_masks(None, marks, window=(2, 3), dilation=2, max_globals=2)
    assert torch.equal(got.to_dense(), expected.to_dense())
    assert {type(number) for number in (*got.window, got.dilation, got.batch, got.seq_len)} == {int}
    states = torch.randn(1, 2, 9, 4)
    assert torch.equal(*(sliding_window_attention(states, states, states, pattern=pattern) for pattern in (got, expected)))


def test_gathering_from_something_else():
    with pytest.raises(TypeError, match="states: got list, expected a tensor"):
        AttentionPattern.from_masks(shape=(1, 4), window=1).gather_global([1.0])


def test_more_globals_than_max_globals_stop():
    """They are never cut off, which would be a wrong answer without a sign."""
    marks = torch.tensor([[0, 1, 0, 0], [1, 1, 1, 0]])
    with pytest.raises(RuntimeError, match="max_globals=2: pass the most"):
        AttentionPattern.from_masks(None, marks, window=1, max_globals=2)


def test_with_window_shares_the_masks():
    pattern = AttentionPattern.from_masks(torch.ones(2, 6), torch.eye(2, 6), window=1, dilation=2)
    wider = pattern.with_window((3, 2))
    assert wider.window == (3, 2)
    assert pattern.window == (1, 1)
    for name in (field.name for field in dataclasses.fields(pattern) if field.name != "window"):
        assert getattr(wider, name) is getattr(pattern, name)
    with pytest.raises(ValueError, match="window"):
        pattern.with_window(-1)


SPANS = {
    "right": ([1, 1, 0, 0, 0], [0, 2, 0]),
    "left": ([0, 1, 1, 1, 1], [1, 5, 0]),
    "holes": ([0, 1, 0, 1, 0], [1, 4, 1]),
    "all_real": ([1, 1, 1, 1, 1], [0, 5, 0]),
    "one_real": ([0, 0, 1, 0, 0], [2, 3, 0]),
    "none_real": ([0, 0, 0, 0, 0], [0, 0, 0]),
}


@pytest.mark.parametrize(("mask", "span"), list(SPANS.values()), ids=list(SPANS))
def test_where_a_text_begins_and_ends(mask, span):
    pattern = AttentionPattern.from_masks(torch.tensor([mask]), window=1)
    assert pattern.key_span.tolist() == [span]
    assert pattern.key_flags.tolist() == [mask]


def test_flags_are_contiguous_however_the_mask_lies():
    """Kernels read them as rows of seq_len."""
    for mask in (torch.ones(6, 2).T, torch.ones(1, 6).expand(2, 6), torch.ones(2, 12)[:, ::2]):
        flags = AttentionPattern.from_masks(mask, window=1).key_flags
        assert flags.is_contiguous()
        assert flags.dtype == torch.int16


def test_patterns_move_with_all_they_hold():
    pattern = AttentionPattern.from_masks(torch.ones(2, 6), torch.eye(2, 6), window=1, dilation=2)
    assert pattern.to("cpu") is pattern
    moved = pattern.to("meta")
    assert moved.device.type == "meta"
    for field in dataclasses.fields(pattern):
        before, after = getattr(pattern, field.name), getattr(moved, field.name)
        assert (after.device.type, after.shape) == ("meta", before.shape) if torch.is_tensor(before) else after == before


def test_pattern_is_immutable():
    pattern = AttentionPattern.from_masks(shape=(1, 4), window=1)
    with pytest.raises(AttributeError):
        pattern.window = (2, 2)


def test_band_is_the_window_after_causality():
    for is_causal, band in ((False, (3, 2)), (True, (3, 0))):
        assert AttentionPattern.from_masks(shape=(1, 4), window=(3, 2), is_causal=is_causal).band == band


MARKED = torch.tensor([[0, 1, 0, 0]])
COVERING = {
    "both_sides": ({"window": 3}, "full"),
    "wider": ({"window": (3, 10)}, "full"),
    "full_with_globals": ({"window": 3, "global_attention_mask": MARKED}, "full"),
    "full_with_padding": ({"window": 3, "attention_mask": torch.tensor([[0, 1, 1, 0]])}, "full"),
    "one_dilation_a_head": ({"window": 3, "dilation": (1, 1)}, "full"),
    "causal": ({"window": 3, "is_causal": True}, "causal"),
    "causal_to_the_left": ({"window": (9, 0), "is_causal": True}, "causal"),
    "causal_with_globals": ({"window": 3, "is_causal": True, "global_attention_mask": MARKED}, "causal"),
    "causal_by_its_window": ({"window": (3, 0)}, "causal"),
    "a_global_key_after_its_queries": ({"window": (3, 0), "global_attention_mask": MARKED}, None),
    "left_one_short": ({"window": (2, 3)}, None),
    "right_one_short": ({"window": (3, 2)}, None),
    "causal_one_short": ({"window": 2, "is_causal": True}, None),
    "one_dilated_head": ({"window": 3, "dilation": (1, 2)}, None),
    "one_token": ({"window": 0, "shape": (1, 1)}, "full"),
}


@pytest.mark.parametrize(("options", "expected"), list(COVERING.values()), ids=list(COVERING))
def test_covering(options, expected):
    assert AttentionPattern.from_masks(**{"shape": (1, 4), **options}).covering == expected


@hypothesis.given(random_cases(max_len=12, padding="none"))
@hypothesis.settings(max_examples=200)
def test_covering_patterns_are_full_or_causal_attention(case):
    """What is seen is then everything, or the lower triangle; without global keys, the other way round too."""
    pattern = case.pattern()
    dense = pattern.to_dense()
    if pattern.covering is not None:
        assert torch.equal(dense, torch.ones_like(dense).tril(0 if pattern.covering == "causal" else case.seq_len))
    elif pattern.global_mask is None and set(pattern.dilations) == {1}:
        assert not dense.all()
        assert not torch.equal(dense, torch.ones_like(dense).tril())


def test_gather_global_fetches_rows_and_zeros():
    states = torch.randn(2, 3, 5, 4, requires_grad=True)
    marks = torch.tensor([[0, 1, 0, 1, 0], [0, 0, 0, 0, 1]])
    pattern = AttentionPattern.from_masks(None, marks, window=1)
    rows = pattern.gather_global(states)
    assert rows.shape == (2, 3, 2, 4)
    assert torch.equal(rows[0], states[0][:, [1, 3]])
    assert torch.equal(rows[1, :, 0], states[1, :, 4])
    assert not rows[1, :, 1].any()
    weight = torch.randn(rows.shape)
    (rows * weight).sum().backward()
    expected = torch.zeros_like(states)
    expected[0][:, [1, 3]], expected[1][:, 4] = weight[0], weight[1][:, 0]
    assert torch.equal(states.grad, expected)


def test_gather_global_never_spreads_nan():
    """Empty places read token 0; NaN there must not become a row, nor a gradient."""
    states = torch.randn(2, 5, 4, requires_grad=True)
    with torch.no_grad():
        states[1, 0] = torch.nan
    rows = AttentionPattern.from_masks(None, torch.tensor([[1, 1, 0, 0, 0], [0, 0, 1, 0, 0]]), window=1).gather_global(states)
    assert rows.shape == (2, 2, 4)
    assert not rows.isnan().any()
    rows.sum().backward()
    assert states.grad.isfinite().all()
    assert not states.grad[1, 0].any()


@hypothesis.given(random_cases(max_len=60))
@hypothesis.settings(max_examples=100)
def test_visible_keys_count_the_dense_mask(case):
    pattern = case.pattern()
    dense, counted = pattern.to_dense().sum(-1), pattern.visible_keys()
    assert counted.shape == dense.shape
    assert torch.equal(counted, dense)


@hypothesis.given(random_cases(max_len=40))
def test_dense_mask_follows_the_words_of_the_rule(case):
    """In plain Python: real, and (global or in reach by whole steps), and not later if causal."""
    pattern, real, marked = case.pattern(), case.attention_mask(), case.global_mask()
    dense = pattern.to_dense()
    left, right = case.window if isinstance(case.window, tuple) else (case.window, case.window)
    dilations = case.dilation if isinstance(case.dilation, tuple) else (case.dilation,)
    real = torch.ones(case.batch, case.seq_len) if real is None else real
    marked = torch.zeros(case.batch, case.seq_len) if marked is None else marked
    real, marked = real.bool().tolist(), marked.bool().tolist()
    for sample in range(case.batch):
        for head, step in enumerate(dilations):
            for i in range(case.seq_len):
                window = {i + m * step for m in range(-left, right + 1)}
                seen = [
                    real[sample][i]
                    and real[sample][j]
                    and (j in window or marked[sample][j])
                    and not (case.is_causal and j > i)
                    for j in range(case.seq_len)
                ]
                assert dense[sample, head, i].tolist() == seen


@pytest.mark.parametrize("dilation", [1, 2, 5], ids="dilation_{}".format)
@pytest.mark.parametrize("window", [(0, 0), (3, 3), (4, 1), (0, 6)], ids=str)
def test_an_interior_row_sees_left_plus_right_plus_one(window, dilation):
    """Three conventions of "window" are in use; here both sides are inclusive and count steps."""
    position = torch.arange(101)
    assert int(in_band(torch.tensor(50), position, *window, dilation).sum()) == sum(window) + 1
    pattern = AttentionPattern.from_masks(shape=(1, 101), window=window, dilation=dilation)
    assert int(pattern.visible_keys()[0, 0, 50]) == sum(window) + 1


def test_in_band_takes_one_dilation_for_each_head():
    steps = torch.tensor([1, 2])[:, None, None]
    position = torch.arange(7)
    inside = in_band(position[:, None], position, 1, 1, steps)
    assert inside[0, 3].nonzero().flatten().tolist() == [2, 3, 4]
    assert inside[1, 3].nonzero().flatten().tolist() == [1, 3, 5]


@hypothesis.given(st.integers(1, 30), st.integers(0, 9), st.integers(0, 9), st.data())
def test_key_range_holds_every_visible_key_and_is_its_own_inverse(seq_len, left, right, data):
    first = data.draw(st.integers(0, seq_len - 1))
    last = data.draw(st.integers(first + 1, seq_len))
    position = torch.arange(seq_len)
    inside = in_band(position[:, None], position, left, right, 1)
    keys = inside[first:last].any(0).nonzero().flatten().tolist()
    assert list(range(*key_range(first, last, left, right, seq_len))) == keys
    queries = inside[:, first:last].any(1).nonzero().flatten().tolist()
    assert list(range(*key_range(first, last, right, left, seq_len))) == queries


SVG = "{http://www.w3.org/2000/svg}"


def test_picture_is_a_drawing_of_the_dense_mask():
    pattern = AttentionPattern.from_masks(torch.tensor([[1, 1, 1, 1, 1, 0]]), torch.tensor([[0, 0, 1, 0, 0, 0]]), window=1)
    root = ET.fromstring(pattern._repr_svg_())
    assert root.tag == f"{SVG}svg"
    cells = root.findall(f"{SVG}rect")[1:]  # the first one is the background
    drawn = {(int(cell.get("y")), int(cell.get("x"))) for cell in cells}
    assert drawn == {tuple(place) for place in pattern.to_dense()[0, 0].nonzero().tolist()}
    colours = {cell.get("fill") for cell in cells if cell.get("x") == "2"}
    assert len(colours) == 1
    assert colours.isdisjoint(cell.get("fill") for cell in cells if cell.get("x") != "2")


@pytest.mark.parametrize("shape", [(1, 1), (3, 1000)], ids=str)
def test_picture_of_any_size(shape):
    """A long text shows its first 64 tokens, not a million rectangles."""
    svg = AttentionPattern.from_masks(shape=shape, window=(2, 0), dilation=(1, 3))._repr_svg_()
    ET.fromstring(svg)
    assert len(svg) < 64 * 64 * 80
    assert re.search(rf"of {shape[1]}<", svg)


def test_batch_of_nothing():
    pattern = AttentionPattern.from_masks(torch.ones(0, 5), torch.ones(0, 5), window=1)
    assert pattern.global_index.shape == (0, 0)
    assert pattern.to_dense().shape == (0, 1, 5, 5)
    assert pattern.visible_keys().shape == (0, 1, 5)
    assert pattern.gather_global(torch.ones(0, 2, 5, 3)).shape == (0, 2, 0, 3)
    ET.fromstring(pattern._repr_svg_())


def test_masks_are_not_kept_by_reference_when_they_are_written_later():
    """A loader that reuses its mask buffer must not change a pattern built before."""
    real, marked = torch.ones(1, 4, dtype=torch.bool), torch.tensor([[True, False, False, False]])
    pattern = AttentionPattern.from_masks(real, marked, window=1)
    real.zero_()
    marked.fill_(True)
    assert pattern.key_mask.all()
    assert pattern.global_mask.tolist() == [[True, False, False, False]]


def test_a_mask_that_marks_nothing_is_as_good_as_none():
    pattern = AttentionPattern.from_masks(None, torch.zeros(1, 4), window=1)
    assert pattern.global_mask is None
    assert pattern.global_index.shape == (1, 0)
    # A width that was given is kept: a captured graph needs the same tensors whatever the mask says.
    kept = AttentionPattern.from_masks(None, torch.zeros(1, 4), window=1, max_globals=2)
    assert kept.global_mask is not None
    assert kept.global_index.tolist() == [[-1, -1]]


def test_the_picture_of_a_long_text_costs_what_it_shows():
    """Notebooks draw by themselves whatever stands last in a cell."""
    pattern = AttentionPattern.from_masks(torch.ones(1, 300_000), window=8)
    assert "tokens 0 to 63 of 300000" in pattern._repr_svg_()


def test_a_pattern_that_is_there_already_is_not_moved():
    pattern = AttentionPattern.from_masks(shape=(1, 6), window=2)
    assert pattern.to("cpu") is pattern
    assert pattern.to("cpu:0") is pattern


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there")
def test_a_device_that_is_not_here_is_named():
    for make in (
        lambda: AttentionPattern.from_masks(shape=(1, 6), window=2, device="cuda"),
        lambda: AttentionPattern.from_masks(shape=(1, 6), window=2).to("cuda:1"),
    ):
        with pytest.raises(ValueError, match=r"^device: got 'cuda.*, expected one that is here"):
            make()


def test_masks_on_another_device_of_the_kind_are_refused():
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(allow_non_fake_inputs=True):
        mask = torch.ones(1, 6, device="cuda:0")
        assert AttentionPattern.from_masks(mask, window=2, device="cuda", max_globals=0).device == torch.device("cuda:0")
        with pytest.raises(ValueError, match=r"^device: got 'cuda:1' and masks on cuda:0"):
            AttentionPattern.from_masks(mask, window=2, device="cuda:1")


@pytest.mark.parametrize("side", [2**31, 2**62, 10**30])
@pytest.mark.parametrize("dilation", [1, 4, 2**40], ids=lambda dilation: f"dilation_{dilation}")
def test_windows_and_dilations_beyond_all_texts_mean_the_same(side, dilation):
    far = AttentionPattern.from_masks(shape=(1, 9), window=side, dilation=dilation)
    near = AttentionPattern.from_masks(shape=(1, 9), window=9, dilation=min(dilation, 9))
    assert torch.equal(far.to_dense(), near.to_dense())
    assert torch.equal(far.visible_keys(), near.visible_keys())
    states = torch.randn(1, 2, 9, 4)
    for backend in ("torch", "reference"):
        got, expected = (sliding_window_attention(states, states, states, pattern=p, backend=backend) for p in (far, near))
        torch.testing.assert_close(got, expected)


def test_masks_without_values_need_a_number_of_global_tokens():
    mask = torch.ones(2, 9, device="meta")
    with pytest.raises(ValueError, match="max_globals: got None for masks on meta"):
        AttentionPattern.from_masks(None, mask, window=1)
    pattern = AttentionPattern.from_masks(None, mask, window=1, max_globals=3)
    assert pattern.global_index.shape == (2, 3)
    assert pattern._repr_svg_().startswith("<svg")
