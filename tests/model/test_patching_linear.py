"""Linear layers of patched models: by the faster library, and left alone where somebody changed them."""

import pytest
import torch
from model_cases import Texts
from patching_cases import batch_for, original

from longformer_triton import patch_transformers, unpatch_transformers
from longformer_triton.model import linear

modeling_longformer = pytest.importorskip(
    "transformers.models.longformer.modeling_longformer", reason="transformers is not installed"
)
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="PyTorch was built without oneDNN")
def test_linear_layers_go_to_the_faster_library_too(monkeypatch):
    model = original("LongformerModel")
    inputs = batch_for("LongformerModel", Texts(globals_="some", choices=0))
    expected = model(**inputs)[0]
    expected.square().sum().backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad()
    calls = []
    convolve = linear._convolve
    monkeypatch.setattr(linear, "_convolve", lambda *given: calls.append(given[1].shape) or convolve(*given))
    monkeypatch.setattr(linear, "is_worth_onednn", lambda *_: True)
    got = patch_transformers(model)(**inputs)[0]
    torch.testing.assert_close(got, expected, rtol=0, atol=2e-5)
    sizes, layers = model.config, model.config.num_hidden_layers
    assert calls.count((sizes.intermediate_size, sizes.hidden_size)) == layers
    assert calls.count((sizes.hidden_size, sizes.intermediate_size)) == layers
    assert calls.count((sizes.hidden_size, sizes.hidden_size)) >= 4 * layers
    got.square().sum().backward()
    for name, parameter in model.named_parameters():
        if gradients[name] is not None:
            torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-3, atol=1e-3)


def test_a_feed_forward_that_somebody_changed_stays_as_it_is():
    class Halved(modeling_longformer.LongformerOutput):
        def forward(self, hidden_states, input_tensor):
            return super().forward(hidden_states, input_tensor) / 2

    model = original("LongformerModel")
    inputs = batch_for("LongformerModel", Texts(globals_="some", choices=0))
    first, second = (layer.output for layer in model.encoder.layer[:2])
    first.__class__ = Halved
    forward = second.forward
    second.forward = lambda *states: 3 * forward(*states)
    expected = model(**inputs)[0]
    torch.testing.assert_close(patch_transformers(model)(**inputs)[0], expected, rtol=0, atol=2e-5)
    assert (type(first), type(second)) == (Halved, modeling_longformer.LongformerOutput)
    torch.testing.assert_close(unpatch_transformers(model)(**inputs)[0], expected, rtol=0, atol=2e-5)
