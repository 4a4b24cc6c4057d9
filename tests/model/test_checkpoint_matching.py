"""Checkpoints of another model: headless and with a head, RoBERTa's, other shapes, and the one report of what did not fit."""

import pytest
import torch
from model_cases import MODELS, TINY, filled, ours

import longformer_triton
from longformer_triton import (
    LongformerConfig,
    LongformerForMaskedLM,
    LongformerForSequenceClassification,
    LongformerForTokenClassification,
    LongformerModel,
)
from longformer_triton.model import CheckpointError

HEADS = MODELS[1:]
each_head = pytest.mark.parametrize("name", HEADS)
GLOBAL = ("query_global", "key_global", "value_global")


@pytest.fixture(scope="module")
def transformers():
    return pytest.importorskip("transformers", reason="transformers is not installed")


def assert_same_parameters(got, expected, names):
    for name in names:
        torch.testing.assert_close(got[name], expected[name], rtol=0, atol=0, msg=lambda why, name=name: f"{name}: {why}")


def reports(caplog):
    return [record.getMessage() for record in caplog.records if record.name == "longformer_triton.model.loading"]


def lines(report):
    """{what: names} of a report."""
    return {line.split(":")[0].strip(): line.split(":", maxsplit=1)[1] for line in report.splitlines()[1:]}


@each_head
def test_a_headless_checkpoint_gives_a_head_model_its_encoder(tmp_path, caplog, name):
    encoder = filled(ours("LongformerModel"))
    encoder.save_pretrained(tmp_path)
    model, info = getattr(longformer_triton, name).from_pretrained(tmp_path, output_loading_info=True)
    state = encoder.state_dict()
    of_encoder = [key for key in state if not key.startswith("pooler.")]
    assert_same_parameters(model.longformer.state_dict(), state, model.longformer.state_dict())
    of_head = {key for key in model.state_dict() if not key.startswith("longformer.")}
    has_pooler = model.longformer.pooler is not None
    # The decoder is the word embedding, which is there.
    assert set(info["missing_keys"]) == of_head - {"lm_head.decoder.weight"}
    assert len(info["unexpected_keys"]) == (0 if has_pooler else len(state) - len(of_encoder))
    assert info["mismatched_keys"] == []
    (report,) = reports(caplog)
    assert name in report
    assert str(tmp_path) in report
    assert info["missing_keys"][0] in lines(report)["new, to be trained"]
    assert ("in the checkpoint, not used" in lines(report)) == (not has_pooler)


@each_head
def test_a_checkpoint_with_a_head_gives_the_headless_model_its_encoder(tmp_path, caplog, name):
    source = filled(ours(name))
    source.save_pretrained(tmp_path)
    model, info = LongformerModel.from_pretrained(tmp_path, add_pooling_layer=False, output_loading_info=True)
    assert_same_parameters(model.state_dict(), source.longformer.state_dict(), model.state_dict())
    assert info["missing_keys"] == info["mismatched_keys"] == []
    (report,) = reports(caplog)
    assert set(lines(report)) == {"in the checkpoint, not used"}


def test_a_checkpoint_of_one_head_loads_into_another(tmp_path, caplog):
    source = filled(ours("LongformerForMaskedLM"))
    source.save_pretrained(tmp_path)
    model, info = LongformerForTokenClassification.from_pretrained(tmp_path, num_labels=5, output_loading_info=True)
    assert_same_parameters(model.longformer.state_dict(), source.longformer.state_dict(), model.longformer.state_dict())
    assert sorted(info["missing_keys"]) == ["classifier.bias", "classifier.weight"]
    assert info["unexpected_keys"]
    assert all(key.startswith("lm_head.") for key in info["unexpected_keys"])
    assert model.classifier.out_features == 5
    assert len(reports(caplog)) == 1


def test_new_parameters_begin_as_in_a_new_model(tmp_path):
    """Zero biases, the identity as norm, and weights of the configured range: nothing that memory happened to hold."""
    filled(ours("LongformerModel", hidden_size=60)).save_pretrained(tmp_path)
    head = LongformerForMaskedLM.from_pretrained(tmp_path, initializer_range=0.5).lm_head
    assert not head.bias.any()
    assert not head.dense.bias.any()
    assert not head.layer_norm.bias.any()
    assert (head.layer_norm.weight == 1).all()
    assert 0.4 < head.dense.weight.std() < 0.6


