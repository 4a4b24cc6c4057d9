"""Which probabilities dropout keeps: one function of (seed, batch, head, query, key), the same for every backend and tile."""

import dataclasses
import os
import subprocess
import sys
import textwrap

import hypothesis
import pytest
import torch
from attention_cases import OPTION_CASES, Case, assert_same, each
from hypothesis import strategies as st

from longformer_triton.kernels import sliding_window_attention
from longformer_triton.kernels.dropout import Dropout, philox
from longformer_triton.kernels.torch_impl import global_rows, strands

WORD = 0xFFFFFFFF
# Random123's published known answers for philox4x32-7: (counter, key, result).
KNOWN_ANSWERS = {
    "zeros": ([0] * 4, [0] * 2, [0x5F6FB709, 0x0D893F64, 0x4F121F81, 0x4F730A48]),
    "ones": ([WORD] * 4, [WORD] * 2, [0x5207DDC2, 0x45165E59, 0x4D8EE751, 0x8C52F662]),
}


def plain_philox(counter: list[int], key: list[int]) -> list[int]:
    """Philox4x32-7 in Python's own integers, from the paper (Salmon et al. 2011)."""
    (a, b, c, d), (left, right) = counter, key
    for _ in range(7):
        low, high = 0xD2511F53 * a, 0xCD9E8D57 * c
        a, b, c, d = (high >> 32) ^ b ^ left, high & WORD, (low >> 32) ^ d ^ right, low & WORD
        left, right = (left + 0x9E3779B9) & WORD, (right + 0xBB67AE85) & WORD
    return [a, b, c, d]


