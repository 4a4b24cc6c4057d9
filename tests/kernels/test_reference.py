"""The reference by hand: six tokens, every mask written out, every number one that a pencil can find.

Scores are zero throughout (query 0), so that a row is the plain mean of the values it sees and its lse is the logarithm of
their number; token j has the value 10 ** j, so that the mean names the keys one by one.
"""

import math

import pytest
import torch

from longformer_triton.kernels import AttentionPattern, attention_probabilities, longformer_attention, sliding_window_attention

TOKENS = 6
VALUES = [1.0, 10.0, 100.0, 1000.0, 10000.0, 100000.0]
BACKENDS = pytest.mark.parametrize("backend", ["reference", "torch"])

# Which keys each of the six queries sees, written by hand.
SEEN = {
    "window_one": ({"window": 1}, ["01", "012", "123", "234", "345", "45"]),
    "window_zero": ({"window": 0}, ["0", "1", "2", "3", "4", "5"]),
    "left_two": ({"window": (2, 0)}, ["0", "01", "012", "123", "234", "345"]),
    "right_two": ({"window": (0, 2)}, ["012", "123", "234", "345", "45", "5"]),
    "left_one_right_two": ({"window": (1, 2)}, ["012", "0123", "1234", "2345", "345", "45"]),
    "wider_than_the_text": ({"window": 9}, ["012345"] * 6),
    "dilation_two": ({"window": 1, "dilation": 2}, ["02", "13", "024", "135", "24", "35"]),
    "dilation_three": ({"window": (1, 0), "dilation": 3}, ["0", "1", "2", "03", "14", "25"]),
    "causal": ({"window": 1, "is_causal": True}, ["0", "01", "12", "23", "34", "45"]),
    "causal_dilated": ({"window": 2, "dilation": 2, "is_causal": True}, ["0", "1", "02", "13", "024", "135"]),
    "global_first": ({"window": 1, "global_mask": [1, 0, 0, 0, 0, 0]}, ["01", "012", "0123", "0234", "0345", "045"]),
    "global_inside": ({"window": 1, "global_mask": [0, 0, 0, 1, 0, 0]}, ["013", "0123", "123", "234", "345", "345"]),
    "two_globals": ({"window": 0, "global_mask": [0, 1, 0, 0, 1, 0]}, ["014", "14", "124", "134", "14", "145"]),
    "global_and_causal": (
        {"window": 1, "global_mask": [0, 1, 0, 0, 1, 0], "is_causal": True},
        ["0", "01", "12", "123", "134", "145"],
    ),
    "global_and_dilated": (
        {"window": 1, "dilation": 2, "global_mask": [0, 0, 0, 1, 0, 0]},
        ["023", "13", "0234", "135", "234", "35"],
    ),
    "padding_right": ({"window": 1, "attention_mask": [1, 1, 1, 1, 0, 0]}, ["01", "012", "123", "23", "", ""]),
    "padding_left": ({"window": 2, "attention_mask": [0, 0, 1, 1, 1, 1]}, ["", "", "234", "2345", "2345", "345"]),
    "hole": ({"window": 1, "attention_mask": [1, 1, 0, 1, 1, 1]}, ["01", "01", "", "34", "345", "45"]),
    "nothing_but_padding": ({"window": 1, "attention_mask": [0] * 6}, [""] * 6),
    "padded_global": (
        {"window": 0, "attention_mask": [1, 1, 1, 1, 1, 0], "global_mask": [0, 1, 0, 0, 0, 1]},
        ["01", "1", "12", "13", "14", ""],
    ),
}


def mean_of(seen: str) -> float:
    return sum(VALUES[int(key)] for key in seen) / len(seen) if seen else 0.0


def as_arguments(options: dict) -> dict:
    return {name: torch.tensor([given]) if name.endswith("mask") else given for name, given in options.items()}


@BACKENDS
@pytest.mark.parametrize(("options", "seen"), SEEN.values(), ids=SEEN)
def test_each_query_averages_the_keys_it_sees(options, seen, backend):
    query = torch.zeros(1, 1, TOKENS, 1, dtype=torch.float64)
    key = torch.ones(1, 1, TOKENS, 1, dtype=torch.float64)
    value = torch.tensor(VALUES, dtype=torch.float64).view(1, 1, TOKENS, 1)
    out, lse = sliding_window_attention(query, key, value, **as_arguments(options), return_lse=True, backend=backend)
    expected_lse = [math.log(len(keys)) if keys else -math.inf for keys in seen]
    torch.testing.assert_close(out[0, 0, :, 0], torch.tensor([mean_of(keys) for keys in seen], dtype=torch.float64))
    torch.testing.assert_close(lse[0, 0], torch.tensor(expected_lse, dtype=torch.float64))