def test_a_long_list_is_cut_short_and_says_so(tmp_path, caplog):
    """Thousands of names would hide what matters."""
    filled(ours("LongformerModel", num_hidden_layers=1, attention_window=4)).save_pretrained(tmp_path)
    _, info = LongformerModel.from_pretrained(tmp_path, num_hidden_layers=2, attention_window=4, output_loading_info=True)
    (report,) = reports(caplog)
    new = lines(report)["new, to be trained"]
    assert new.count("encoder.layer.1.") == 8
    assert f"and {len(info['missing_keys']) - 8} more" in new


@pytest.mark.parametrize("name", ["embeddings.position_ids", "longformer.embeddings.token_type_ids"])
def test_buffers_of_older_versions_are_passed_over(tmp_path, caplog, name):
    model = ours("LongformerModel")
    model.save_pretrained(tmp_path, state_dict={**model.state_dict(), name: torch.arange(120)[None]})
    _, info = LongformerModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert not reports(caplog)


def test_layer_norms_of_converted_files_have_other_names(tmp_path, caplog):
    """transformers' converters from TensorFlow wrote gamma and beta."""
    model = ours("LongformerModel")
    older = {name.replace("LayerNorm.weight", "LayerNorm.gamma"): tensor for name, tensor in model.state_dict().items()}
    older = {name.replace("LayerNorm.bias", "LayerNorm.beta"): tensor for name, tensor in older.items()}
    assert older.keys() != model.state_dict().keys()
    model.save_pretrained(tmp_path, state_dict=older)
    loaded, info = LongformerModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert not reports(caplog)
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)


def test_a_checkpoint_of_something_else_is_refused(tmp_path):
    ours("LongformerModel").save_pretrained(tmp_path, state_dict={"conv1.weight": torch.ones(2, 3)})
    with pytest.raises(CheckpointError, match=rf"{tmp_path.name}: none of its 1 tensors.*LongformerForMaskedLM"):
        LongformerForMaskedLM.from_pretrained(tmp_path)


# shapes


def test_another_shape_is_refused_with_its_name_and_both_shapes(tmp_path):
    ours("LongformerForSequenceClassification").save_pretrained(tmp_path)
    with pytest.raises(CheckpointError) as refusal:
        LongformerForSequenceClassification.from_pretrained(tmp_path, num_labels=5)
    message = str(refusal.value)
    assert str(tmp_path) in message
    assert "classifier.out_proj.weight ((2, 12) there, (5, 12) here)" in message
    assert "classifier.out_proj.bias ((2,) there, (5,) here)" in message
    assert "ignore_mismatched_sizes=True" in message
    assert "longformer.encoder" not in message


def test_another_shape_begins_anew_where_that_was_asked_for(tmp_path, caplog):
    source = filled(ours("LongformerForSequenceClassification"))
    source.save_pretrained(tmp_path)
    model, info = LongformerForSequenceClassification.from_pretrained(
        tmp_path, num_labels=5, ignore_mismatched_sizes=True, output_loading_info=True
    )
    fitting = [name for name in model.state_dict() if "out_proj" not in name]
    assert_same_parameters(model.state_dict(), source.state_dict(), fitting)
    assert model.classifier.out_proj.weight.shape == (5, 12)
    assert not model.classifier.out_proj.bias.any()
    assert sorted(info["mismatched_keys"]) == [
        ("classifier.out_proj.bias", (2,), (5,)),
        ("classifier.out_proj.weight", (2, 12), (5, 12)),
    ]
    assert info["missing_keys"] == info["unexpected_keys"] == []
    (report,) = reports(caplog)
    assert "(2, 12) there, (5, 12) here" in lines(report)["of another shape, so new"]


def test_a_larger_vocabulary_on_request_stays_tied(tmp_path):
    filled(ours("LongformerForMaskedLM")).save_pretrained(tmp_path)
    model = LongformerForMaskedLM.from_pretrained(tmp_path, vocab_size=50, ignore_mismatched_sizes=True)
    assert model.lm_head.decoder.weight is model.get_input_embeddings().weight
    assert model.lm_head.decoder.weight.shape == (50, 12)
    assert model.lm_head.decoder.weight.isfinite().all()


# RoBERTa


def roberta(transformers, kind, name, **options):
    options |= {key: value for key, value in TINY.items() if key != "attention_window"}
    config = getattr(transformers, f"{kind}Config")(**options, pad_token_id=1, type_vocab_size=1)
    return filled(getattr(transformers, f"{kind}{name}")(config)).eval()


