"""A vocabulary of one's own: trained, saved, loaded, by us and by transformers."""

import json
import types

import pytest
from tokenizers import trainers

from longformer_triton.tokenization import LongformerTokenizer, training
from longformer_triton.tokenization.special import NAMES

TEXT = "the quick brown fox jumps over the lazy dog\nnaïve foxes and dogs\n" * 30


@pytest.fixture
def corpus(tmp_path):
    for name in ("one.txt", "two.txt"):
        (tmp_path / name).write_text(TEXT, encoding="utf-8")
    return [tmp_path / "one.txt", tmp_path / "two.txt"]


def test_a_trained_vocabulary_is_what_was_asked_for(corpus, tmp_path, transformers):
    tokenizer = LongformerTokenizer.train_from_files(corpus, 300, show_progress=False, model_max_length=64)
    assert len(tokenizer) == tokenizer.vocab_size == 300
    assert [getattr(tokenizer, f"{name}_id") for name in NAMES] == [0, 2, 3, 2, 1, 0, 4]
    assert len(tokenizer.tokenize(" fox the dog")) < len(" fox the dog")
    strange = "東京 👍\x00"
    assert tokenizer.decode(tokenizer.encode(strange), skip_special_tokens=True) == strange
    tokenizer.save_pretrained(tmp_path / "saved")
    for legacy in (True, False, None):
        tokenizer.save_pretrained(tmp_path / "saved", legacy_format=legacy)
        again = LongformerTokenizer.from_pretrained(tmp_path / "saved")
        theirs = transformers.LongformerTokenizerFast.from_pretrained(tmp_path / "saved")
        for text in (TEXT[:100], strange, "<mask> fox</s>"):
            assert tokenizer.encode(text) == again.encode(text) == theirs.encode(text)
        assert again.model_max_length == theirs.model_max_length == 64


def test_training_is_the_same_each_time(corpus):
    first, second = (LongformerTokenizer.train_from_files(corpus, 320, show_progress=False) for _ in range(2))
    assert first.backend_tokenizer.to_str() == second.backend_tokenizer.to_str()


def test_rare_pairs_and_other_special_tokens(corpus):
    rare = LongformerTokenizer.train_from_files(corpus[0], 1000, min_frequency=1000, show_progress=False)
    assert len(rare) == 256 + 5
    named = LongformerTokenizer.train_from_files(
        str(corpus[0]),
        300,
        show_progress=False,
        add_prefix_space=True,
        cls_token="[CLS]",
        sep_token="[SEP]",
        additional_special_tokens=["<ent>"],
    )
    assert len(named) == 300
    assert named("fox")["input_ids"][0] == named.cls_token_id == 1
    assert named.tokenize("fox") == named.tokenize(" fox")
    assert named.convert_tokens_to_ids("<ent>") < 10
    assert json.loads(named.backend_tokenizer.to_str())["post_processor"]["cls"] == ["[CLS]", 1]


@pytest.mark.parametrize("wanted", [True, False])
def test_progress_is_shown_if_wanted(wanted, corpus, monkeypatch):
    """The library draws the bars, on terminals alone, so what it is asked for is what can be seen here."""
    asked = []

    def trainer(**options):
        asked.append(options["show_progress"])
        return trainers.BpeTrainer(**options)

    monkeypatch.setattr(training, "trainers", types.SimpleNamespace(BpeTrainer=trainer))
    LongformerTokenizer.train_from_files(corpus, 300, show_progress=wanted)
    assert asked == [wanted]


@pytest.mark.parametrize(
    ("files", "size", "message"),
    [
        ([], 300, "files: got none"),
        (["missing.txt"], 300, r"files: got .*missing\.txt, which is no file"),
        (["one.txt"], 260, "vocab_size: got 260, expected at least 261"),
        (["bytes.txt"], 300, "files: training failed"),
    ],
    ids=["no files", "missing file", "size", "no text"],
)
def test_what_cannot_be_trained_is_refused(files, size, message, corpus, tmp_path):
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\x00\xd8")
    with pytest.raises(ValueError, match=message):
        LongformerTokenizer.train_from_files([tmp_path / name for name in files], size, show_progress=False)
