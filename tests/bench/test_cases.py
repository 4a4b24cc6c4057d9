import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from longformer_triton.bench.cases import (
    FORWARD,
    PLACES,
    PREFIX,
    SCATTERED,
    TRAINING,
    Case,
    Inputs,
    useful_flops,
    visible_pairs,
)

CPU = torch.device("cpu")


@st.composite
def cases(draw):
    """Small cells with every combination of axes that changes who sees whom."""
    case = Case(
        "ours-torch",
        FORWARD,
        seq_len=draw(st.integers(1, 40)),
        window=draw(st.one_of(st.none(), st.integers(0, 45).map(lambda side: 2 * side))),
        batch=draw(st.integers(1, 3)),
        heads=1,
        head_dim=1,
        globals_at=draw(st.sampled_from(PLACES)),
        padding=draw(st.integers(0, 99)),
        is_causal=draw(st.integers(0, 1)),
        dilation=draw(st.integers(1, 6)),
    )
    return dataclasses.replace(case, num_globals=draw(st.integers(0, min(9, case.real_len))))


@given(cases())
def test_visible_pairs_are_those_of_the_pattern(case):
    pattern = Inputs.random(case, CPU).pattern()
    rows = pattern.to_dense()[:, 0].sum(-1)
    if case.has_global_rows:
        rows = torch.where(pattern.global_mask, case.real_len, rows)  # their rows attend to everything real
    counted = [visible_pairs(case, sample) for sample in range(case.batch)]
    assert counted == rows.sum(-1).tolist()
    assert useful_flops(case) == 4 * sum(counted)


@given(cases())
def test_global_tokens_are_as_many_as_asked_for_and_real(case):
    for sample in range(case.batch):
        positions = case.global_positions(sample)
        assert positions == sorted(set(positions))
        assert len(positions) == case.num_globals
        assert all(0 <= position < case.real_len for position in positions)


def test_scattered_globals_reach_over_the_text_and_differ_between_texts():
    case = Case("ours-torch", FORWARD, 1000, 64, num_globals=10, globals_at=SCATTERED, padding=10)
    first, second = case.global_positions(0), case.global_positions(1)
    assert first != second
    assert [position // 90 for position in first] == list(range(10))
    assert first == dataclasses.replace(case, provider="flex", window=16, direction=TRAINING).global_positions(0)
    assert dataclasses.replace(case, globals_at=PREFIX).global_positions(1) == list(range(10))


@pytest.mark.parametrize(
    ("is_causal", "band"), [(0, (256, 256)), (1, (512, 0))], ids=["half_on_each_side", "causal_all_before_it"]
)
def test_a_window_is_the_keys_that_a_query_sees_besides_itself(is_causal, band):
    case = Case("ours-torch", FORWARD, 4096, 512, is_causal=is_causal)
    assert case.band == band
    assert int(Inputs.random(case, CPU).pattern().visible_keys()[0, 0, 2048]) == 513


def test_full_attention_counts_every_pair():
    assert visible_pairs(Case("sdpa", FORWARD, 100, None)) == 100 * 100
    assert visible_pairs(Case("sdpa", FORWARD, 100, None, is_causal=1, dilation=3)) == 100 * 101 // 2
    assert visible_pairs(Case("sdpa", FORWARD, 100, None, padding=25)) == 75 * 75


def test_backward_counts_two_and_a_half_times_forward():
    forward = Case("sdpa", FORWARD, 64, None, heads=2, head_dim=8, dropout=10, key_heads=1)
    training = dataclasses.replace(forward, direction=TRAINING)
    assert useful_flops(forward) == 4 * 8 * 2 * 64 * 64
    assert useful_flops(training) == 3.5 * useful_flops(forward)


@pytest.mark.parametrize("num_globals", [0, 2], ids=["no_globals", "two_globals"])
def test_inputs_are_the_same_for_every_provider_and_never_zero(num_globals):
    case = Case("ours-torch", TRAINING, 16, 4, heads=2, head_dim=4, num_globals=num_globals)
    one = Inputs.random(case, CPU)
    other = Inputs.random(dataclasses.replace(case, provider="transformers"), CPU)
    assert ("key_global" in one.packed) == bool(num_globals)
    for name, leaf in one.packed.items():
        assert torch.equal(leaf, other.packed[name])
        assert leaf.requires_grad
        assert leaf.detach().count_nonzero() > 0
    assert one.heads_of("query").shape == (1, 2, 16, 4)


def test_inputs_follow_the_axes():
    case = Case("ours-torch", FORWARD, 20, 4, batch=2, heads=4, head_dim=4, num_globals=2, padding=25, key_heads=2)
    inputs = Inputs.random(case, CPU)
    assert inputs.heads_of("key").shape == (2, 2, 20, 4)
    assert inputs.heads_of("value_global").shape == (2, 2, 20, 4)
    assert inputs.heads_of("query_global").shape == (2, 4, 20, 4)
    assert inputs.attention_mask.sum(1).tolist() == [15, 15]
    assert inputs.grad_out[:, :, 15:].count_nonzero() == 0
    assert inputs.grad_out[:, :, :15].count_nonzero() == inputs.grad_out[:, :, :15].numel()


def test_causal_globals_are_sinks_without_projections_of_their_own():
    case = Case("ours-torch", FORWARD, 20, 4, num_globals=2, is_causal=1)
    assert not case.has_global_rows
    assert set(Inputs.random(case, CPU).packed) == {"query", "key", "value"}


def test_without_padding_there_is_no_mask():
    assert Inputs.random(Case("ours-torch", FORWARD, 20, 4), CPU).pattern().key_mask is None
    padded = Inputs.random(Case("ours-torch", FORWARD, 20, 4, padding=10), CPU).pattern().key_mask
    assert padded is not None
    assert padded.sum() == 18