@pytest.mark.parametrize("kind", ["Roberta", "XLMRoberta", "Camembert"])
def test_global_projections_of_a_roberta_begin_as_copies_of_the_local_ones(transformers, tmp_path, caplog, kind):
    source = roberta(transformers, kind, "ForMaskedLM")
    source.save_pretrained(tmp_path)
    caplog.clear()
    model, info = LongformerForMaskedLM.from_pretrained(tmp_path, attention_window=8, output_loading_info=True)
    state, expected = model.state_dict(), source.state_dict()
    for layer in range(2):
        for projection in GLOBAL:
            of_global = getattr(model.longformer.encoder.layer[layer].attention.self, projection)
            local = getattr(model.longformer.encoder.layer[layer].attention.self, projection.removesuffix("_global"))
            torch.testing.assert_close(of_global.state_dict(), local.state_dict(), rtol=0, atol=0)
            assert of_global.weight.data_ptr() != local.weight.data_ptr(), "training one would train the other"
    others = [name for name in state if "_global" not in name]
    assert_same_parameters(state, {name.replace("roberta.", "longformer."): value for name, value in expected.items()}, others)
    assert set(info["missing_keys"]) == {name for name in state if "_global" in name}
    assert info["unexpected_keys"] == info["mismatched_keys"] == []
    (report,) = [text for text in reports(caplog) if "LongformerForMaskedLM" in text]
    assert set(lines(report)) == {"copied from the local projections"}


def test_a_roberta_with_windows_over_the_whole_text_computes_the_same(transformers, tmp_path):
    """With local and global projections alike, global attention is full attention too."""
    source = roberta(transformers, "Roberta", "Model")
    source.save_pretrained(tmp_path)
    model = LongformerModel.from_pretrained(tmp_path, attention_window=40)
    input_ids = torch.randint(3, 40, (2, 17))
    globals_ = torch.zeros_like(input_ids)
    globals_[:, ::5] = 1
    expected = source(input_ids)
    for mask in (None, globals_):
        got = model(input_ids, global_attention_mask=mask)
        torch.testing.assert_close(got.last_hidden_state, expected.last_hidden_state, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(got.pooler_output, expected.pooler_output, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["Roberta", "XLMRoberta", "Camembert"])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"position_embedding_type": "relative_key"}, "got position_embedding_type 'relative_key', expected 'absolute'"),
        ({"is_decoder": True}, "got is_decoder true, expected an encoder"),
        ({"is_decoder": True, "add_cross_attention": True}, "got is_decoder true, expected an encoder"),
    ],
    ids=["relative_positions", "decoder", "decoder_of_an_encoder"],
)
def test_a_roberta_that_computes_something_else_is_refused(transformers, tmp_path, kind, options, message):
    roberta(transformers, kind, "Model", **options).save_pretrained(tmp_path)
    for load in (LongformerModel.from_pretrained, LongformerConfig.from_pretrained, longformer_triton.convert_to_longformer):
        with pytest.raises(NotImplementedError, match=rf"config\.json: {message}"):
            load(tmp_path)


def test_a_longformer_may_name_relative_positions_which_transformers_does_not_read_either(transformers, tmp_path):
    config = transformers.LongformerConfig(**TINY, position_embedding_type="relative_key")
    source = filled(transformers.LongformerModel(config)).eval()
    source.save_pretrained(tmp_path)
    input_ids = torch.randint(3, 40, (2, 17))
    got = LongformerModel.from_pretrained(tmp_path)(input_ids).last_hidden_state
    torch.testing.assert_close(got, source(input_ids).last_hidden_state, rtol=1e-4, atol=1e-4)


def test_a_roberta_is_saved_as_a_longformer(transformers, tmp_path):
    roberta(transformers, "Roberta", "ForMaskedLM").save_pretrained(tmp_path / "roberta")
    model = LongformerForMaskedLM.from_pretrained(tmp_path / "roberta", attention_window=8)
    model.save_pretrained(tmp_path / "longformer")
    config = LongformerConfig.from_pretrained(tmp_path / "longformer")
    assert config.to_dict()["model_type"] == "longformer"
    assert config.architectures == ["LongformerForMaskedLM"]
    loaded, info = transformers.LongformerForMaskedLM.from_pretrained(tmp_path / "longformer", output_loading_info=True)
    assert not any(info.values())
    assert_same_parameters(loaded.state_dict(), model.state_dict(), model.state_dict())


def test_global_projections_that_are_there_are_no_copies(tmp_path):
    model = filled(ours("LongformerModel"))
    model.save_pretrained(tmp_path)
    attention = LongformerModel.from_pretrained(tmp_path).encoder.layer[0].attention.self
    assert not torch.equal(attention.query_global.weight, attention.query.weight)
