"""The tokenizer beside a source: copied, told the new length, found again by transformers, named if ours does not read it."""

import json

import pytest
import torch
from conversion_cases import saved
from text_cases import tokenizer_of
from tokenizers import Tokenizer, models, pre_tokenizers

from longformer_triton import LongformerTokenizer, convert_to_longformer
from longformer_triton.heads import MaskedLanguageCollator
from longformer_triton.heads.conversion import convert
from longformer_triton.model import CheckpointError, conversion_files

transformers = pytest.importorskip("transformers", reason="transformers is not installed")
pytestmark = pytest.mark.usefixtures("one_thread")

TEXT = "the cat saw a tree"
PAIR = ("the cat", "a tree saw")
PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "saw", "a", "tre", "##e"]
UNIGRAM = ["<s>", "<pad>", "</s>", "<unk>", "▁", *(f"▁{word}" for word in TEXT.split()), "<mask>"]


def byte_level(folder):
    tokenizer_of(TEXT.split(), folder)
    return transformers.RobertaTokenizerFast.from_pretrained(folder, model_max_length=24)


def word_pieces(folder):
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(PIECES) + "\n")
    return transformers.BertTokenizerFast(vocab_file=str(folder / "vocab.txt"), model_max_length=24)


def unigram(folder, tokenizer_class):
    """As XLM-R and CamemBERT have it, whose own files hold the pieces of SentencePiece."""
    base = Tokenizer(models.Unigram([(piece, -float(number)) for number, piece in enumerate(UNIGRAM)], unk_id=3))
    base.pre_tokenizer = pre_tokenizers.Metaspace()
    return tokenizer_class(tokenizer_object=base, model_max_length=24, bos_token="<s>", eos_token="</s>")


TOKENIZERS = {
    "roberta": byte_level,
    "bert": word_pieces,
    "xlm-roberta": lambda folder: unigram(folder, transformers.PreTrainedTokenizerFast),
}
each_kind = pytest.mark.parametrize("kind", TOKENIZERS)


def with_tokenizer(folder, kind, task="ForMaskedLM", *, keep=None):
    """A checkpoint with the tokenizer of its kind beside it, of whose files ``keep`` alone stay; and that tokenizer."""
    tokenizer = TOKENIZERS[kind](folder.parent / f"{folder.name}-vocabulary")
    saved(folder, kind, task, vocab_size=max(40, len(tokenizer)))
    tokenizer.save_pretrained(folder)
    for name in conversion_files.TOKENIZER_FILES:
        if keep is not None and name not in keep:
            (folder / name).unlink(missing_ok=True)
    return tokenizer


def long(source, destination):
    options = {"max_positions": 100, "attention_window": 16, "dtype": "auto", "overwrite": False}
    return convert(source, destination, **options, architecture=None, sep_token_id=None)


@each_kind
def test_transformers_finds_the_same_tokenizer_beside_the_result(tmp_path, kind):
    tokenizer = with_tokenizer(tmp_path / "source", kind)
    done = long(tmp_path / "source", tmp_path / "result")
    loaded = transformers.AutoTokenizer.from_pretrained(tmp_path / "result")
    assert type(loaded) is type(tokenizer)
    for arguments in ((TEXT,), PAIR):
        assert loaded(*arguments) == tokenizer(*arguments)
    assert loaded.model_max_length == done.model.base_model.embeddings.longest
    copied = {path.name: path.read_bytes() for path in (tmp_path / "result").iterdir() if path.name in done.tokenizer}
    assert {*copied} == {path.name for path in (tmp_path / "source").iterdir()} - {"config.json", "model.safetensors"}
    for name in {*copied} - {"tokenizer_config.json"}:
        assert copied[name] == (tmp_path / "source" / name).read_bytes()


