"""Global rows without projecting every token: the same numbers as with the projections, in every gradient too."""

import dataclasses

import pytest
import torch
from attention_cases import Case, each

from longformer_triton.kernels import AttentionPattern, absorbed_global_attention, longformer_attention

HIDDEN = 10
NAMES = ("hidden_states", "query_global", "key_weight", "value_weight", "value_bias")
CASES = {
    "plain": Case(globals_="first"),
    "no_globals": Case(globals_="none"),
    "differing_counts": Case(3, globals_="differing"),
    "padded_right": Case(3, globals_="some", padding="right"),
    "padding_holes": Case(3, globals_="some", padding="holes"),
    "whole_row_padded": Case(3, globals_="differing", padding="whole_row"),
    "all_global": Case(globals_="all", padding="left"),
    "negative_scale": Case(globals_="some", scale=-1.3),
    "one_token": Case(globals_="first", seq_len=1),
    "long": Case(1, 3, 3, 300, 4, globals_="some", padding="right"),
    "dropout": Case(3, 3, 3, 70, 4, globals_="differing", dropout_p=0.3),
    "dropout_and_holes": Case(3, globals_="some", padding="holes", dropout_p=0.3),
}


def make_inputs(case: Case) -> list[torch.Tensor]:
    width, projected = case.pattern().global_index.shape[1], case.heads * case.head_dim
    shapes = [
        (case.batch, case.seq_len, HIDDEN),
        (case.batch, case.heads, width, case.head_dim),
        (projected, HIDDEN),
        (projected, HIDDEN),
        (projected,),
    ]
    generator = case.generator(9)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in shapes]


def options(case: Case) -> dict:
    return {"scale": case.scale, "dropout_p": case.dropout_p, "dropout_seed": torch.tensor(31)}


def absorbed(case: Case, inputs: list[torch.Tensor | None], backend: str = "torch") -> torch.Tensor:
    return absorbed_global_attention(*inputs, case.pattern(), **options(case), backend=backend)


def explicit(case: Case, inputs: list[torch.Tensor | None], backend: str) -> torch.Tensor:
    """Project every token, key bias included, and take the global rows out of ``longformer_attention``."""
    hidden, query_global, key_weight, value_weight, value_bias = inputs
    pattern = case.pattern()
    if pattern.key_mask is not None:
        hidden = hidden.masked_fill(~pattern.key_mask[..., None], 0.0)
    key_bias = torch.linspace(-2, 2, key_weight.shape[0], dtype=torch.float64)

    def project(weight, bias):
        return torch.nn.functional.linear(hidden, weight, bias).unflatten(-1, (case.heads, case.head_dim)).transpose(1, 2)

    key, value = project(key_weight, key_bias), project(value_weight, value_bias)
    local = torch.zeros_like(key).detach()
    out = longformer_attention(local, local, local, query_global, key, value, pattern, **options(case), backend=backend)
    return pattern.gather_global(out)


def grads_of(out: torch.Tensor, inputs: list[torch.Tensor], case: Case) -> list[torch.Tensor]:
    weight = torch.randn(out.shape, generator=case.generator(10), dtype=torch.float64)
    grads = torch.autograd.grad(out, inputs, weight, allow_unused=True)
    return [torch.zeros_like(tensor) if grad is None else grad for tensor, grad in zip(inputs, grads, strict=True)]


@pytest.mark.parametrize("other", ["explicit_reference", "explicit_torch", "absorbed_reference"])
@each(CASES)
def test_equals_the_explicit_projections(case, other):
    inputs = make_inputs(case)
    got = absorbed(case, inputs)
    kind, backend = other.split("_")
    expected = absorbed(case, inputs, backend) if kind == "absorbed" else explicit(case, inputs, backend)
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)
    for name, one, two in zip(NAMES, grads_of(got, inputs, case), grads_of(expected, inputs, case), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-10, atol=1e-10, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_without_a_value_bias(backend):
    case = CASES["dropout"]
    inputs = make_inputs(case)
    zero_bias = absorbed(case, [*inputs[:4], torch.zeros_like(inputs[4])], backend)
    torch.testing.assert_close(absorbed(case, [*inputs[:4], None], backend), zero_bias, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("backend", ["torch", "reference"])
@each({name: CASES[name] for name in ("differing_counts", "whole_row_padded", "dropout_and_holes")})
def test_nan_in_rows_that_do_not_count(case, backend):
    """Rows of query_global at -1, and padded hidden states, reach neither the result nor the weights' gradients."""
    inputs, pattern = make_inputs(case), case.pattern()
    unused = (pattern.global_index < 0)[:, None, :, None]
    dirty = [tensor.detach().clone() for tensor in inputs]
    dirty[1] = dirty[1].masked_fill(unused, torch.nan)
    if pattern.key_mask is not None:
        dirty[0] = dirty[0].masked_fill(~pattern.key_mask[..., None], torch.nan)
    dirty = [tensor.requires_grad_() for tensor in dirty]
    got, expected = absorbed(case, dirty, backend), absorbed(case, inputs, backend)
    assert torch.equal(got, expected)
    assert not got.masked_select(unused).any()
    for one, two in zip(grads_of(got, dirty, case), grads_of(expected, inputs, case), strict=True):
        assert torch.equal(one, two)


def test_every_parameter_receives_a_gradient():
    """Zeros where nothing is global, so that data-parallel training needs no flag for unused parameters."""
    case = CASES["no_globals"]
    inputs = make_inputs(case)
    absorbed(case, inputs).sum().backward()
    for name, tensor in zip(NAMES, inputs, strict=True):
        assert tensor.grad is not None, name
        assert not tensor.grad.any(), name


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_lower_precision(dtype):
    case = dataclasses.replace(CASES["padded_right"], head_dim=8)
    inputs = make_inputs(case)
    got = absorbed(case, [tensor.detach().to(dtype) for tensor in inputs])
    assert got.dtype == dtype
    expected = absorbed(case, inputs)
    tolerance = 20 * torch.finfo(dtype).eps
    torch.testing.assert_close(got.double(), expected, rtol=tolerance, atol=tolerance * expected.abs().max().item())


def test_batch_of_nothing():
    pattern = AttentionPattern.from_masks(torch.ones(0, 5), torch.ones(0, 5), window=1)
    weight = torch.randn(8, HIDDEN)
    out = absorbed_global_attention(torch.randn(0, 5, HIDDEN), torch.randn(0, 2, 0, 4), weight, weight, None, pattern)
    assert out.shape == (0, 2, 0, 4)


@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_nan_at_rows_past_a_count_stays_there(backend):
    """Those rows are zero, so a norm or a logarithm after them gives NaN in their gradient."""
    case = CASES["differing_counts"]
    inputs, is_row = make_inputs(case), (case.pattern().global_index >= 0)[:, None, :, None]
    out = absorbed(case, inputs, backend)
    assert not is_row.all()
    assert not out.masked_select(~is_row).any()
    given = torch.ones_like(out)
    expected = torch.autograd.grad(out, inputs, given.masked_fill(~is_row, 0.0), retain_graph=True)
    got = torch.autograd.grad(out, inputs, given.masked_fill(~is_row, torch.nan))
    for one, other in zip(got, expected, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_autocast_lowers_nothing(backend):
    case = CASES["padding_holes"]
    inputs = [tensor.detach().float() for tensor in make_inputs(case)]
    expected = absorbed(case, inputs, backend)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(absorbed(case, inputs, backend), expected)
