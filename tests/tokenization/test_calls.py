"""Calls that transformers leaves undefined, or answers badly: what is refused, and with which words."""

import pickle
import re
import threading
from collections.abc import Mapping

import numpy as np
import pytest
import torch

from longformer_triton.tokenization import BatchEncoding, CharSpan, LongformerTokenizer, LongformerTokenizerFast, TokenSpan

HIGH, LOW = "\ud83d", "\udc4d"


@pytest.mark.parametrize(
    ("texts", "options", "message"),
    [
        ((f"ab{HIGH}c",), {}, "lone surrogate '\\ud83d' in text 0 at position 2"),
        ((["fine", f"{LOW}"],), {}, "lone surrogate '\\udc4d' in text 1 at position 0"),
        (("fine", f"so {LOW}"), {}, "lone surrogate '\\udc4d' in text 0, part 2 at position 3"),
        ((["a", f"b{HIGH}"],), {"is_split_into_words": True}, "lone surrogate '\\ud83d' in text 0, word 1 at position 1"),
        (([["a"], ["b", LOW]],), {"is_split_into_words": True}, "lone surrogate '\\udc4d' in text 1, word 1 at position 0"),
    ],
    ids=["text", "second of a batch", "second of a pair", "word", "word of a batch"],
)
def test_a_lone_surrogate_is_named_with_its_text_and_position(texts, options, message, tokenizer):
    with pytest.raises(ValueError, match=re.escape(message)):
        tokenizer(*texts, **options)


def test_a_surrogate_is_found_in_tokens_too(tokenizer):
    with pytest.raises(ValueError, match="tokens: got the lone surrogate"):
        tokenizer.convert_tokens_to_ids(["a", HIGH])


