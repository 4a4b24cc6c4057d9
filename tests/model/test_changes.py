"""What is done to a model besides training it: new sizes, fewer heads, counting, copies."""

import copy
import io
import pickle

import pytest
import torch
from model_cases import MODELS, SEPARATOR, TINY, ours
from torch import nn

import longformer_triton

pytestmark = pytest.mark.usefixtures("one_thread")

HEADS = MODELS[1:]
GLOBAL_AND_LOCAL = ("query", "key", "value", "query_global", "key_global", "value_global")


def batch(model, seq_len=15):
    """Arguments of a forward pass: two texts with separators, one padded, with and without global tokens."""
    ids = torch.randint(3, 30, (2, seq_len))
    ids[:, [4, 5, 9]] = SEPARATOR
    real, marked = torch.ones_like(ids), torch.zeros_like(ids)
    real[1, -3:], marked[0, :2] = 0, 1
    inputs = {"input_ids": ids, "attention_mask": real, "global_attention_mask": marked}
    return {name: value[:, None] if model.endswith("Choice") else value for name, value in inputs.items()}


def result(model, inputs):
    with torch.no_grad():
        return model(**inputs).to_tuple()[0]


# --- token embeddings -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_more_tokens_change_no_old_output(name):
    model, inputs = ours(name), batch(name)
    before, rows = result(model, inputs), model.get_input_embeddings().weight.detach().clone()
    returned = model.resize_token_embeddings(47)
    table = model.get_input_embeddings()
    assert returned is table
    assert (table.num_embeddings, table.weight.shape, model.config.vocab_size) == (47, (47, 12), 47)
    assert torch.equal(table.weight[:40], rows)
    torch.testing.assert_close(table.weight[40:], rows.mean(0).expand(7, -1))
    after = result(model, inputs)
    torch.testing.assert_close(after[..., : before.shape[-1]], before)
    new_token = {**inputs, "input_ids": inputs["input_ids"].index_fill(-1, torch.tensor([7]), 46)}
    assert result(model, new_token).isfinite().all()


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "not_tied"])
@pytest.mark.parametrize("size", [47, 31])
def test_the_decoder_follows_the_vocabulary(size, tied):
    model = ours("LongformerForMaskedLM", tie_word_embeddings=tied)
    inputs = batch("LongformerForMaskedLM")
    nn.init.normal_(model.lm_head.decoder.bias)
    before, bias = result(model, inputs), model.lm_head.bias.detach().clone()
    model.resize_token_embeddings(size)
    decoder, kept = model.get_output_embeddings(), min(size, 40)
    assert (decoder.weight is model.get_input_embeddings().weight) == tied
    assert model.lm_head.bias is decoder.bias
    assert (decoder.out_features, *decoder.weight.shape, *decoder.bias.shape) == (size, size, 12, size)
    assert torch.equal(decoder.bias[:kept], bias[:kept])
    assert torch.equal(decoder.bias[40:], torch.zeros(max(0, size - 40)))
    logits = result(model, inputs)
    assert logits.shape[-1] == size
    torch.testing.assert_close(logits[..., :kept], before[..., :kept])


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "not_tied"])
def test_a_decoder_without_a_bias_follows_too(tmp_path, tied):
    model, inputs = ours("LongformerForMaskedLM", tie_word_embeddings=tied), batch("LongformerForMaskedLM")
    model.set_output_embeddings(nn.Linear(12, 40, bias=False))
    model.tie_weights()
    before = result(model, inputs)
    model.resize_token_embeddings(47)
    decoder, logits = model.get_output_embeddings(), result(model, inputs)
    assert (decoder.bias, model.lm_head.bias, decoder.out_features, logits.shape[-1]) == (None, None, 47, 47)
    torch.testing.assert_close(logits[..., :40], before)
    model.save_pretrained(tmp_path)
    again = longformer_triton.LongformerForMaskedLM.from_pretrained(tmp_path)
    torch.testing.assert_close(result(again, inputs), logits, msg="a bias of zeros, which is new, changes nothing")


def test_a_resized_model_survives_saving(tmp_path):
    model, inputs = ours("LongformerForMaskedLM"), batch("LongformerForMaskedLM")
    model.resize_token_embeddings(47)
    model.save_pretrained(tmp_path)
    again = longformer_triton.LongformerForMaskedLM.from_pretrained(tmp_path)
    assert torch.equal(result(again, inputs), result(model, inputs))