def plain_byte(seed: int, stream: int, query: int, key: int, dilation: int = 1) -> int:
    """The byte of one pair, as the design states it: key j = 64 J + 8 k + 2 c + e reads byte 2 k + e, low byte first."""
    step, residue = divmod(key, dilation)
    block, inside = divmod(step, 64)
    k, rest = divmod(inside, 8)
    c, e = divmod(rest, 2)
    words = plain_philox([query, 4 * block + c, stream, residue], [seed & WORD, (seed >> 32) & WORD])
    number = 2 * k + e
    return (words[number // 4] >> (8 * (number % 4))) & 0xFF


@pytest.mark.parametrize(("counter", "key", "result"), KNOWN_ANSWERS.values(), ids=KNOWN_ANSWERS)
def test_known_answers(counter, key, result):
    assert plain_philox(counter, key) == result
    seed = (key[1] << 32) | key[0]
    seed = torch.tensor(seed - 2**64 if seed >= 2**63 else seed)
    assert [int(word) for word in philox(tuple(torch.tensor(word) for word in counter), seed)] == result


TRITON_PHILOX = f"""
    import torch
    import triton
    import triton.language as tl

    @triton.jit
    def kernel(counter_ptr, key_ptr, words_ptr, ROUNDS: tl.constexpr):
        case = tl.arange(0, 2)
        c0 = tl.load(counter_ptr + 4 * case).to(tl.uint32)
        c1 = tl.load(counter_ptr + 4 * case + 1).to(tl.uint32)
        c2 = tl.load(counter_ptr + 4 * case + 2).to(tl.uint32)
        c3 = tl.load(counter_ptr + 4 * case + 3).to(tl.uint32)
        k0 = tl.load(key_ptr + 2 * case).to(tl.uint32)
        k1 = tl.load(key_ptr + 2 * case + 1).to(tl.uint32)
        c0, c1, c2, c3 = tl.philox_impl(c0, c1, c2, c3, k0, k1, ROUNDS)
        tl.store(words_ptr + 4 * case, c0.to(tl.int64))
        tl.store(words_ptr + 4 * case + 1, c1.to(tl.int64))
        tl.store(words_ptr + 4 * case + 2, c2.to(tl.int64))
        tl.store(words_ptr + 4 * case + 3, c3.to(tl.int64))

    counter, key, expected = (torch.tensor(rows) for rows in zip(*{list(KNOWN_ANSWERS.values())!r}))
    words = torch.zeros_like(expected)
    kernel[(1,)](counter, key, words, 7)
    assert torch.equal(words, expected), words
"""


def test_known_answers_by_triton(tmp_path):
    """Triton's own generator gives the same words, so that kernels can use it. Interpreted, which takes another process."""
    pytest.importorskip("triton", reason="triton is not installed")
    script = tmp_path / "philox.py"
    script.write_text(textwrap.dedent(TRITON_PHILOX))
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    result = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


@hypothesis.given(
    st.integers(-(2**63), 2**63 - 1), st.integers(0, 2**31), st.integers(0, 2**31), st.integers(0, 10**6), st.integers(1, 5)
)
def test_bytes_follow_the_definition(seed, stream, query, key, dilation):
    """A threshold of one byte more keeps what a threshold at the byte drops: so the byte is read off from outside."""
    byte = plain_byte(seed, stream, query, key, dilation)
    place = [torch.tensor([[[number]]]) for number in (stream, query, key // dilation)]
    residue = key % dilation
    for threshold, kept in ((byte, True), (byte + 1, False)):
        if 1 <= threshold <= 255:
            dropout = Dropout(torch.tensor(seed), threshold)
            factor = dropout.factor_at(*place, torch.float64, residue).item()
            assert factor == (256 / (256 - threshold) if kept else 0)


# (seed, batch * heads + head, query, key, dilation): byte. Fixed for ever: a checkpointed or resumed run must replay its masks.
BYTES = {
    (0, 0, 0, 0, 1): 9,
    (0, 0, 0, 1, 1): 183,
    (0, 0, 0, 2, 1): 39,
    (0, 0, 0, 8, 1): 111,
    (0, 0, 0, 64, 1): 243,
    (1234, 0, 5, 63, 1): 85,
    (1234, 7, 4095, 4094, 1): 103,
    (-1, 3, 100000, 99999, 1): 213,
    (1 << 40, 11, 17, 23, 3): 125,
    (-(2**63), 1, 2, 131, 2): 244,
}


@pytest.mark.parametrize(("place", "byte"), BYTES.items(), ids=str)
def test_ten_bytes(place, byte):
    assert plain_byte(*place) == byte
    seed, stream, query, key, dilation = place
    dropout = Dropout(torch.tensor(seed), max(1, byte))
    where = [torch.tensor(number) for number in (stream, query, key // dilation)]
    at = dropout.factor_at(*(number.view(1, 1, 1) for number in where), torch.float64, key % dilation).item()
    in_range = dropout.factor_range(
        where[0][None], where[1][None], key // dilation, key // dilation + 1, key % dilation, torch.float64
    )
    assert at == in_range.item() == dropout.scale * (byte >= 1)
    if byte < 255:
        assert (
            Dropout(torch.tensor(seed), byte + 1).factor_at(*(n.view(1, 1, 1) for n in where), torch.float64, key % dilation)
            == 0
        )


@hypothesis.given(st.integers(0, 300), st.integers(1, 200), st.integers(0, 4), st.integers(1, 255), st.integers())
def test_a_range_equals_its_places(first, count, residue, threshold, seed):
    dropout = Dropout(torch.tensor(seed % 2**63), threshold)
    stream, query = torch.tensor([0, 5]), torch.tensor([3, 77, 4096])
    in_range = dropout.factor_range(stream, query, first, first + count, residue, torch.float32)
    keys = torch.arange(first, first + count)
    at = dropout.factor_at(stream[:, None, None], query[:, None], keys, torch.float32, residue)
    assert in_range.shape == (2, 3, count)
    assert torch.equal(in_range, at)


@pytest.mark.parametrize("threshold", [1, 26, 128, 255])
def test_share_and_size_of_survivors(threshold):
    dropout = Dropout(torch.tensor(4711), threshold)
    factor = dropout.factor_range(torch.arange(8), torch.arange(256), 0, 512, 0, torch.float64)
    kept = factor != 0
    expected = 1 - threshold / 256
    # Four standard deviations of the share of a million independent draws.
    deviation = 4 * (expected * (1 - expected) / kept.numel()) ** 0.5
    assert kept.double().mean().item() == pytest.approx(expected, abs=deviation)
    assert factor[kept].unique().tolist() == [256 / (256 - threshold)]
    for dim in range(3):
        share = kept.double().mean([other for other in range(3) if other != dim])
        spread = 6 * (expected * (1 - expected) * share.numel() / kept.numel()) ** 0.5
        assert (share - expected).abs().max().item() <= spread


def test_heads_batches_and_queries_draw_differently():
    factor = Dropout(torch.tensor(1), 128).factor_range(torch.arange(4), torch.arange(4), 0, 256, 0, torch.float64)
    rows = factor.flatten(0, 1)
    assert len({tuple(row.tolist()) for row in rows}) == len(rows)
    other = Dropout(torch.tensor(2), 128).factor_range(torch.arange(4), torch.arange(4), 0, 256, 0, torch.float64)
    high = Dropout(torch.tensor(1 + (1 << 32)), 128).factor_range(torch.arange(4), torch.arange(4), 0, 256, 0, torch.float64)
    assert not torch.equal(factor, other)
    assert not torch.equal(factor, high)


SHARED = {
    "plain": Case(dropout_p=0.3),
    "causal": Case(dropout_p=0.3, is_causal=True),
    "covering_window": Case(dropout_p=0.5, window=60),
    "dilated": Case(dropout_p=0.3, dilation=3),
    "dilated_per_head": Case(dropout_p=0.3, dilation=(1, 4), seq_len=200),
    "grouped_heads": Case(3, 6, 2, 40, dropout_p=0.3),
    "global_columns": Case(3, globals_="some", dropout_p=0.3),
    "global_columns_dilated": Case(3, globals_="some", dropout_p=0.3, dilation=2, window=(7, 3), seq_len=150),
    "global_rows": Case(3, globals_="differing", dropout_p=0.3, global_rows=True),
    "everything": dataclasses.replace(OPTION_CASES["everything"], dropout_p=0.6),
}


@each(SHARED)
def test_backends_share_the_mask(case):
    inputs = case.inputs()
    assert_same(case.results(inputs, "torch"), case.results(inputs, "reference"))
    plain = dataclasses.replace(case, dropout_p=0.0)
    assert not torch.equal(plain.run(inputs, "torch")[0], case.run(inputs, "torch")[0])
    torch.testing.assert_close(plain.run(inputs, "torch")[1], case.run(inputs, "torch")[1])


@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_mask_of_attention_is_the_defined_one(backend):
    """Read off from the output: uniform probabilities, and values that name the keys by powers of two."""
    heads, tokens, dilation, seed, threshold = 2, 30, 3, 987654321, 77
    zero = torch.zeros(2, heads, tokens, 1, dtype=torch.float64)
    value = (2.0 ** torch.arange(tokens, dtype=torch.float64)).view(1, 1, tokens, 1).expand(2, heads, tokens, 1)
    out = sliding_window_attention(
        zero, zero, value, window=(3, 2), dilation=dilation,
        dropout_p=threshold / 256, dropout_seed=torch.tensor(seed), backend=backend,
    )  # fmt: skip
    for sample in range(2):
        for head in range(heads):
            for i in range(tokens):
                seen = [i + m * dilation for m in range(-3, 3) if 0 <= i + m * dilation < tokens]
                kept = [j for j in seen if plain_byte(seed, sample * heads + head, i, j, dilation) >= threshold]
                expected = sum(2.0**j for j in kept) / len(seen) * 256 / (256 - threshold)
                assert out[sample, head, i, 0].item() == pytest.approx(expected, rel=1e-12)


def test_block_sizes_change_no_bit_of_the_mask(monkeypatch):
    case = SHARED["everything"]
    expected = case.results(case.inputs(), "torch")
    monkeypatch.setattr(strands, "_BLOCK_ROWS", 7)
    monkeypatch.setattr(global_rows, "_SCORES", 50)
    assert_same(case.results(case.inputs(), "torch"), expected)


@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_seed_is_drawn_from_torchs_generator(backend):
    states = Case().inputs(requires_grad=False)

    def run() -> torch.Tensor:
        return sliding_window_attention(*states, window=3, dropout_p=0.5, backend=backend)

    torch.manual_seed(5)
    first, second = run(), run()
    torch.manual_seed(5)
    assert torch.equal(run(), first)
    assert torch.equal(run(), second)
    assert not torch.equal(first, second)


def test_without_dropout_no_number_is_drawn():
    """Evaluation must not move the generator of a training run."""
    before = torch.get_rng_state()
    sliding_window_attention(*Case().inputs(), window=3)
    sliding_window_attention(*Case().inputs(), window=3, dropout_p=0.5, dropout_seed=torch.tensor(1))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("dropout_p", [1 / 256, 0.1, 0.5, 255 / 256], ids=str)
def test_expectation_stays_the_same(dropout_p):
    """Over many seeds the mean of dropped probabilities is the probability: for values of one the mean output is one."""
    threshold = round(256 * dropout_p)
    ones = torch.ones(4, 8, 512, 1, dtype=torch.float64)
    out = sliding_window_attention(ones, ones, ones, window=32, dropout_p=dropout_p, dropout_seed=torch.tensor(3))
    variance = threshold / (256 - threshold) / (out.numel() * 33)
    assert out.mean().item() == pytest.approx(1.0, abs=5 * variance**0.5)


@pytest.mark.parametrize("factors", [1, 3 * 2 * 96 * 2, 1 << 30], ids=["a_block", "three_blocks", "all"])
def test_factors_of_global_keys_do_not_depend_on_how_many_are_computed_at_once(factors, monkeypatch):
    """Six blocks of queries: the factors of each, of three, or of all together."""
    query, key, value = (torch.randn(1, 2, 500, 4, dtype=torch.float64, requires_grad=True) for _ in range(3))
    marks = torch.zeros(1, 500)
    marks[0, [3, 250]] = 1
    options = {"window": 5, "global_mask": marks, "dropout_p": 0.5, "dropout_seed": torch.tensor(7)}
    monkeypatch.setattr(strands, "_FACTORS", factors)
    out = sliding_window_attention(query, key, value, **options, backend="torch")
    grads = torch.autograd.grad(out.square().sum(), (query, key, value))
    expected = sliding_window_attention(query, key, value, **options, backend="reference")
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(grads, torch.autograd.grad(expected.square().sum(), (query, key, value)), rtol=1e-10, atol=1e-12)
