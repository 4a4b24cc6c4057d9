"""The feed-forward by stretches: the numbers of the plain modules, fewer tensors kept, and nobody who listens passed over."""

import copy

import pytest
import torch
from torch import nn

from longformer_triton import LongformerConfig
from longformer_triton.model import encoder, feed_forward
from longformer_triton.model.encoder import LongformerLayer
from longformer_triton.model.feed_forward import ACTIVATIONS

pytestmark = pytest.mark.usefixtures("one_thread")
WIDTH, INNER = 8, 24


@pytest.fixture
def short_stretches(monkeypatch):
    """Five tokens a stretch in float64: several stretches, the last one shorter."""
    monkeypatch.setitem(feed_forward._STRETCH_BYTES, "cpu", 5 * INNER * 8)


def layer(activation="gelu", dtype=torch.float64, **options):
    config = LongformerConfig(
        hidden_size=WIDTH,
        num_attention_heads=2,
        intermediate_size=INNER,
        hidden_act=activation,
        hidden_dropout_prob=0.0,
        **options,
    )
    return LongformerLayer(config).to(dtype)


def plain(layer, states):
    """What the modules say, one after the other."""
    return layer.output(layer.intermediate(states), states)


def gradients(function, states, *parameters):
    out = function(states)
    weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view(out.shape)
    return [out, *torch.autograd.grad((out * weights).sum(), [states, *parameters])]


@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
@pytest.mark.parametrize("shape", [(1, 1), (2, 5), (3, 7), (1, 20)], ids=str)
def test_output_and_gradients_are_those_of_the_modules(activation, shape, short_stretches):
    module = layer(activation)
    parameters = [*module.intermediate.parameters(), *module.output.parameters()]
    states = torch.randn(*shape, WIDTH, dtype=torch.float64, requires_grad=True)
    got = gradients(module._feed_forward, states, *parameters)
    expected = gradients(lambda states: plain(module, states), states, *parameters)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
    with torch.no_grad():
        torch.testing.assert_close(module._feed_forward(states), expected[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
def test_activations_are_transformers_of_the_same_name(activation):
    activations = pytest.importorskip("transformers.activations", reason="transformers is not installed")
    states = torch.linspace(-6, 6, 97, dtype=torch.float64)
    torch.testing.assert_close(ACTIVATIONS[activation](states), activations.ACT2FN[activation](states), rtol=1e-8, atol=1e-8)


def test_a_batch_of_none_gives_none_and_gradients_of_zeros():
    module = layer()
    parameters = [*module.intermediate.parameters(), *module.output.dense.parameters()]
    out = module._feed_forward(torch.empty(0, 7, WIDTH, dtype=torch.float64))
    assert out.shape == (0, 7, WIDTH)
    assert all(not grad.any() for grad in torch.autograd.grad(out.sum(), parameters))


def test_strided_states_and_gradients(short_stretches):
    module = layer()
    states = torch.randn(WIDTH, 9, 2, dtype=torch.float64).transpose(0, 2).requires_grad_()
    got = torch.autograd.grad(module._feed_forward(states).transpose(0, 1).sum(), states)
    expected = torch.autograd.grad(plain(module, states).transpose(0, 1).sum(), states)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "frozen", ["states", "intermediate.dense.weight", "intermediate.dense", "output.dense", "all but the last bias"]
)
def test_what_is_frozen_gets_no_gradient_and_the_rest_its_own(frozen, short_stretches):
    module = layer()
    for name, parameter in module.named_parameters():
        is_last_bias = name == "output.dense.bias"
        parameter.requires_grad_(is_last_bias if frozen.startswith("all") else not name.startswith(frozen))
    states = torch.randn(2, 9, WIDTH, dtype=torch.float64, requires_grad=frozen not in ("states", "all but the last bias"))
    gradients = []
    for function in (module._feed_forward, lambda states: plain(module, states)):
        module.zero_grad()
        states.grad = None
        function(states).square().sum().backward()
        gradients.append({name: parameter.grad for name, parameter in [*module.named_parameters(), ("states", states)]})
    for name, expected in gradients[1].items():
        got = gradients[0][name]
        assert (got is None) == (expected is None), name
        if expected is not None:
            torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_gradients_of_weights_are_summed_in_float32(dtype, monkeypatch):
    """A thousand stretches of one token: summed in half precision, the small ones would be lost."""
    monkeypatch.setitem(feed_forward._STRETCH_BYTES, "cpu", 1)
    module = layer(dtype=dtype)
    states = torch.randn(1, 1000, WIDTH).to(dtype)
    weight = module.output.dense.weight
    exact = copy.deepcopy(module).double()
    grad_out = torch.ones(1, 1000, WIDTH, dtype=dtype)
    dense = module.intermediate.dense
    out = feed_forward.feed_forward(states, dense, module.output.dense, "gelu")
    (got,) = torch.autograd.grad(out, weight, grad_out)
    (expected,) = torch.autograd.grad(
        exact.output.dense(exact.intermediate(states.double())), exact.output.dense.weight, grad_out.double()
    )
    # Two roundings: the activation's, and the sum's at the end.
    tolerance = 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(got.double(), expected, rtol=tolerance, atol=tolerance * expected.abs().max().item())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_autocast_computes_in_its_own_dtype_as_the_modules_do(dtype):
    module = layer(dtype=dtype)
    states = torch.randn(1, 9, WIDTH, dtype=dtype, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        got = gradients(module._feed_forward, states, *module.intermediate.parameters())
        expected = gradients(lambda states: plain(module, states), states, *module.intermediate.parameters())
    assert [tensor.dtype for tensor in got] == [tensor.dtype for tensor in expected]
    tolerance = {torch.float32: 2e-2, torch.float64: 1e-12}[dtype]
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)


def test_one_tensor_of_the_inner_width_is_kept_for_backward():
    module, states, kept = layer(), torch.randn(1, 50, WIDTH, dtype=torch.float64, requires_grad=True), []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.shape) or tensor, lambda tensor: tensor):
        module._feed_forward(states)
    assert sum(shape.numel() == 50 * INNER for shape in kept) == 1