@pytest.mark.parametrize(("options", "seen"), SEEN.values(), ids=SEEN)
def test_dense_mask_is_the_one_written_by_hand(options, seen):
    arguments = as_arguments(options)
    if "global_mask" in arguments:
        arguments["global_attention_mask"] = arguments.pop("global_mask")
    pattern = AttentionPattern.from_masks(**arguments, shape=(1, TOKENS))
    expected = torch.tensor([[str(key) in keys for key in range(TOKENS)] for keys in seen])
    assert torch.equal(pattern.to_dense()[0, 0], expected)
    assert pattern.visible_keys()[0].expand(1, TOKENS).tolist() == [[len(keys) for keys in seen]]


@BACKENDS
def test_dilation_of_each_head(backend):
    """Head 0 sees its neighbours, head 1 every second token."""
    query = torch.zeros(1, 2, TOKENS, 1, dtype=torch.float64)
    value = torch.tensor(VALUES, dtype=torch.float64).view(1, 1, TOKENS, 1).expand(1, 2, TOKENS, 1)
    out = sliding_window_attention(query, query, value, window=1, dilation=[1, 2], backend=backend)
    for head, name in enumerate(["window_one", "dilation_two"]):
        expected = torch.tensor([mean_of(keys) for keys in SEEN[name][1]], dtype=torch.float64)
        torch.testing.assert_close(out[0, head, :, 0], expected)


@BACKENDS
def test_scores_weigh_the_values(backend):
    """Query log 2 against keys 0, 1, 2: weights 1, 2, 4, over 3, 7 and 6."""
    query = torch.full((1, 1, 3, 1), math.log(2), dtype=torch.float64)
    key = torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64).view(1, 1, 3, 1)
    value = torch.tensor([21.0, 42.0, 84.0], dtype=torch.float64).view(1, 1, 3, 1)
    out, lse = sliding_window_attention(query, key, value, window=1, return_lse=True, backend=backend)
    torch.testing.assert_close(out[0, 0, :, 0], torch.tensor([35.0, 63.0, 70.0], dtype=torch.float64))
    torch.testing.assert_close(lse[0, 0].exp(), torch.tensor([3.0, 7.0, 6.0], dtype=torch.float64))


@BACKENDS
def test_scale_multiplies_the_scores(backend):
    """With scale 2 the weights above are squared, and with -1 turned upside down."""
    query = torch.full((1, 1, 3, 1), math.log(2), dtype=torch.float64)
    key = torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64).view(1, 1, 3, 1)
    for scale, total in ((2.0, [5, 21, 20]), (-1.0, [1.5, 1.75, 0.75]), (0.0, [2, 3, 2])):
        _, lse = sliding_window_attention(query, key, key, window=1, scale=scale, return_lse=True, backend=backend)
        torch.testing.assert_close(lse[0, 0].exp(), torch.tensor(total, dtype=torch.float64))


@BACKENDS
def test_default_scale_is_one_over_the_root_of_head_dim(backend):
    """Sixteen channels of one give a score of 16 / sqrt(16) = 4 with each of two keys."""
    ones = torch.ones(1, 1, 2, 16, dtype=torch.float64)
    _, lse = sliding_window_attention(ones, ones, ones, window=1, return_lse=True, backend=backend)
    torch.testing.assert_close(lse[0, 0], torch.full((2,), 4 + math.log(2), dtype=torch.float64))


@BACKENDS
def test_grouped_heads_share_neighbouring_key_heads(backend):
    """Four query heads over two key heads: 0 and 1 read the first, 2 and 3 the second."""
    query = torch.zeros(1, 4, 2, 1, dtype=torch.float64)
    value = torch.tensor([[1.0, 3.0], [10.0, 30.0]], dtype=torch.float64).view(1, 2, 2, 1)
    out = sliding_window_attention(query, torch.zeros_like(value), value, window=1, backend=backend)
    assert out[0, :, 0, 0].tolist() == [2.0, 2.0, 20.0, 20.0]


