"""Absorbed global projections on the Triton backend: the operator ``global_rows`` over channels of any width."""

import pytest
import torch
from attention_cases import Case

from longformer_triton.kernels import absorbed_global_attention, blockwise
from longformer_triton.kernels.dropout import Dropout
from longformer_triton.kernels.triton_impl import absorbed_rows

CASES = {
    "one": Case(globals_="first"),
    "holes": Case(padding="holes", globals_="some"),
    "differing_with_dropout": Case(batch=3, globals_="differing", dropout_p=0.3),
    "none": Case(globals_="none"),
    "all_and_a_masked_sample": Case(padding="whole_row", globals_="all"),
}


@pytest.mark.parametrize("chunk", ["all_rows_at_once", "row_by_row"])
@pytest.mark.parametrize("case", list(CASES.values()), ids=list(CASES))
def test_against_the_reference(case, chunk, monkeypatch):
    if chunk == "row_by_row":
        monkeypatch.setattr(absorbed_rows, "_SCORES", 1)
    pattern, generator = case.pattern(), case.generator(9)
    hidden, width = 16, case.heads * case.head_dim

    def states(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()

    inputs = [
        states(case.batch, case.seq_len, hidden),
        states(case.batch, case.heads, pattern.global_index.shape[1], case.head_dim),
        *(states(width, hidden) for _ in range(2)),
        states(width),
    ]
    results = []
    for backend in ("triton", "reference"):
        out = absorbed_global_attention(
            *inputs, pattern, dropout_p=case.dropout_p, dropout_seed=torch.tensor(5), backend=backend
        )
        grads = torch.autograd.grad(out.sin().sum(), inputs, allow_unused=True)
        results.append([out, *(torch.zeros_like(x) if grad is None else grad for x, grad in zip(inputs, grads, strict=True))])
    for got, expected in zip(*results, strict=True):
        assert not got.isnan().any()
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("module", [absorbed_rows, blockwise], ids=["triton", "torch"])
def test_autocast_lowers_no_product(module):
    """Operators run with autocast on around them; sums, lse and what dropout keeps stay float32."""
    case = Case(batch=2, padding="holes", globals_="some")
    pattern, generator, dropout = case.pattern(), case.generator(3), Dropout(torch.tensor(5), 26)
    count = pattern.global_index.shape[1]
    sizes = ((4, count), (2, case.seq_len), (2, case.seq_len))
    states = [torch.randn(2, heads, tokens, 8, generator=generator) for heads, tokens in sizes]

    def everything():
        results = module.rows_forward(tuple(states), pattern, 0.5, dropout)
        grads = [torch.empty_like(tensor) for tensor in states]
        given = tuple(torch.ones_like(result) for result in results)
        module.rows_backward(given, results, tuple(states), pattern, 0.5, dropout, [True] * 3, grads)
        return *results, *grads

    plain = everything()
    with torch.autocast("cpu", torch.bfloat16):
        lowered = everything()
    for got, expected in zip(lowered, plain, strict=True):
        assert torch.equal(got, expected)
