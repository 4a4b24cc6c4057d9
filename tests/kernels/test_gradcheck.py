"""Every gradient against finite differences, in float64, for every option, through out and lse."""

import dataclasses

import pytest
import torch
from attention_cases import SMALL_CASES, Case, each

from longformer_triton.kernels import AttentionPattern, absorbed_global_attention, merge_attention, sliding_window_attention

# The default of a thousandth would let a forgotten factor of 256 / 257 pass.
TOLERANCES = {"rtol": 1e-5, "atol": 1e-7}
BACKENDS = pytest.mark.parametrize("backend", ["torch", "reference"])


@BACKENDS
@each(SMALL_CASES)
def test_attention(case, backend):
    pattern = case.pattern()

    def function(*inputs):
        out, lse = case.run(inputs, backend, pattern)
        # Rows that see nothing have a constant lse of -inf, which has no finite differences.
        return out, torch.where(lse == -torch.inf, 0.0, lse)

    # Every single number of the backend with a backward of its own; random directions for the one that autograd derives.
    assert torch.autograd.gradcheck(function, case.inputs(), fast_mode=backend == "reference", **TOLERANCES)


@BACKENDS
@pytest.mark.parametrize("dropout_p", [0.0, 0.3], ids=["plain", "dropout"])
@pytest.mark.parametrize("with_bias", [True, False], ids=["bias", "no_bias"])
def test_absorbed_global_attention(with_bias, dropout_p, backend):
    case = dataclasses.replace(SMALL_CASES["global_rows"], padding="right", seed=3)
    pattern, heads, hidden = case.pattern(), case.heads, 5
    assert pattern.global_count.max() > pattern.global_count.min()
    shapes = [
        (case.batch, case.seq_len, hidden),
        (case.batch, heads, pattern.global_index.shape[1], case.head_dim),
        (heads * case.head_dim, hidden),
        (heads * case.head_dim, hidden),
        (heads * case.head_dim,),
    ]
    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    inputs[4:] = inputs[4:] if with_bias else [None]

    def function(*tensors):
        return absorbed_global_attention(*tensors, pattern, dropout_p=dropout_p, dropout_seed=torch.tensor(5), backend=backend)

    assert torch.autograd.gradcheck(function, inputs, fast_mode=backend == "reference", **TOLERANCES)


@pytest.mark.parametrize("parts", [1, 2, 3])
def test_merge_attention(parts):
    outs = [torch.randn(1, 2, 4, 3, dtype=torch.float64, requires_grad=True) for _ in range(parts)]
    lses = [torch.randn(1, 2, 4, dtype=torch.float64, requires_grad=True) for _ in range(parts)]

    def function(*tensors):
        return merge_attention(list(zip(tensors[:parts], tensors[parts:], strict=True)))

    assert torch.autograd.gradcheck(function, (*outs, *lses), **TOLERANCES)


def test_gather_global():
    pattern = AttentionPattern.from_masks(None, torch.tensor([[1, 0, 1, 0], [0, 0, 0, 1]]), window=1)
    states = torch.randn(2, 2, 4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(pattern.gather_global, states, **TOLERANCES)


@pytest.mark.parametrize("slot", [0, 1, 2], ids=["query", "key", "value"])
def test_one_input_alone(slot):
    """Only the gradient that is asked for is computed, and is right."""
    case = dataclasses.replace(SMALL_CASES["everything"], global_rows=False)
    inputs, pattern = case.inputs(requires_grad=False)[:3], case.pattern()
    inputs[slot].requires_grad_()
    assert torch.autograd.gradcheck(lambda *tensors: sliding_window_attention(*tensors, pattern=pattern), inputs, **TOLERANCES)


def test_forward_mode_raises():
    """PyTorch would drop the tangents and give zeros. The reference carries them on."""
    inputs = tuple(Case().inputs(requires_grad=False)[:3])

    def derivative(backend):
        along = tuple(torch.ones_like(tensor) for tensor in inputs)
        return torch.func.jvp(lambda *tensors: sliding_window_attention(*tensors, window=3, backend=backend), inputs, along)[1]

    for backend in (None, "torch"):
        with pytest.raises(NotImplementedError, match=r"backend: got .*tangent.*backend='reference'"):
            derivative(backend)
    assert derivative("reference").abs().max() > 0
    with pytest.raises(NotImplementedError, match="tangent"):
        torch.func.jacfwd(lambda query: sliding_window_attention(query, *inputs[1:], window=3))(inputs[0])


def test_forward_mode_of_absorbed_rows_raises():
    hidden_states, weight = torch.randn(1, 4, 6), torch.randn(6, 6)
    pattern = AttentionPattern.from_masks(None, torch.tensor([[1, 0, 0, 0]]), window=1)
    with pytest.raises(NotImplementedError, match="tangent"):
        torch.func.jvp(
            lambda states: absorbed_global_attention(states, torch.randn(1, 2, 1, 3), weight, weight, None, pattern),
            (hidden_states,),
            (hidden_states,),
        )


def test_differentiating_twice_raises():
    """The backward operator has no derivative, and says so instead of giving zeros."""
    inputs = Case().inputs()
    out = sliding_window_attention(*inputs, window=3, backend="torch")
    expected = torch.autograd.grad(out.square().sum(), inputs, retain_graph=True)
    grads = torch.autograd.grad(out.square().sum(), inputs, create_graph=True)
    assert all(map(torch.equal, grads, expected))
    with pytest.raises(NotImplementedError, match=r"backend: its gradients were differentiated again.*backend='reference'"):
        grads[1].sum().backward()


@pytest.mark.parametrize("transform", [torch.func.grad, torch.func.jacrev], ids=lambda transform: transform.__name__)
def test_functional_gradients_are_the_references_alone(transform):
    query, key, value = Case().inputs(requires_grad=False)[:3]

    def total(backend):
        return lambda query: sliding_window_attention(query, key, value, window=3, backend=backend).sum()

    with pytest.raises(NotImplementedError, match=r"backend: got None inside torch.func.grad.*backend='reference'"):
        transform(total(None))(query)
    query.requires_grad_()
    (expected,) = torch.autograd.grad(total("torch")(query), query)
    torch.testing.assert_close(transform(total("reference"))(query), expected)