@BACKENDS
def test_global_rows_use_their_own_projections(backend):
    """Token 2 is global: its row is the mean of all real global values; everyone else still reads its local value."""
    zero = torch.zeros(1, 1, TOKENS, 1, dtype=torch.float64)
    value = torch.tensor(VALUES, dtype=torch.float64).view(1, 1, TOKENS, 1)
    value_global = torch.tensor([6.0, 0.0, 12.0, 0.0, 0.0, 7e9], dtype=torch.float64).view(1, 1, TOKENS, 1)
    pattern = AttentionPattern.from_masks(torch.tensor([[1, 1, 1, 1, 1, 0]]), torch.tensor([[0, 0, 1, 0, 0, 0]]), window=0)
    out, lse = longformer_attention(
        zero, zero, value, zero[:, :, :1], zero, value_global, pattern, return_lse=True, backend=backend
    )
    expected = [mean_of("02"), mean_of("12"), 18 / 5, mean_of("23"), mean_of("24"), 0.0]
    torch.testing.assert_close(out[0, 0, :, 0], torch.tensor(expected, dtype=torch.float64))
    seen = torch.tensor([2.0, 2.0, 5.0, 2.0, 2.0, 0.0], dtype=torch.float64)
    torch.testing.assert_close(lse[0, 0].exp(), seen)


@BACKENDS
def test_global_rows_differ_from_sample_to_sample(backend):
    """Sample 0 has the global tokens 1 and 4, sample 1 only token 3: its second row of query_global is not read."""
    zero = torch.zeros(2, 1, TOKENS, 1, dtype=torch.float64)
    key_global = torch.arange(TOKENS, dtype=torch.float64).view(1, 1, TOKENS, 1).expand(2, 1, TOKENS, 1)
    marks = torch.tensor([[0, 1, 0, 0, 1, 0], [0, 0, 0, 1, 0, 0]])
    pattern = AttentionPattern.from_masks(None, marks, window=0)
    assert pattern.global_index.tolist() == [[1, 4], [3, -1]]
    # Weights of 1, 2, 4, ... 32 for the rows of log 2; of 1, 1, ... for the row of 0.
    query_global = torch.tensor([[math.log(2), 0.0], [math.log(2), math.nan]], dtype=torch.float64).view(2, 1, 2, 1)
    _, lse = longformer_attention(zero, zero, zero, query_global, key_global, zero, pattern, return_lse=True, backend=backend)
    expected = torch.tensor([[3.0, 63, 3, 3, 6, 3], [2, 2, 2, 63, 2, 2]], dtype=torch.float64)
    torch.testing.assert_close(lse[:, 0].exp(), expected)


def test_masked_rows_have_zero_gradients():
    """Neither the padded row's own gradient nor what it would send elsewhere is NaN, even through its lse of -inf."""
    states = [torch.randn(1, 1, TOKENS, 2, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    mask = torch.tensor([[1, 1, 0, 0, 0, 0]])
    out, lse = sliding_window_attention(*states, window=1, attention_mask=mask, return_lse=True, backend="reference")
    (out.sum() + lse.sum()).backward()
    for tensor in states:
        assert tensor.grad.isfinite().all()
        assert not tensor.grad[:, :, 2:].any()
        if tensor is not states[0]:
            assert tensor.grad[:, :, :2].any()


def test_nan_that_comes_back_to_masked_rows_stays_there():
    states = [torch.randn(1, 1, TOKENS, 2, requires_grad=True) for _ in range(3)]
    mask = torch.tensor([[1, 1, 1, 1, 1, 0]])
    out = sliding_window_attention(*states, window=2, attention_mask=mask, backend="reference")
    grad_out = torch.ones_like(out)
    grad_out[:, :, 5] = torch.nan
    assert all(grad.isfinite().all() for grad in torch.autograd.grad(out, states, grad_out))


def test_autocast_lowers_no_product():
    """What others are judged by, and maps that are promised in float32, stay as exact as without."""
    pattern = AttentionPattern.from_masks(None, torch.eye(2, 8), window=2)
    states = torch.randn(2, 2, 8, 4)
    rows = pattern.gather_global(states)

    def everything():
        out_and_lse = sliding_window_attention(states, states, states, pattern=pattern, return_lse=True, backend="reference")
        return *out_and_lse, *attention_probabilities(states, states, pattern, query_global=rows, key_global=states)

    plain = everything()
    with torch.autocast("cpu", torch.bfloat16):
        lowered = everything()
    for got, expected in zip(lowered, plain, strict=True):
        assert got.dtype == torch.float32
        assert torch.equal(got, expected)