REFUSED = {
    "nothing": ((None,), {}, ValueError, "text: got None"),
    "no text": ((5,), {}, ValueError, "text: got int, expected a str"),
    "a mapping": (({"a": 1},), {}, ValueError, "text: got dict"),
    "no texts": (([],), {}, ValueError, "text: got an empty list"),
    "something among texts": ((["a", None],), {}, TypeError, "text: got NoneType as text 1"),
    "three parts": (([["a", "b", "c"]],), {}, TypeError, "is_split_into_words=True"),
    "a text among words": ((["a", 3],), {"is_split_into_words": True}, TypeError, "got int as text 0, word 1"),
    "no pair": ((["a", "b"], "c"), {}, TypeError, "text_pair: got a str beside a list"),
    "pairs of other number": ((["a", "b"], ["c"]), {}, ValueError, "text_pair: got 1 texts, expected 2"),
    "unknown padding": (("a",), {"padding": "widest"}, ValueError, "padding: got 'widest', expected True, False, 'longest'"),
    "unknown truncation": (("a",), {"truncation": "last"}, ValueError, "truncation: got 'last'"),
    "unknown side": (("a",), {"padding": True, "padding_side": "up"}, ValueError, "padding_side: got 'up'"),
    "unknown tensors": (("a",), {"return_tensors": "xx"}, ValueError, "return_tensors: got 'xx', expected 'pt'"),
    "tensors of others": (("a",), {"return_tensors": "tf"}, NotImplementedError, "return_tensors: got 'tf'"),
    "negative length": (("a",), {"truncation": True, "max_length": -1}, ValueError, "max_length: got -1, expected at least 0"),
    "no limit": (("a",), {"truncation": True, "max_length": 10**30}, ValueError, "says of no limit"),
    "no length": (("a",), {"truncation": True, "max_length": "12"}, TypeError, "max_length: got '12', expected an integer"),
    "negative stride": (("a",), {"truncation": True, "max_length": 9, "stride": -2}, ValueError, "stride: got -2"),
    "multiple of nothing": (("a",), {"padding": True, "pad_to_multiple_of": 0}, ValueError, "pad_to_multiple_of: got 0"),
    "no room": (("a b c",), {"truncation": True, "max_length": 1}, ValueError, "max_length: got 1, expected at least 2"),
    "no room for pairs": (("a b", "c"), {"truncation": True, "max_length": 3}, ValueError, "expected at least 4"),
    "no multiple": (
        ("a",),
        {"truncation": True, "padding": True, "max_length": 9, "pad_to_multiple_of": 8},
        ValueError,
        "max_length: got 9, expected a multiple of pad_to_multiple_of (8)",
    ),
    "no second text": (
        ("the fox " * 9,),
        {"truncation": "only_second", "max_length": 9},
        ValueError,
        "Second sequence not provided",
    ),
    "first text too short": (
        ("a", "the fox " * 9),
        {"truncation": "only_first", "max_length": 9},
        ValueError,
        "Sequence to truncate too short",
    ),
    "stride over the length": (("a",), {"truncation": True, "max_length": 9, "stride": 8}, ValueError, "stride: got 8"),
    "stride of a part": (
        ("the fox " * 9, "the dog " * 9),
        {"truncation": "only_first", "max_length": 25, "stride": 10},
        ValueError,
        "truncation: got 'only_first' with max_length 25 and stride 10",
    ),
    "rows of different lengths": (
        (["a", "the fox"],),
        {"return_tensors": "pt"},
        ValueError,
        "input_ids: rows differ in length",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_calls_that_cannot_be_right_are_refused_by_name(case, tokenizer):
    texts, options, kind, message = REFUSED[case]
    with pytest.raises(kind, match=re.escape(message)):
        tokenizer(*texts, **options)


def test_a_stride_of_the_length_is_refused_before_the_library_panics(tokenizer, capfd):
    with pytest.raises(ValueError, match="stride: got 4, expected less than 4"):
        tokenizer("the fox " * 9, truncation=True, max_length=6, stride=4, return_overflowing_tokens=True)
    assert not capfd.readouterr().err


def test_padding_without_a_padding_token_is_refused(small):
    tokenizer = LongformerTokenizer.from_pretrained(small, pad_token=None)
    assert tokenizer.pad_token is None
    assert tokenizer.pad_token_id is None
    with pytest.raises(ValueError, match="the tokenizer has no pad_token"):
        tokenizer(["a", "the fox"], padding=True)
    assert tokenizer("fox")["attention_mask"] == [1] * len(tokenizer("fox")["input_ids"])


def test_rows_without_tokens_are_integers(tokenizer):
    """transformers gives floating-point tensors, which no embedding takes."""
    assert tokenizer("", add_special_tokens=False, return_tensors="pt").input_ids.dtype == torch.int64
    assert tokenizer("", add_special_tokens=False, return_tensors="np").input_ids.dtype == np.int64


def test_the_class_has_two_names():
    assert LongformerTokenizer is LongformerTokenizerFast


def test_a_prefix_space_can_be_asked_for_in_a_call(tokenizer, small):
    made = LongformerTokenizer.from_pretrained(small, add_prefix_space=True)
    for text in ("fox", " fox", ""):
        assert tokenizer(text, add_prefix_space=True)["input_ids"] == made(text)["input_ids"]
        assert made(text, add_prefix_space=False)["input_ids"] == tokenizer(text)["input_ids"]


def test_targets_become_labels(tokenizer):
    encoded = tokenizer("the fox", text_target="the dog", return_tensors="pt")
    assert encoded["labels"].tolist() == tokenizer("the dog", return_tensors="pt").input_ids.tolist()
    assert tokenizer(text_target="the dog")["input_ids"] == tokenizer("the dog")["input_ids"]


def test_the_result_is_a_mapping_that_moves_and_pickles(tokenizer):
    encoded = tokenizer(["the fox", "dog"], padding=True, return_tensors="pt")
    assert isinstance(encoded, Mapping)
    assert set(dict(**encoded)) == {"input_ids", "attention_mask"}
    assert encoded.input_ids is encoded["input_ids"]
    assert encoded.to("cpu") is encoded
    assert encoded.to("meta").input_ids.device.type == "meta"
    with pytest.warns(UserWarning, match="expected a device"):
        encoded.to(torch.float16)
    with pytest.raises(AttributeError, match="no attribute or entry 'labels'"):
        _ = encoded.labels
    encoded = tokenizer(["the fox", "dog"])
    copy = pickle.loads(pickle.dumps(encoded))
    assert copy == encoded
    assert copy.word_ids(1) == encoded.word_ids(1)
    assert encoded[0].ids == encoded["input_ids"][0]
    assert encoded[:1] == {"input_ids": encoded["input_ids"][:1], "attention_mask": encoded["attention_mask"][:1]}
    assert encoded.is_fast
    assert encoded.n_sequences == 1


def test_places_in_texts_and_rows(tokenizer):
    text = "The fox said: naïve foxes"
    encoded = tokenizer([text, text], ["dogs", "it's"], return_offsets_mapping=True)
    offsets = encoded["offset_mapping"]
    for row in (0, 1):
        for token, (start, end) in enumerate(offsets[row]):
            assert encoded.token_to_chars(row, token) == (None if encoded.sequence_ids(row)[token] is None else (start, end))
    place = encoded.char_to_token(1, text.index("naïve"))
    assert isinstance(encoded.token_to_chars(1, place), CharSpan)
    assert encoded.token_to_sequence(1, -2) == 1
    assert encoded.token_to_word(0, 0) is None
    word = encoded.token_to_word(0, place)
    span = encoded.word_to_tokens(0, word)
    assert isinstance(span, TokenSpan)
    assert span.start <= place < span.end
    assert text[slice(*encoded.word_to_chars(0, word))] == "naïve"
    assert encoded.char_to_word(0, 0, sequence_index=1) == 0
    assert encoded.word_to_tokens(0, 99) is None
    with pytest.raises(ValueError, match="word_ids: these rows carry ids alone"):
        BatchEncoding({"input_ids": [0, 2]}).word_ids()


def test_one_text_is_encoded_and_tokenized(tokenizer):
    assert tokenizer.tokenize("the fox", "dog") == tokenizer("the fox", "dog", add_special_tokens=False).tokens()
    assert tokenizer.tokenize("fox", add_special_tokens=True)[0] == "<s>"
    assert tokenizer.encode(["the", "fox"], is_split_into_words=True) == tokenizer.encode(" the fox")
    assert tokenizer.encode("fox", return_tensors="pt").shape == (1, len(tokenizer.encode("fox")))
    with pytest.raises(ValueError, match="for several texts call the tokenizer"):
        tokenizer.encode(["the", "fox"])


def test_warnings_are_given_once_and_can_be_silenced(small, caplog):
    tokenizer = LongformerTokenizer.from_pretrained(small, model_max_length=8)
    tokenizer("the quick brown fox jumps over it", verbose=False)
    assert not caplog.records
    for _ in range(2):
        tokenizer("the quick brown fox jumps over it")
    assert [record.message.split(":")[0] for record in caplog.records] == ["texts"]
    assert len(tokenizer("the quick brown fox", max_length=4)["input_ids"]) == 4
    LongformerTokenizer.from_pretrained(small)("the fox", truncation=True)
    assert [record.message.split(":")[0] for record in caplog.records] == ["texts", "max_length", "max_length"]
    with pytest.warns(UserWarning, match="`max_length` is ignored when `padding`=`True`"):
        tokenizer("the fox", padding=True, max_length=8, truncation=False)


def test_threads_with_other_options_do_not_disturb_each_other(tokenizer):
    """transformers keeps truncation and padding in the object: it raises "Already borrowed", or cuts at another's length."""
    texts = ["the quick brown fox jumps over the lazy dog " * 20] * 4
    lengths = [10, 20, 30, None]
    wrong = []

    def work(length):
        for _ in range(15):
            options = {} if length is None else {"truncation": True, "max_length": length, "padding": "max_length"}
            rows = tokenizer(texts, **options)["input_ids"]
            if {len(row) for row in rows} != {length or len(expected)}:
                wrong.append(length)
            tokenizer.add_tokens(f"new{threading.get_ident()}")
            tokenizer.decode(rows[0])

    expected = tokenizer(texts[0])["input_ids"]
    threads = [threading.Thread(target=work, args=(length,)) for length in lengths]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_many_settings_are_forgotten_again(tokenizer):
    for length in range(4, 90):
        assert len(tokenizer("the quick brown fox " * 30, truncation=True, max_length=length)["input_ids"]) == length
    assert len(tokenizer._backend._views) <= 32
    assert len(tokenizer("the fox " * 50)["input_ids"]) > 90
