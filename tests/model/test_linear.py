"""Linear layers by oneDNN: the numbers of torch.nn.functional.linear, where they are used, and where they are not."""

import pathlib

import pytest
import torch
from model_cases import ours
from torch import nn
from torch.nn.functional import linear

from longformer_triton.model import linear as linear_module
from longformer_triton.model.linear import apply_linear, dense, dense_gradients, takes_onednn

needs_onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="PyTorch was built without oneDNN")


@pytest.fixture(params=[1, 2], ids=["one_thread", "two_threads"])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def onednn(monkeypatch):
    """Whatever the processor and the size."""
    monkeypatch.setattr(linear_module, "_is_onednn_faster", lambda: True)
    monkeypatch.setattr(linear_module, "_FEWEST_PRODUCTS", 0)
    monkeypatch.setattr(linear_module, "_FEWEST_TOKENS", 1)
    monkeypatch.setattr(linear_module, "MANY_TOKENS", 1)


def operands(shape, out_features, has_bias=True):
    states = torch.randn(*shape, requires_grad=True)
    weight = torch.randn(out_features, shape[-1], requires_grad=True)
    return states, weight, torch.randn(out_features, requires_grad=True) if has_bias else None


def close_to(exact, products):
    """Float32 sums of so many products, against those in float64."""
    scale = exact.abs().max().item() + 1
    return {"rtol": 0, "atol": 4 * products**0.5 * torch.finfo(torch.float32).eps * scale}


@needs_onednn
@pytest.mark.usefixtures("onednn", "threads")
@pytest.mark.parametrize("has_bias", [True, False], ids=["bias", "no_bias"])
@pytest.mark.parametrize(
    ("shape", "out_features"),
    [((1, 1, 7), 5), ((2, 33, 64), 16), ((1, 17), 1), ((300, 48), 130), ((2, 3, 1, 9), 4)],
    ids=lambda value: "x".join(map(str, value)) if isinstance(value, tuple) else f"to_{value}",
)
def test_result_and_gradients_are_those_of_linear(shape, out_features, has_bias):
    given = [tensor for tensor in operands(shape, out_features, has_bias) if tensor is not None]
    exact = [tensor.detach().double().requires_grad_() for tensor in given]
    got, expected = dense(*given), linear(*exact)
    assert got.shape == expected.shape
    torch.testing.assert_close(got.double(), expected, **close_to(expected, shape[-1]))
    grad = torch.randn(got.shape)
    grads = torch.autograd.grad(got, given, grad)
    exact_grads = torch.autograd.grad(expected, exact, grad.double())
    flat = [tensor.detach().reshape(-1, tensor.shape[-1]) for tensor in (grad, given[0])]
    by_hand = dense_gradients(*flat, given[1].detach(), (True, True, has_bias))
    for one, other, wanted in zip(grads, by_hand, exact_grads, strict=False):
        tolerance = close_to(wanted, max(out_features, got.shape[:-1].numel()))
        assert one.is_contiguous()
        torch.testing.assert_close(one.double(), wanted, **tolerance)
        torch.testing.assert_close(other.double().view(wanted.shape), wanted, **tolerance)


@needs_onednn
@pytest.mark.usefixtures("onednn")
def test_strided_states_are_read_as_they_lie():
    states = torch.randn(24, 9, 2).transpose(0, 2)
    weight, bias = torch.randn(5, 24), torch.randn(5)
    torch.testing.assert_close(dense(states, weight, bias), linear(states, weight, bias))


@needs_onednn
@pytest.mark.usefixtures("onednn")
@pytest.mark.parametrize("needs", [(True, False, False), (False, True, False), (False, False, True), (False, False, False)])
def test_only_gradients_that_are_needed(needs):
    states, weight, _ = (None if tensor is None else tensor.detach() for tensor in operands((20, 6), 4))
    found = dense_gradients(torch.randn(20, 4), states, weight, needs)
    assert tuple(grad is not None for grad in found) == needs


@needs_onednn
@pytest.mark.usefixtures("onednn")
@pytest.mark.parametrize("kind", ["float64", "bfloat16", "meta", "autocast", "switched_off"])
def test_where_it_is_not_for(kind):
    dtype = {"float64": torch.float64, "bfloat16": torch.bfloat16}.get(kind, torch.float32)
    device = "meta" if kind == "meta" else "cpu"
    states, weight = torch.randn(20, 6, dtype=dtype, device=device), torch.randn(4, 6, dtype=dtype, device=device)
    with torch.autocast("cpu", torch.bfloat16, enabled=kind == "autocast"), torch.backends.mkldnn.flags(kind != "switched_off"):
        assert not takes_onednn(states, weight)
        assert dense(states, weight).dtype == linear(states, weight).dtype
    assert takes_onednn(torch.randn(20, 6), torch.randn(4, 6))


@pytest.mark.parametrize(("tokens", "expected"), [(31, False), (32, True)], ids=["few", "a_matrix"])
def test_small_products_are_left_to_linear(tokens, expected, monkeypatch):
    monkeypatch.setattr(linear_module, "_is_onednn_faster", lambda: True)
    assert takes_onednn(torch.randn(tokens, 1024), torch.randn(1024, 1024)) is expected
    assert not takes_onednn(torch.randn(tokens, 64), torch.randn(64, 64))


