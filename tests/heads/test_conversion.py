"""What a conversion keeps, leaves out and begins anew: configuration, heads, poolers, older files, copies that are copies."""

import json
import logging

import pytest
import torch
from conversion_cases import (
    KINDS,
    LEARNED,
    SEPARATOR,
    SIZES,
    assert_computes_the_same,
    assert_same,
    results,
    saved,
    source,
    texts,
)
from safetensors.torch import load_file, save_file

import longformer_triton
from longformer_triton import LongformerModel, convert_to_longformer
from longformer_triton.heads.conversion import convert
from longformer_triton.model.files import read_weights

transformers = pytest.importorskip("transformers", reason="transformers is not installed")
pytestmark = pytest.mark.usefixtures("one_thread")

each_kind = pytest.mark.parametrize("kind", KINDS)
GLOBAL = ("query_global", "key_global", "value_global")


def converted(folder, destination=None, **options):
    """The conversion with all that is said about it."""
    defaults = {"max_positions": 100, "attention_window": 64, "dtype": "auto", "overwrite": False}
    return convert(folder, destination, **{**defaults, "architecture": None, "sep_token_id": None, **options})


def edit(folder, **entries):
    """Change entries of config.json; None removes one."""
    path = folder / "config.json"
    kept = {**json.loads(path.read_text()), **entries}
    path.write_text(json.dumps({name: value for name, value in kept.items() if value is not None}))


def rename(folder, change):
    """Change the names of the weights; what becomes None goes."""
    path = folder / "model.safetensors"
    tensors = {change(name): tensor for name, tensor in load_file(path).items()}
    save_file({name: tensor for name, tensor in tensors.items() if name is not None}, path, {"format": "pt"})


@each_kind
def test_the_configuration_keeps_what_it_means(tmp_path, kind):
    options = {"hidden_dropout_prob": 0.25, "attention_probs_dropout_prob": 0.5, "hidden_act": "relu", "initializer_range": 0.3}
    original = saved(tmp_path / "source", kind, "ForTokenClassification", id2label={0: "no", 1: "yes", 2: "?"}, **options)
    convert_to_longformer(tmp_path / "source", tmp_path / "result", max_positions=100, attention_window=[8, 16])
    entries = json.loads((tmp_path / "result" / "config.json").read_text())
    assert entries["model_type"] == "longformer"
    assert entries["architectures"] == ["LongformerForTokenClassification"]
    assert (entries["attention_window"], entries["max_position_embeddings"], entries["dtype"]) == ([8, 16], 100, "float32")
    assert (entries["id2label"], entries["label2id"]) == ({"0": "no", "1": "yes", "2": "?"}, {"no": 0, "yes": 1, "?": 2})
    for name in (*SIZES, *options, "pad_token_id", "bos_token_id", "eos_token_id"):
        assert entries[name] == getattr(original.config, name), name
    assert not {"position_embedding_type", "use_cache", "is_decoder", "transformers_version"} & set(entries)
    theirs = transformers.LongformerConfig.from_pretrained(tmp_path / "result")
    assert (theirs.attention_window, theirs.pad_token_id, theirs.bos_token_id) == (
        [8, 16],
        *map(entries.get, ("pad_token_id", "bos_token_id")),
    )


@each_kind
def test_entries_that_a_file_leaves_out_are_those_of_its_kind(tmp_path, kind):
    """A Longformer's own defaults would take the padding of RoBERTa for that of a BERT."""
    original = saved(tmp_path, kind)
    edit(tmp_path, pad_token_id=None, bos_token_id=None, eos_token_id=None)
    config = convert_to_longformer(tmp_path, max_positions=100).config
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        assert getattr(config, name) == getattr(type(original.config)(), name), name


def test_a_roberta_has_its_own_size_of_the_vocabulary(tmp_path):
    saved(tmp_path, "roberta", vocab_size=50265)
    edit(tmp_path, vocab_size=None)
    assert convert_to_longformer(tmp_path, max_positions=100).config.vocab_size == 50265


# --- heads and poolers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["ForMaskedLM", "ForSequenceClassification", "ForTokenClassification"])
@each_kind
def test_a_pooler_stays_in_the_directory_for_those_who_read_it(tmp_path, kind, task):
    whole = saved(tmp_path / "source", kind, task)
    encoder = source(kind)
    encoder.load_state_dict(whole.base_model.state_dict(), strict=False)
    prefix = f"{whole.base_model_prefix}.pooler.dense."
    path = tmp_path / "source" / "model.safetensors"
    pooler = {prefix + name: tensor.clone() for name, tensor in encoder.pooler.dense.state_dict().items()}
    save_file({**load_file(path), **pooler}, path, {"format": "pt"})
    done = converted(tmp_path / "source", tmp_path / "result")
    assert done.report.unused == []
    arguments = texts(encoder)
    assert_same(results(LongformerModel.from_pretrained(tmp_path / "result"), arguments), results(encoder, arguments))


