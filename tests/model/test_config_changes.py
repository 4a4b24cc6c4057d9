"""A change of the configuration of a model that is built takes effect, or is refused at the next forward pass."""

import copy
import pickle
import re

import pytest
import torch
from model_cases import MODELS, SEPARATOR, TINY, ours
from torch import nn

from longformer_triton import LongformerModel, patch_transformers
from longformer_triton.model import settings

pytestmark = pytest.mark.usefixtures("one_thread")

OTHER = {
    "hidden_act": "relu",
    "layer_norm_eps": 1e-3,
    "hidden_dropout_prob": 0.25,
    "attention_probs_dropout_prob": 0.25,
    "pruned_heads": {0: [1]},
}
# Values that were nearly right, and counted as true, as another loss, or ended in an error of PyTorch's.
WRONG = {
    "absorb_global_projections": "off",
    "chunk_size_feed_forward": -3,
    "max_globals": -1,
    "output_attentions": "no",
    "output_hidden_states": None,
    "problem_type": "multi_class",
    "return_dict": "False",
    "sep_token_id": "2",
    "tie_word_embeddings": "no",
}


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
    wanted = f"config.{field}: got {OTHER.get(field, 6)!r} in a model that was built with {before!r}"
    with pytest.raises(ValueError, match=re.escape(wanted)):
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


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("field", "value"), WRONG.items(), ids=WRONG)
def test_values_that_do_not_fit_are_refused_by_name(name, field, value):
    model, ids = ours(name), ids_for(name)
    before = getattr(model.config, field)
    setattr(model.config, field, value)
    with pytest.raises((ValueError, TypeError), match=f"^{field}: got {value!r}, expected"):
        model(ids)
    setattr(model.config, field, before)
    model(ids)


def test_heads_are_not_pruned_by_the_configuration(tmp_path):
    """Not in place either; and no checkpoint is written that would not load."""
    model, ids = ours("LongformerModel"), ids_for("LongformerModel")
    model.config.pruned_heads[0] = [1]
    for use in (lambda: model(ids), lambda: model.save_pretrained(tmp_path)):
        with pytest.raises(ValueError, match=r"config.pruned_heads: got {0: \[1\]} .*model.prune_heads"):
            use()
    assert not list(tmp_path.iterdir())
    model.prune_heads({1: [0]})
    assert model.config.pruned_heads == {1: [0]}, "those of the model, whatever the configuration said"
    assert [layer.attention.self.heads for layer in model.encoder.layer] == [[0, 1, 2], [1, 2]]
    model.save_pretrained(tmp_path)
    torch.testing.assert_close(type(model).from_pretrained(tmp_path)(ids), model(ids))
    model.config.pruned_heads[1].append(2)
    with pytest.raises(ValueError, match=r"config.pruned_heads: got {1: \[0, 2\]} in a model that was built with {1: \[0\]}"):
        model(ids)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["deepcopy", "pickle"])
def test_copies_of_pruned_models_are_pruned_apart(copied):
    model, ids = ours("LongformerForMaskedLM"), ids_for("LongformerForMaskedLM")
    model.prune_heads({0: [1]})
    again = copied(model)
    again.prune_heads({0: [2]})
    for one in (model, again):
        one(ids)
    assert (model.config.pruned_heads, again.config.pruned_heads) == ({0: [1]}, {0: [1, 2]})


@pytest.mark.parametrize("tied", [True, False], ids=["to_be_untied", "to_be_tied"])
def test_a_decoder_is_tied_as_the_configuration_says_once_it_is_asked_to(tmp_path, tied):
    model, ids = ours("LongformerForMaskedLM", tie_word_embeddings=tied), ids_for("LongformerForMaskedLM")
    before = model(ids).logits
    model.config.tie_word_embeddings = not tied
    for use in (lambda: model(ids), lambda: model.save_pretrained(tmp_path)):
        with pytest.raises(ValueError, match=rf"config.tie_word_embeddings: got {not tied} .* call model.tie_weights\(\)"):
            use()
    model.tie_weights()
    decoder, words = model.get_output_embeddings().weight, model.get_input_embeddings().weight
    assert (decoder is words) is not tied
    assert torch.equal(model(ids).logits, before) is tied, "a copy computes the same"
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert torch.equal(again(ids).logits, model(ids).logits)
    assert (again.get_output_embeddings().weight is again.get_input_embeddings().weight) is not tied


def test_a_new_decoder_unties_with_the_configuration():
    model, ids = ours("LongformerForMaskedLM"), ids_for("LongformerForMaskedLM")
    model.config.tie_word_embeddings = False
    model.set_output_embeddings(nn.Linear(12, 40))
    decoder = model.get_output_embeddings().weight
    model(ids)
    model.tie_weights()
    assert model.get_output_embeddings().weight is decoder


def test_a_wrong_value_is_refused_where_transformers_models_are_patched():
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    model = patch_transformers(transformers.LongformerModel(transformers.LongformerConfig(**TINY))).eval()
    model.config.absorb_global_projections = "off"
    with pytest.raises(ValueError, match=r"^absorb_global_projections: got 'off', expected 'auto', True or False"):
        model(torch.full((1, 9), 5), global_attention_mask=torch.ones(1, 9))


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
