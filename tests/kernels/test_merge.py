"""Joining attention over disjoint key sets: any split is the whole again, also where a part saw nothing."""

import hypothesis
import pytest
import torch
from hypothesis import strategies as st

from longformer_triton.kernels import merge_attention


def part(query, key, value, seen):
    """Dense attention over the keys where ``seen`` (queries, keys) is True: out and lse, 0 and -inf in rows without any."""
    scores = (query @ key.transpose(-1, -2)).masked_fill(~seen, -torch.inf)
    lse = torch.logsumexp(scores, -1)
    weight = torch.exp(scores - torch.where(lse == -torch.inf, 0.0, lse)[..., None])
    return weight @ value, lse


@hypothesis.given(
    st.integers(1, 6), st.integers(1, 9), st.integers(1, 4), st.sampled_from([1.0, 50.0]), st.floats(0, 1), st.integers(0, 99)
)
def test_any_split_is_the_whole(queries, keys, parts, spread, visible, seed):
    generator = torch.Generator().manual_seed(seed)
    query, key, value = (
        torch.randn(2, 2, tokens, 3, generator=generator, dtype=torch.float64) for tokens in (queries, keys, keys)
    )
    query, key, value = (spread * query).requires_grad_(), key.requires_grad_(), value.requires_grad_()
    owner = torch.randint(parts, (queries, keys), generator=generator)
    seen = torch.rand((queries, keys), generator=generator) < visible
    got = merge_attention([part(query, key, value, seen & (owner == number)) for number in range(parts)])
    for one, two in zip(got, part(query, key, value, seen), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-10, atol=1e-10)


def test_order_of_parts_does_not_matter():
    parts = [(torch.randn(1, 1, 5, 2), torch.randn(1, 1, 5)) for _ in range(3)]
    for one, two in zip(merge_attention(parts), merge_attention(parts[::-1]), strict=True):
        torch.testing.assert_close(one, two)


def test_one_part_is_itself():
    out, lse = torch.randn(1, 2, 3, 4), torch.randn(1, 2, 3)
    merged_out, merged_lse = merge_attention([(out, lse)])
    torch.testing.assert_close(merged_out, out)
    torch.testing.assert_close(merged_lse, lse)


@pytest.mark.parametrize("shift", [-1e4, 1e4], ids=["tiny", "huge"])
def test_extreme_scores_neither_overflow_nor_vanish(shift):
    """exp(10000) is infinity and exp(-10000) zero; only differences count."""
    one, two = (torch.full((1, 1, 1, 1), value) for value in (3.0, 5.0))
    lse = torch.full((1, 1, 1), shift)
    out, merged = merge_attention([(one, lse), (two, lse)])
    assert out.item() == 4.0
    assert merged.item() == pytest.approx(shift + 0.693147, abs=1e-3)


def test_parts_that_saw_nothing():
    """A part at -inf adds nothing, whatever its out holds, NaN included; rows that no part saw are 0 and -inf."""
    minus_inf = -torch.inf
    out = torch.tensor([1.0, 2.0, 3.0]).view(1, 1, 3, 1).requires_grad_()
    other = torch.tensor([5.0, torch.nan, torch.nan]).view(1, 1, 3, 1).requires_grad_()
    lse = torch.tensor([[[0.0, 1.0, minus_inf]]], requires_grad=True)
    other_lse = torch.tensor([[[0.0, minus_inf, minus_inf]]], requires_grad=True)
    merged, merged_lse = merge_attention([(out, lse), (other, other_lse)])
    assert merged.flatten().tolist() == [3.0, 2.0, 0.0]
    torch.testing.assert_close(merged_lse.flatten(), torch.tensor([0.693147, 1.0, minus_inf]))
    leaves = (out, other, lse, other_lse)
    grads = torch.autograd.grad((merged, merged_lse), leaves, (torch.ones_like(merged), torch.ones_like(merged_lse)))
    for grad in grads:
        assert grad.isfinite().all()
        assert grad.flatten()[2] == 0
    torch.testing.assert_close(grads[0].flatten(), torch.tensor([0.5, 1.0, 0.0]))
    torch.testing.assert_close(grads[1].flatten(), torch.tensor([0.5, 0.0, 0.0]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_types_stay(dtype):
    lse_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    parts = [(torch.randn(1, 1, 4, 2).to(dtype), torch.randn(1, 1, 4, dtype=lse_dtype)) for _ in range(2)]
    out, lse = merge_attention(parts)
    assert out.dtype == dtype
    assert lse.dtype == lse_dtype


OUT, LSE = torch.zeros(1, 2, 3, 4), torch.zeros(1, 2, 3)
REFUSALS = {
    "empty": ([], ValueError, r"^parts: got an empty list, expected at least one pair"),
    "one_pair_without_a_list": ((OUT, LSE), TypeError, r"^parts: got \['Tensor', 'Tensor'\], expected a list of pairs \(out"),
    "triples": ([(OUT, LSE, LSE)], TypeError, r"^parts: got \['tuple'\], expected a list of pairs"),
    "generator": ((pair for pair in [(OUT, LSE)]), TypeError, r"^parts: got generator, expected a list of pairs"),
    "none_in_a_pair": ([(OUT, None)], TypeError, r"^parts\[0\]: got \(Tensor, NoneType\), expected two tensors"),
    "names_instead_of_tensors": ([("out", "lse")], TypeError, r"^parts\[0\]: got \(str, str\), expected two tensors"),
    "other_length": (
        [(OUT, LSE), (OUT[:, :, :2], LSE[:, :, :2])],
        ValueError,
        r"^parts\[1\]: got out \(1, 2, 2, 4\).*like the first",
    ),
    "lse_with_channels": ([(OUT, OUT)], ValueError, r"^parts\[0\]: got .*lse \(1, 2, 3, 4\), expected .*\(1, 2, 3\)"),
    "integers": ([(OUT.long(), LSE)], TypeError, r"^parts\[0\]: got out of dtype torch.int64, expected a float type: cast"),
    "other_dtype": ([(OUT, LSE), (OUT.half(), LSE)], TypeError, r"^parts\[1\]: got out of dtype torch.float16, .*cast"),
    "other_lse_dtype": ([(OUT, LSE), (OUT, LSE.half())], TypeError, r"^parts\[1\]: got lse of dtype torch.float16"),
    "other_device": ([(OUT, LSE), (OUT.to("meta"), LSE)], ValueError, r"^parts\[1\]: got out on meta, expected cpu .*move"),
    "lse_elsewhere": ([(OUT, LSE.to("meta"))], ValueError, r"^parts\[0\]: got lse on meta, expected cpu"),
}


@pytest.mark.parametrize(("parts", "exception", "message"), REFUSALS.values(), ids=REFUSALS)
def test_refusal(parts, exception, message):
    with pytest.raises(exception, match=message):
        merge_attention(parts)