@each_kind
def test_a_pooler_that_is_not_there_is_not_made_up(tmp_path, kind):
    saved(tmp_path / "source", kind, "ForMaskedLM")
    done = converted(tmp_path / "source", tmp_path / "result", architecture="LongformerModel")
    assert done.model.pooler is None
    assert done.report.new == []
    assert all("lm_head" in name or "cls.predictions" in name for name in done.report.unused)
    assert not any("pooler" in name for name in read_weights(tmp_path / "result"))


def test_of_a_berts_own_training_the_masked_words_are_kept(tmp_path):
    original = saved(tmp_path, "bert", "ForPreTraining")
    done = converted(tmp_path)
    assert type(done.model).__name__ == "LongformerForMaskedLM"
    assert sorted(done.report.unused) == ["cls.seq_relationship.bias", "cls.seq_relationship.weight"]
    arguments = texts(original)
    got, expected = results(done.model, arguments), original.double()(**arguments).prediction_logits
    assert_same(got, {"logits": expected[arguments["attention_mask"] == 1]})


@each_kind
def test_nothing_is_taken_of_another_tasks_head(tmp_path, kind):
    """Though its parameters have the names and shapes of the one that is asked for."""
    saved(tmp_path, kind, "ForTokenClassification", num_labels=1)
    done = converted(tmp_path, architecture="LongformerForMultipleChoice")
    assert {"classifier.weight", "classifier.bias"} <= set(done.report.new)
    assert done.report.unused == ["classifier.bias", "classifier.weight"]
    assert "new, to be trained: " in done.as_text()
    assert "in the source, not used: classifier.bias, classifier.weight" in done.as_text()


@pytest.mark.parametrize("architecture", ["BertForNextSentencePrediction", "BertLMHeadModel", "MyModelForTagging"])
def test_tasks_that_longformer_has_not_give_the_encoder(tmp_path, architecture):
    original = saved(tmp_path, "bert", "ForNextSentencePrediction")
    edit(tmp_path, architectures=[architecture])
    done = converted(tmp_path)
    assert type(done.model) is LongformerModel
    assert sorted(done.report.unused) == ["cls.seq_relationship.bias", "cls.seq_relationship.weight"]
    arguments = texts(original)
    assert_same(results(done.model, arguments), results(original.bert, arguments))


@pytest.mark.parametrize(
    ("task", "architecture", "expected"),
    [
        ("ForMaskedLM", None, "LongformerForMaskedLM"),
        ("ForQuestionAnswering", None, "LongformerForQuestionAnswering"),
        ("Model", None, "LongformerModel"),
        ("ForSequenceClassification", None, "LongformerModel"),
        ("ForSequenceClassification", "LongformerForSequenceClassification", "LongformerForSequenceClassification"),
    ],
    ids=["masked_words", "answers", "encoder", "some_classifier", "classifier_of_texts"],
)
@each_kind
def test_a_file_that_names_no_architecture_is_known_by_its_head(tmp_path, kind, task, architecture, expected):
    original = saved(tmp_path, kind, task)
    edit(tmp_path, architectures=None)
    done = converted(tmp_path, architecture=architecture, sep_token_id=SEPARATOR)
    assert type(done.model).__name__ == expected
    assert done.report.new == []
    assert bool(done.report.unused) == (expected == "LongformerModel" != f"Longformer{task}")
    if not done.report.unused:
        assert_computes_the_same(done.model, original)


# --- older files ------------------------------------------------------------------------------------------------------


def test_norms_under_tensorflows_names_are_read(tmp_path):
    """As the BERTs have them that were converted first of all."""
    original = saved(tmp_path, "bert", "ForMaskedLM")
    rename(
        tmp_path, lambda name: name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
    )
    assert any("gamma" in name for name in read_weights(tmp_path))
    done = converted(tmp_path)
    assert (done.report.new, done.report.unused) == ([], [])
    assert_computes_the_same(done.model, original)


