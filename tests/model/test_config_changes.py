"""A change of the configuration of a model that is built takes effect, or is refused at the next forward pass."""

import copy

import pytest
import torch
from model_cases import MODELS, SEPARATOR, ours
from torch import nn

from longformer_triton import LongformerModel
from longformer_triton.model import settings

pytestmark = pytest.mark.usefixtures("one_thread")

OTHER = {"hidden_act": "relu", "layer_norm_eps": 1e-3, "hidden_dropout_prob": 0.25, "attention_probs_dropout_prob": 0.25}


def ids_for(name, seq_len=15):
    ids = torch.randint(3, 30, (2, seq_len))
    ids[:, [4, 5, 9]] = SEPARATOR
    return ids[:, None] if name.endswith("Choice") else ids


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("field", settings.BUILT_IN)
def test_what_modules_have_taken_over_is_refused(name, field):
    model, ids = ours(name), ids_for(name)
    before = getattr(model.config, field)
    setattr(model.config, field, OTHER.get(field, 6))
    wanted = rf"config.{field}: got {OTHER.get(field, 6)!r} in a model that was built with {before!r}"
    with pytest.raises(ValueError, match=wanted):
        model(ids)
    setattr(model.config, field, before)
    model(ids)


def test_copies_and_saved_models_know_what_they_were_built_with(tmp_path):
    model = ours("LongformerModel")
    model.config.hidden_dropout_prob = 0.5
    with pytest.raises(ValueError, match=r"config.hidden_dropout_prob: got 0.5"):
        copy.deepcopy(model)(ids_for("LongformerModel"))
    # The change is kept with the weights, and a model that is loaded has it.
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert again.embeddings.dropout.p == 0.5
    again(ids_for("LongformerModel"))


def test_a_compiled_model_refuses_too():
    model = ours("LongformerModel")
    compiled, ids = torch.compile(model, backend="eager", fullgraph=True), ids_for("LongformerModel")
    compiled(ids)
    model.config.layer_norm_eps = 1e-3
    with pytest.raises(Exception, match="built with"):
        compiled(ids)


def test_models_of_one_configuration_are_resized_apart():
    config = ours("LongformerModel").config
    first, second = (LongformerModel(config) for _ in range(2))
    first.resize_token_embeddings(50)
    for model in (first, second):
        model(ids_for("LongformerModel"))


def test_the_number_of_layers_is_that_of_the_layers():
    model, ids = ours("LongformerModel"), ids_for("LongformerModel")
    model.encoder.layer = model.encoder.layer[:1]
    with pytest.raises(ValueError, match=r"config.num_hidden_layers: got 2, expected 1, the layers there are: set it"):
        model(ids)
    model.config.num_hidden_layers, model.config.attention_window = 1, model.config.attention_window[:1]
    assert model(ids).last_hidden_state.shape == (2, 15, model.config.hidden_size)


def test_a_classifier_may_be_replaced_with_its_number_of_labels():
    model = ours("LongformerForTokenClassification")
    model.classifier = nn.Linear(model.config.hidden_size, 5)
    model.config.num_labels = 5
    assert model(ids_for("LongformerForTokenClassification")).logits.shape == (2, 15, 5)


def test_the_feed_forward_is_cut_as_the_configuration_says_now():
    model, ids = ours("LongformerModel"), ids_for("LongformerModel")
    expected = model(ids).last_hidden_state
    seen = []
    for layer in model.encoder.layer:
        layer.intermediate.register_forward_hook(lambda module, inputs, output: seen.append(output.shape[1]))
    model.config.chunk_size_feed_forward = 4
    torch.testing.assert_close(model(ids).last_hidden_state, expected)
    assert seen == [4, 4, 4, 3] * 2
