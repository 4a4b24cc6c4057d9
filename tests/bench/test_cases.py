import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from longformer_triton.bench.cases import FORWARD, TRAINING, Case, Inputs, useful_flops, visible_pairs


@given(seq_len=st.integers(1, 40), side=st.integers(0, 45), data=st.data())
def test_visible_pairs_are_those_of_the_pattern(seq_len, side, data):
    num_globals = data.draw(st.integers(0, seq_len))
    case = Case("ours-torch", FORWARD, seq_len, 2 * side, heads=1, num_globals=num_globals)
    pattern = Inputs.random(case, torch.device("cpu")).pattern()
    rows = pattern.to_dense()[0, 0].sum(-1)
    rows[:num_globals] = seq_len  # their rows attend to everything
    assert visible_pairs(case) == int(rows.sum())


def test_full_attention_counts_every_pair():
    assert visible_pairs(Case("sdpa", FORWARD, 100, None)) == 100 * 100


def test_backward_counts_two_and_a_half_times_forward():
    forward = Case("sdpa", FORWARD, 64, None, heads=2, head_dim=8)
    training = dataclasses.replace(forward, direction=TRAINING)
    assert useful_flops(forward) == 4 * 8 * 2 * 64 * 64
    assert useful_flops(training) == 3.5 * useful_flops(forward)


@pytest.mark.parametrize("num_globals", [0, 2], ids=["no_globals", "two_globals"])
def test_inputs_are_the_same_for_every_provider_and_never_zero(num_globals):
    case = Case("ours-torch", TRAINING, 16, 4, heads=2, head_dim=4, num_globals=num_globals)
    one = Inputs.random(case, torch.device("cpu"))
    other = Inputs.random(dataclasses.replace(case, provider="transformers"), torch.device("cpu"))
    assert ("key_global" in one.packed) == bool(num_globals)
    for name, leaf in one.packed.items():
        assert torch.equal(leaf, other.packed[name])
        assert leaf.requires_grad
        assert leaf.detach().count_nonzero() > 0
    assert one.heads_of("query").shape == (1, 2, 16, 4)