@pytest.mark.parametrize(
    ("number", "multiple", "expected"), [(None, None, 40), (None, 16, 48), (33, 32, 64), (64, 32, 64), (None, 8, 40)]
)
def test_sizes_round_up_to_a_multiple(number, multiple, expected):
    model = ours("LongformerForMaskedLM")
    table = model.get_input_embeddings().weight
    model.resize_token_embeddings(number, pad_to_multiple_of=multiple)
    assert model.config.vocab_size == model.get_output_embeddings().out_features == expected
    assert (model.get_input_embeddings().weight is table) == (expected == 40), "the same size replaces nothing"


@pytest.mark.parametrize("number", ["a", 2.5, True], ids=str)
def test_sizes_of_tables_are_whole_numbers(number):
    for resize in (ours("LongformerModel").resize_token_embeddings, ours("LongformerModel").resize_position_embeddings):
        with pytest.raises(TypeError, match=rf"^new_num_\w+: got {number!r}, expected an int"):
            resize(number)


@pytest.mark.parametrize("number", [1, 0, -4])
def test_a_vocabulary_without_the_padding_token_is_refused(number):
    model = ours("LongformerModel")
    with pytest.raises(ValueError, match=r"new_num_tokens: got .*expected more than pad_token_id \(1\)"):
        model.resize_token_embeddings(number)
    assert model.config.vocab_size == model.get_input_embeddings().num_embeddings == 40


def test_resized_parameters_keep_dtype_and_whether_they_train():
    model = ours("LongformerForMaskedLM").double()
    model.get_input_embeddings().weight.requires_grad_(False)
    model.resize_token_embeddings(47)
    model.resize_position_embeddings(150)
    weight = model.get_input_embeddings().weight
    assert (weight.dtype, weight.requires_grad) == (torch.float64, False)
    positions = model.longformer.embeddings.position_embeddings.weight
    assert (positions.dtype, positions.requires_grad, model.lm_head.bias.requires_grad) == (torch.float64, True, True)


# --- position embeddings ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_more_positions_admit_longer_texts(name):
    model, short, long = ours(name), batch(name), batch(name, 200)
    before = result(model, short)
    with pytest.raises(ValueError, match="resize_position_embeddings"):
        result(model, long)
    model.resize_position_embeddings(202)
    assert torch.equal(result(model, short), before)
    assert result(model, long).isfinite().all()


def test_positions_are_tiled_after_those_of_padding():
    model = ours("LongformerModel", max_position_embeddings=7)  # rows 0 and 1 belong to padding, 2 to 6 are learned
    table = model.embeddings.position_embeddings
    old = table.weight.detach().clone()
    model.resize_position_embeddings(19)
    assert torch.equal(table.weight, old[[0, 1, *[2, 3, 4, 5, 6] * 3, 2, 3]])
    assert table.num_embeddings == model.config.max_position_embeddings == 19
    model.resize_position_embeddings(4)
    assert torch.equal(table.weight, old[:4])
    with pytest.raises(ValueError, match=r"input_ids: got 3 tokens, expected at most 2"):
        model(torch.full((1, 3), 5))


def test_tables_without_a_position_are_refused():
    model = ours("LongformerModel")
    with pytest.raises(ValueError, match="new_num_position_embeddings: got 2, expected more than 2"):
        model.resize_position_embeddings(2)
    assert model.config.max_position_embeddings == model.embeddings.position_embeddings.num_embeddings == 120


# --- heads ------------------------------------------------------------------------------------------------------------


def keep(*gone):
    """A head mask that is 0 at (layer, head) pairs."""
    mask = torch.ones(TINY["num_hidden_layers"], TINY["num_attention_heads"])
    for layer, head in gone:
        mask[layer, head] = 0
    return mask