@pytest.mark.parametrize(
    ("kind", "keep"),
    [("roberta", ("vocab.json", "merges.txt")), ("bert", ("vocab.txt",)), ("bert", ("vocab.txt", "special_tokens_map.json"))],
    ids=["roberta", "bert", "bert_with_special_tokens"],
)
def test_where_no_file_names_the_class_the_kind_does(tmp_path, kind, keep):
    """Older checkpoints have no tokenizer_config.json: transformers would go by model_type, to a Longformer's files."""
    tokenizer = with_tokenizer(tmp_path / "source", kind, keep=keep)
    long(tmp_path / "source", tmp_path / "result")
    loaded = transformers.AutoTokenizer.from_pretrained(tmp_path / "result")
    assert type(loaded) is type(tokenizer)
    assert loaded(*PAIR)["input_ids"] == tokenizer(*PAIR)["input_ids"]
    assert loaded.model_max_length == {"roberta": 98, "bert": 99}[kind]


def test_our_tokenizer_reads_what_comes_from_a_roberta(tmp_path, caplog):
    tokenizer = with_tokenizer(tmp_path / "source", "roberta")
    convert_to_longformer(tmp_path / "source", tmp_path / "result", max_positions=100)
    assert not [
        record for record in caplog.records if record.name.startswith("longformer_triton") and record.levelname == "WARNING"
    ]
    ours = LongformerTokenizer.from_pretrained(tmp_path / "result")
    assert ours.model_max_length == 98
    assert ours(*PAIR)["input_ids"] == tokenizer(*PAIR)["input_ids"]


@pytest.mark.parametrize("kind", ["bert", "xlm-roberta"])
def test_a_tokenizer_that_ours_does_not_read_is_named_with_the_one_that_does(tmp_path, caplog, kind):
    with_tokenizer(tmp_path / "source", kind)
    done = long(tmp_path / "source", tmp_path / "result")
    assert not done.takes_text
    (note,) = done.notes
    assert "LongformerTokenizer, a byte-level BPE, does not read" in note
    assert "transformers' AutoTokenizer" in note
    assert {"bert": "WordPiece", "xlm-roberta": "Unigram"}[kind] in note
    with pytest.raises(ValueError, match=r"expected byte-level BPE.*transformers' AutoTokenizer reads it"):
        LongformerTokenizer.from_pretrained(tmp_path / "result")
    convert_to_longformer(tmp_path / "source", max_positions=100)
    assert any(record.levelname == "WARNING" and note in record.getMessage() for record in caplog.records)


def test_a_tokenizer_that_ours_does_not_read_serves_in_a_loop_of_ones_own(tmp_path):
    with_tokenizer(tmp_path / "source", "bert")
    model = long(tmp_path / "source", tmp_path / "result").model
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "result")
    batch = MaskedLanguageCollator(theirs, probability=1.0)([theirs(TEXT), theirs(PAIR[0])])
    assert model(**batch).loss.isfinite()


def test_a_source_without_a_tokenizer_gives_a_result_without(tmp_path):
    saved(tmp_path / "source", "roberta")
    (tmp_path / "source" / "tokenizer_config.json").write_text("{}")
    done = long(tmp_path / "source", tmp_path / "result")
    assert sorted(path.name for path in (tmp_path / "result").iterdir()) == ["config.json", "model.safetensors"]
    assert (done.tokenizer, done.takes_text) == ([], False)
    assert "holds no tokenizer" in done.notes[0]


def test_the_older_name_of_the_length_goes(tmp_path):
    with_tokenizer(tmp_path / "source", "roberta")
    path = tmp_path / "source" / "tokenizer_config.json"
    settings = {**json.loads(path.read_text()), "max_len": 24}
    del settings["model_max_length"]
    path.write_text(json.dumps(settings))
    long(tmp_path / "source", tmp_path / "result")
    written = json.loads((tmp_path / "result" / "tokenizer_config.json").read_text())
    assert written == {**{name: value for name, value in settings.items() if name != "max_len"}, "model_max_length": 98}