def test_differentiating_twice_raises():
    module, states = layer(), torch.randn(1, 3, WIDTH, dtype=torch.float64, requires_grad=True)
    (grad,) = torch.autograd.grad(module._feed_forward(states).square().sum(), states, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


class Doubled(nn.Linear):
    """Stands for an adapter."""

    def forward(self, states):
        return 2 * super().forward(states)


def hook(module, place):
    module.get_submodule(place).register_forward_hook(lambda module, args, out: 2 * out)


def own_forward(module, place):
    child = module.get_submodule(place)
    child.forward = lambda *args, before=child.forward: 2 * before(*args)


@pytest.mark.parametrize("change", [hook, own_forward])
@pytest.mark.parametrize("place", ["intermediate", "intermediate.dense", "output", "output.dense"])
def test_who_listens_in_between_is_called(change, place):
    module, states = layer(), torch.randn(1, 9, WIDTH, dtype=torch.float64)
    before = module._feed_forward(states)
    change(module, place)
    assert not torch.allclose(module._feed_forward(states), before)
    torch.testing.assert_close(module._feed_forward(states), plain(module, states), rtol=0, atol=0)


def test_an_adapter_is_called():
    module, states = layer(), torch.randn(1, 9, WIDTH, dtype=torch.float64)
    adapter = Doubled(WIDTH, INNER, dtype=torch.float64)
    adapter.load_state_dict(module.intermediate.dense.state_dict())
    module.intermediate.dense = adapter
    torch.testing.assert_close(module._feed_forward(states), plain(module, states), rtol=0, atol=0)


def test_a_hook_on_every_module_is_called():
    module, seen = layer(), []
    with nn.modules.module.register_module_forward_hook(lambda module, args, out: seen.append(type(module).__name__)):
        module._feed_forward(torch.randn(1, 3, WIDTH, dtype=torch.float64))
    assert seen.count("Linear") == 2
    assert {"LongformerIntermediate", "LongformerOutput"} <= set(seen)


def test_a_function_of_ones_own_may_have_parameters():
    module = layer(nn.PReLU(dtype=torch.float64))
    module._feed_forward(torch.randn(1, 9, WIDTH, dtype=torch.float64)).sum().backward()
    assert module.intermediate.activation.weight.grad is not None


def test_a_copied_layer_still_goes_by_stretches(monkeypatch):
    """Functions are told by identity, which copying and pickling keep."""
    module, calls = copy.deepcopy(layer("gelu_new")), []
    monkeypatch.setattr(encoder, "feed_forward", lambda *args: calls.append(args) or feed_forward.feed_forward(*args))
    module._feed_forward(torch.randn(1, 3, WIDTH, dtype=torch.float64))
    assert len(calls) == 1