@pytest.mark.parametrize("absorb", [True, False], ids=["absorbed", "projected"])
@pytest.mark.parametrize("name", MODELS)
def test_pruned_heads_count_like_masked_ones(name, absorb):
    model, inputs = ours(name, absorb_global_projections=absorb).double(), batch(name)
    expected = result(model, {**inputs, "head_mask": keep((0, 1), (1, 0), (1, 2))})
    model.prune_heads({0: [1], 1: {0, 2}})
    torch.testing.assert_close(result(model, inputs), expected, rtol=1e-10, atol=1e-10)
    assert model.config.pruned_heads == {0: [1], 1: [0, 2]}
    for layer, left in zip(model.base_model.encoder.layer, (2, 1), strict=True):
        attention = layer.attention.self
        assert attention.num_heads == left
        for projection in GLOBAL_AND_LOCAL:
            linear = getattr(attention, projection)
            assert (linear.out_features, *linear.weight.shape, *linear.bias.shape) == (left * 4, left * 4, 12, left * 4)
        assert layer.attention.output.dense.weight.shape == (12, left * 4)


def test_a_head_mask_still_counts_the_heads_of_the_unpruned_model():
    model, inputs = ours("LongformerModel").double(), batch("LongformerModel")
    factors = torch.tensor([[0.5, 1.0, 2.0], [1.0, 0.25, 1.0]])
    expected = model(**inputs, head_mask=factors * keep((0, 1)), output_attentions=True)
    model.prune_heads({0: [1]})
    got = model(**inputs, head_mask=factors, output_attentions=True)
    torch.testing.assert_close(got.last_hidden_state, expected.last_hidden_state, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(got.attentions[0], expected.attentions[0][:, [0, 2]])
    torch.testing.assert_close(got.global_attentions[0], expected.global_attentions[0][:, [0, 2]])


def test_pruning_in_two_steps_is_pruning_at_once():
    twice, inputs = ours("LongformerModel"), batch("LongformerModel")
    once = copy.deepcopy(twice)
    once.prune_heads({0: [0, 2], 1: [1]})
    twice.prune_heads({0: [2]})
    twice.prune_heads({0: [0, 2], 1: [1]})  # one that is gone already
    twice.prune_heads({1: [1]})
    assert twice.config.pruned_heads == once.config.pruned_heads == {0: [0, 2], 1: [1]}
    assert torch.equal(result(twice, inputs), result(once, inputs))


def test_pruned_models_survive_saving_and_training(tmp_path):
    model, inputs = ours("LongformerForMaskedLM"), batch("LongformerForMaskedLM")
    model.longformer.encoder.layer[1].attention.self.query.weight.requires_grad_(False)
    model.prune_heads({1: [0, 1]})
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert not model.longformer.encoder.layer[1].attention.self.query.weight.requires_grad
    assert len(trained) == len(list(model.parameters())) - 1
    assert all(grad is not None for grad in torch.autograd.grad(model(**inputs).logits.square().sum(), trained))
    model.save_pretrained(tmp_path)
    again = longformer_triton.LongformerForMaskedLM.from_pretrained(tmp_path)
    assert again.config.pruned_heads == {1: [0, 1]}
    assert torch.equal(result(again, inputs), result(model, inputs))


REFUSED = {
    "no_such_layer": {2: [0]},
    "negative_layer": {-1: [0]},
    "no_such_head": {0: [3]},
    "negative_head": {0: [-1]},
    "all_heads": {1: [0, 1, 2]},
    "one_of_two_fits": {0: [1], 7: [0]},
    "layer_in_text": {"0": [1]},
    "heads_of_no_layer": [1],
    "one_head_alone": {0: 1},
}


@pytest.mark.parametrize("heads", REFUSED.values(), ids=REFUSED)
def test_pruning_that_is_refused_leaves_the_model_as_it_was(heads):
    model, inputs = ours("LongformerModel"), batch("LongformerModel")
    before = result(model, inputs)
    with pytest.raises((ValueError, TypeError), match=r"pruned_heads|heads_to_prune"):
        model.prune_heads(heads)
    assert model.config.pruned_heads == {}
    assert torch.equal(result(model, inputs), before)


def test_the_last_head_cannot_be_pruned_in_a_second_step():
    model = ours("LongformerModel")
    model.prune_heads({0: [0, 1]})
    with pytest.raises(ValueError, match="one head left"):
        model.prune_heads({0: [2]})
    assert model.config.pruned_heads == {0: [0, 1]}


# --- numbers, places, parts -------------------------------------------------------------------------------------------


def test_parameters_are_counted_once_each():
    model = ours("LongformerForMaskedLM")
    words, positions, types = 40 * 12, 120 * 12, 2 * 12
    layer = 7 * (12 * 12 + 12) + 2 * 12 * 20 + 20 + 12 + 2 * 24
    tables, rest = words + positions + types, 24 + 2 * layer + (12 * 12 + 12 + 24 + 40)
    assert model.num_parameters() == tables + rest, "the decoder is the word embedding, its bias has two names"
    assert model.num_parameters(exclude_embeddings=True) == rest
    assert ours("LongformerForMaskedLM", tie_word_embeddings=False).num_parameters() == tables + rest + words
    model.longformer.requires_grad_(False)
    model.lm_head.dense.weight.requires_grad_(True)
    assert model.num_parameters(only_trainable=True) == 12 * 12 + 12 + 24 + 40
    model.get_input_embeddings().weight.requires_grad_(True)
    assert model.num_parameters(only_trainable=True) == 12 * 12 + 12 + 24 + 40 + words
    assert model.num_parameters(only_trainable=True, exclude_embeddings=True) == 12 * 12 + 12 + 24 + 40


def test_device_and_dtype_are_those_of_the_parameters():
    model = ours("LongformerModel")
    assert (model.device, model.dtype) == (torch.device("cpu"), torch.float32)
    assert model.to(torch.bfloat16).dtype == torch.bfloat16
    assert model.to("meta").device == torch.device("meta")


@pytest.mark.parametrize("name", MODELS)
def test_word_embeddings_can_be_replaced(name):
    model, inputs = ours(name), batch(name)
    table = nn.Embedding(40, 12, padding_idx=1)
    before = result(model, inputs)
    model.set_input_embeddings(table)
    assert model.get_input_embeddings() is table
    assert model.base_model.embeddings.word_embeddings is table
    if name == "LongformerForMaskedLM":
        assert model.get_output_embeddings().weight is table.weight
    assert not torch.allclose(result(model, inputs), before)


def test_a_table_of_another_size_takes_the_decoder_along():
    """As :meth:`resize_token_embeddings` does; a bias of the old size would break the next forward pass."""
    model = ours("LongformerForMaskedLM")
    model.set_input_embeddings(nn.Embedding(50, 12, padding_idx=1))
    assert result(model, batch("LongformerForMaskedLM")).shape[-1] == 50
    assert model.config.vocab_size == 50


def test_only_masked_language_models_have_output_embeddings():
    for name in MODELS:
        model = ours(name)
        assert (model.get_output_embeddings() is None) == (name != "LongformerForMaskedLM")
    untied = ours("LongformerForMaskedLM", tie_word_embeddings=False)
    assert untied.get_output_embeddings().weight is not untied.get_input_embeddings().weight
    decoder = nn.Linear(12, 40)
    untied.set_output_embeddings(decoder)
    assert untied.get_output_embeddings() is decoder
    assert untied.lm_head.bias is decoder.bias


@pytest.mark.parametrize("name", HEADS)
def test_the_encoder_inside_is_the_base_model(name):
    model = ours(name)
    assert model.base_model is model.longformer
    assert model.longformer.base_model is model.longformer
    assert model.longformer.config is model.config


# --- copies -----------------------------------------------------------------------------------------------------------


def through_torch(model):
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


COPIES = {"deepcopy": copy.deepcopy, "pickle": lambda model: pickle.loads(pickle.dumps(model)), "torch_save": through_torch}


@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
@pytest.mark.parametrize("name", ["LongformerForMaskedLM", "LongformerForMultipleChoice"])
def test_copies_compute_the_same_and_share_nothing(name, copied):
    model, inputs = ours(name, hidden_act="gelu_new"), batch(name)
    model.prune_heads({0: [1]})
    model.gradient_checkpointing_enable({"use_reentrant": True})
    before = result(model, inputs)
    again = copied(model)
    assert torch.equal(result(again, inputs), before)
    assert again.is_gradient_checkpointing
    assert again.config == model.config
    assert again.base_model.config is again.config
    if name == "LongformerForMaskedLM":
        assert again.get_output_embeddings().weight is again.get_input_embeddings().weight
        assert again.lm_head.bias is again.lm_head.decoder.bias
    again.set_attention_window(2)
    again.prune_heads({1: [0]})
    with torch.no_grad():
        for parameter in again.parameters():
            parameter.zero_()
    assert torch.equal(result(model, inputs), before)