@pytest.mark.parametrize("name", ["tokenizer_config.json", "tokenizer.json", "added_tokens.json"])
def test_a_damaged_tokenizer_is_refused_before_anything_is_written(tmp_path, name):
    with_tokenizer(tmp_path / "source", "bert")
    (tmp_path / "source" / "vocab.txt").write_text("[PAD]\n")
    config = json.loads((tmp_path / "source" / "tokenizer_config.json").read_text())
    (tmp_path / "source" / "tokenizer_config.json").write_text(json.dumps({**config, "added_tokens_decoder": {}}))
    (tmp_path / "source" / name).write_text("{")
    with pytest.raises(CheckpointError, match=rf"{name}: is no JSON"):
        long(tmp_path / "source", tmp_path / "result")
    assert not (tmp_path / "result").exists()


# --- the separator ----------------------------------------------------------------------------------------------------

SEPARATORS = {
    "config": ({"sep_token_id": 9}, {}, 9),
    "words": ({}, {"vocab.txt": "[PAD]\n[CLS]\n[SEP]\na\n"}, 2),
    "words_of_windows": ({}, {"vocab.txt": "[PAD]\r\n[SEP]\r\na\r\n"}, 1),
    "another_token": ({}, {"vocab.txt": "[PAD]\n</s>\n[SEP]\n", "special_tokens_map.json": '{"sep_token": "</s>"}'}, 1),
    "as_an_object": ({}, {"vocab.txt": "a\n<sep>\n", "tokenizer_config.json": '{"sep_token": {"content": "<sep>"}}'}, 1),
    "added": ({}, {"vocab.txt": "a\n", "added_tokens.json": '{"[SEP]": 17}'}, 17),
    "in_the_decoder": ({}, {"tokenizer_config.json": '{"added_tokens_decoder": {"5": {"content": "[SEP]"}}}'}, 5),
    "ids": ({}, {"vocab.json": '{"a": 0, "[SEP]": 6}'}, 6),
    "added_in_the_whole": ({}, {"tokenizer.json": '{"added_tokens": [{"id": 3, "content": "[SEP]"}], "model": {}}'}, 3),
    "words_in_the_whole": ({}, {"tokenizer.json": '{"model": {"vocab": {"[SEP]": 8}}}'}, 8),
    "pieces_in_the_whole": ({}, {"tokenizer.json": '{"model": {"vocab": [["a", 0.0], ["[SEP]", -1.0]]}}'}, 1),
}


@pytest.mark.parametrize(("entries", "texts", "expected"), SEPARATORS.values(), ids=SEPARATORS)
def test_the_separator_of_a_bert_is_found_wherever_it_is_written(tmp_path, entries, texts, expected):
    for name, text in texts.items():
        (tmp_path / name).write_text(text, newline="")
    assert conversion_files.separator({"model_type": "bert", **entries}, tmp_path) == expected


def test_an_unknown_separator_is_named_and_can_be_given(tmp_path):
    saved(tmp_path, "bert", "ForQuestionAnswering")
    done = long(tmp_path, None)
    assert done.model.config.sep_token_id is None
    assert any(note.startswith("sep_token_id is unknown") for note in done.notes)
    model = convert_to_longformer(tmp_path, max_positions=100, sep_token_id=7)
    ids = torch.tensor([[4, 5, 7, 8, 9]])
    assert model(ids).start_logits.shape == (1, 5)


@pytest.mark.parametrize("kind", ["roberta", "xlm-roberta", "camembert"])
def test_a_roberta_separates_with_the_end_of_a_text(tmp_path, kind):
    saved(tmp_path, kind, eos_token_id=6)
    assert convert_to_longformer(tmp_path, max_positions=100).config.sep_token_id == 6
    (tmp_path / "vocab.json").write_text('{"a": 0, "[SEP]": 5}')
    (tmp_path / "special_tokens_map.json").write_text('{"sep_token": "[SEP]"}')
    assert convert_to_longformer(tmp_path, max_positions=100).config.sep_token_id == 5