@each_kind
def test_second_names_of_tied_weights_and_old_buffers_need_not_be_there(tmp_path, kind):
    original = saved(tmp_path, kind, "ForMaskedLM")
    prefix = original.base_model_prefix
    path = tmp_path / "model.safetensors"
    decoder = [name for name in load_file(path) if ".decoder." in name]
    buffers = {f"{prefix}.embeddings.{name}": torch.arange(9) for name in ("position_ids", "token_type_ids")}
    save_file(
        {name: tensor for name, tensor in load_file(path).items() if name not in decoder} | buffers, path, {"format": "pt"}
    )
    done = converted(tmp_path)
    assert (done.report.new, done.report.unused) == ([], [])
    assert_computes_the_same(done.model, original)


def test_pruned_heads_stay_pruned(tmp_path):
    original = source("roberta", "ForMaskedLM")
    original.prune_heads({0: [1], 1: [0, 2]})
    original.save_pretrained(tmp_path)
    done = converted(tmp_path)
    assert done.model.config.pruned_heads == {0: [1], 1: [0, 2]}
    assert_computes_the_same(done.model, original)


# --- global projections -----------------------------------------------------------------------------------------------


@each_kind
def test_global_projections_are_copies_with_storage_of_their_own(tmp_path, kind):
    saved(tmp_path / "source", kind, "ForMaskedLM")
    done = converted(tmp_path / "source", tmp_path / "result")
    for model in (done.model, longformer_triton.LongformerForMaskedLM.from_pretrained(tmp_path / "result")):
        state = model.state_dict()
        pairs = [(name, name.replace("_global", "")) for name in state if any(part in name for part in GLOBAL)]
        assert len(pairs) == 12
        assert set(done.report.copied) == {name for name, _ in pairs}
        for copy, local in pairs:
            assert torch.equal(state[copy], state[local])
            assert state[copy].untyped_storage().data_ptr() != state[local].untyped_storage().data_ptr()
    assert {name for name, _ in pairs} <= set(read_weights(tmp_path / "result"))


def test_training_the_global_projections_alone_changes_no_local_one(tmp_path):
    original = saved(tmp_path, "roberta", "ForMaskedLM")
    model = converted(tmp_path).model.train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    of_globals = [parameter for name, parameter in model.named_parameters() if any(part in name for part in GLOBAL)]
    optimizer = torch.optim.SGD(of_globals, lr=0.1)
    arguments = texts(original)
    marked = torch.zeros_like(arguments["input_ids"])
    marked[:, 0] = 1
    model(**arguments, global_attention_mask=marked, labels=arguments["input_ids"]).loss.backward()
    optimizer.step()
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed
    assert all(any(part in name for part in GLOBAL) for name in changed)
    assert_same(results(model.eval(), arguments), results(original, arguments))


# --- what is said -----------------------------------------------------------------------------------------------------


def test_the_report_names_sizes_and_what_became_of_them(tmp_path):
    saved(tmp_path, "roberta", "ForMaskedLM")
    done = converted(tmp_path, attention_window=[8, 16])
    text = done.as_text()
    assert f"RobertaForMaskedLM -> LongformerForMaskedLM, 2 layers, {done.model.num_parameters():,} parameters, float32" in text
    assert f"positions: {LEARNED} learned ones tiled to 98, the most tokens that a text may have" in text
    assert "attention window: 8, 16 tokens" in text
    assert "global projections: 12 parameters, copied from the local ones" in text
    assert "new" not in text
    assert "not used" not in text


def test_the_log_has_one_report(tmp_path, caplog):
    caplog.set_level(logging.INFO, "longformer_triton")
    saved(tmp_path, "bert")
    convert_to_longformer(tmp_path, max_positions=100)
    (record,) = (record for record in caplog.records if record.name.startswith("longformer_triton"))
    assert record.levelno == logging.WARNING, "no tokenizer is there"
    assert f"{tmp_path} converted:" in record.getMessage()
    assert "sep_token_id is unknown" in record.getMessage()


def test_a_dropout_that_only_the_sources_head_had_is_named(tmp_path):
    saved(tmp_path, "roberta", "ForSequenceClassification", classifier_dropout=0.3, hidden_dropout_prob=0.2)
    assert "classifier_dropout of 0.3 is not kept: heads drop with hidden_dropout_prob (0.2)." in converted(tmp_path).notes
    edit(tmp_path, classifier_dropout=0.2)
    assert not any("classifier_dropout" in note for note in converted(tmp_path).notes)


def test_the_source_stays_as_it_was(tmp_path):
    saved(tmp_path / "source", "bert", "ForSequenceClassification")
    before = {path.name: path.read_bytes() for path in (tmp_path / "source").iterdir()}
    model = converted(tmp_path / "source", tmp_path / "result", sep_token_id=SEPARATOR).model
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert {path.name: path.read_bytes() for path in (tmp_path / "source").iterdir()} == before