@pytest.mark.parametrize(
    ("cpuinfo", "capability", "expected"),
    [
        ("vendor_id : AuthenticAMD", "AVX512", True),
        ("vendor_id : GenuineIntel", "AVX512", False),
        ("vendor_id : AuthenticAMD", "AVX2", False),
        (None, "AVX512", True),
    ],
    ids=["amd", "intel", "amd_without_avx512", "no_cpuinfo"],
)
def test_the_processors_it_is_for(cpuinfo, capability, expected, monkeypatch):
    def read_text(path):
        if cpuinfo is None:
            raise FileNotFoundError(path)
        return cpuinfo

    monkeypatch.setattr(pathlib.Path, "read_text", read_text)
    monkeypatch.setattr(linear_module.platform, "processor", lambda: "AMD64 Family 26 Model 2 Stepping 1, AuthenticAMD")
    for library in (torch.backends.mkldnn, torch.backends.mkl):
        monkeypatch.setattr(library, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert linear_module._is_onednn_faster.__wrapped__() is expected


def test_large_weights_want_many_tokens(monkeypatch):
    monkeypatch.setattr(linear_module, "_is_onednn_faster", lambda: True)
    weight = torch.empty(4096, 2048)
    assert not takes_onednn(torch.empty(255, 2048), weight)
    assert takes_onednn(torch.empty(256, 2048), weight)
    assert takes_onednn(torch.empty(255, 2048), weight[:-1])


@needs_onednn
@pytest.mark.usefixtures("onednn")
def test_less_than_float32_is_left_to_those_that_were_told(monkeypatch):
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        assert not takes_onednn(torch.randn(40, 6), torch.randn(4, 6))
    finally:
        torch.set_float32_matmul_precision(before)
    assert takes_onednn(torch.randn(40, 6), torch.randn(4, 6))


class Wrapped(torch.Tensor):
    """As quantised and sharded tensors are: linear layers are known to it, and nothing else is."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if function not in (linear, torch.Tensor.dtype.__get__, torch.Tensor.shape.__get__, torch.Tensor.requires_grad.__get__):
            raise NotImplementedError(function)
        return super().__torch_function__(function, types, args, kwargs)


@needs_onednn
@pytest.mark.usefixtures("onednn")
def test_weights_with_products_of_their_own_keep_them():
    weight, states = torch.randn(4, 6), torch.randn(40, 6)
    found = dense(states, weight.as_subclass(Wrapped))
    torch.testing.assert_close(found.as_subclass(torch.Tensor), linear(states, weight))


@needs_onednn
@pytest.mark.usefixtures("onednn")
@pytest.mark.parametrize("trained", [("states",), ("weight",), ("bias",), ("states", "weight", "bias")], ids="-".join)
def test_only_what_is_needed_for_what_is_trained_is_kept(trained):
    states, weight, bias = operands((20, 6), 4)
    for name, tensor in {"states": states, "weight": weight, "bias": bias}.items():
        tensor.requires_grad_(name in trained)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: kept.append(tuple(tensor.shape)) or tensor, lambda tensor: tensor
    ):
        out = dense(states, weight, bias)
    assert kept == [(20, 6)] * ("weight" in trained) + [(4, 6)] * ("states" in trained)
    grads = torch.autograd.grad(out.sum(), [tensor for tensor in (states, weight, bias) if tensor.requires_grad])
    expected = torch.autograd.grad(
        linear(states, weight, bias).sum(), [tensor for tensor in (states, weight, bias) if tensor.requires_grad]
    )
    torch.testing.assert_close(grads, expected, rtol=1e-4, atol=1e-4)


def test_a_module_that_is_more_than_its_weight_is_called(monkeypatch):
    class Doubled(nn.Linear):
        def forward(self, states):
            return 2 * super().forward(states)

    module, states = Doubled(6, 4), torch.randn(3, 6)
    torch.testing.assert_close(apply_linear(module, states), 2 * linear(states, module.weight, module.bias))


@needs_onednn
@pytest.mark.usefixtures("onednn")
@pytest.mark.parametrize("name", ["LongformerForMaskedLM", "LongformerForSequenceClassification"])
def test_a_model_gives_what_it_gives_in_float64(name):
    model = ours(name, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    exact = ours(name, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    exact.load_state_dict(model.state_dict())
    exact.double()
    ids = torch.randint(3, model.config.vocab_size, (2, 13))
    labels = ids if name.endswith("LM") else torch.tensor([0, 1])
    losses = [one(ids, labels=labels).loss for one in (model, exact)]
    torch.testing.assert_close(losses[0].double(), losses[1], rtol=1e-5, atol=1e-5)
    for loss in losses:
        loss.backward()
    for one, other in zip(model.parameters(), exact.parameters(), strict=True):
        torch.testing.assert_close(one.grad.double(), other.grad, rtol=1e-3, atol=1e-5)
