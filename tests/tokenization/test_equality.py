"""Our results are those of transformers' fast tokenizer: options in pairs, any Unicode, and a whole corpus."""

import itertools
import logging
import unicodedata
import warnings
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
import torch
from all_pairs import all_pairs
from hypothesis import given
from hypothesis import strategies as st

TEXT = " The  quick\tbrown fox, it's 1984;\n\n<mask> naïve 東京 👩‍👩‍👧 said </s>won't "
OTHER = "Why? Because the longest river is longer."
LONG = "the quick fox and the lazy dog crossed 27,000 rivers. " * 6
INPUTS = {
    "one": (TEXT, None),
    "empty": ("", None),
    "pair": (TEXT, OTHER),
    "pair with an empty second text": (TEXT, ""),
    "batch": ([TEXT, "", LONG, "fox"], None),
    "batch of pairs": ([TEXT, LONG, "fox"], [OTHER, "Who?", LONG]),
    "pairs with an empty text": (["", LONG], [OTHER, ""]),
}
WORDS = {
    "one": (TEXT.split(), None),
    "no words": ([], None),
    "pair": (TEXT.split(), OTHER.split()),
    "batch": ([LONG.split(), ["fox", "", "\u00a0dog", " the"], ["won't"]], None),
    "batch of pairs": ([LONG.split(), ["fox"]], [["Who?"], LONG.split()]),
}
METHODS = {
    "word_ids": lambda row, encoded: encoded.word_ids(row),
    "sequence_ids": lambda row, encoded: encoded.sequence_ids(row),
    "tokens": lambda row, encoded: encoded.tokens(row),
}


def plain(value):
    """Tensors as (kind, shape, values)."""
    if isinstance(value, torch.Tensor):
        return ("pt", tuple(value.shape), value.tolist())
    if isinstance(value, np.ndarray):
        return ("np", value.shape, [row.tolist() for row in value] if value.dtype == object else value.tolist())
    return value


def outcome(call):
    """What a call gives, or the kind of its failure."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            encoded = call()
        except BaseException as error:
            # What the library raises is a plain Exception, or a panic that no "except Exception" catches; ours is a ValueError.
            kind = type(error).__name__
            return "ValueError" if kind in ("Exception", "PanicException") else kind
    rows = range(len(encoded.encodings))
    return (
        {name: plain(value) for name, value in encoded.items()},
        {name: [method(row, encoded) for row in rows] for name, method in METHODS.items()},
    )


def assert_equal_outcomes(pair, *texts, **options):
    ours, theirs = pair
    logging.disable(logging.WARNING)
    try:
        got, expected = outcome(lambda: ours(*texts, **options)), outcome(lambda: theirs(*texts, **options))
    finally:
        logging.disable(logging.NOTSET)
    assert got == expected
    if isinstance(expected, str):
        return False
    assert list(got[0]) == list(expected[0])
    return True


SHAPES = {
    "padding": [False, True, "longest", "max_length", "do_not_pad"],
    "truncation": [None, False, True, "longest_first", "only_first", "only_second", "do_not_truncate"],
    "max_length": [None, 12, 24],
    "stride": [0, 3],
    "padding_side": [None, "left", "right"],
    "pad_to_multiple_of": [None, 8],
    "return_overflowing_tokens": [False, True],
    "return_tensors": [None, "pt", "np"],
    "add_special_tokens": [True, False],
    "texts": list(INPUTS),
}
CONTENTS = {
    "return_special_tokens_mask": [False, True],
    "return_offsets_mapping": [False, True],
    "return_attention_mask": [None, False, True],
    "return_token_type_ids": [None, False, True],
    "return_length": [False, True],
    "split_special_tokens": [False, True],
    "add_prefix_space": [False, True],
    "trim_offsets": [True, False],
    "truncation_side": ["right", "left"],
    "made_padding_side": ["right", "left"],
    "model_max_length": [None, 16],
    "padding": [False, True, "max_length"],
    "truncation": [False, True],
    "return_tensors": [None, "pt"],
    "texts": list(INPUTS),
}


def named(row):
    return " ".join(f"{name}={value}" for name, value in row.items())


def test_pairs_of_options_about_lengths(both):
    encoded = []
    for row in all_pairs(SHAPES):
        options = dict(row)
        texts = INPUTS[options.pop("texts")]
        if texts[0] == "" and not row["add_special_tokens"] and row["return_tensors"]:
            # A row without tokens: test_calls.py.
            continue
        try:
            encoded.append(assert_equal_outcomes(both(model_max_length=32), *texts, **options))
        except AssertionError as error:
            raise AssertionError(named(row)) from error
    assert sum(encoded) > len(encoded) / 3, "most of these options are refused, so little is compared"


def test_pairs_of_options_about_what_is_returned(both):
    for row in all_pairs(CONTENTS):
        options = dict(row)
        texts = INPUTS[options.pop("texts")]
        made = {name: options.pop(name) for name in ("add_prefix_space", "trim_offsets", "truncation_side", "model_max_length")}
        made["padding_side"] = options.pop("made_padding_side")
        try:
            assert_equal_outcomes(both(**made), *texts, **options)
        except AssertionError as error:
            raise AssertionError(named(row)) from error


@pytest.mark.parametrize("words", WORDS)
@pytest.mark.parametrize("add_prefix_space", [True, False], ids=["prefix space", "no prefix space"])
def test_texts_that_are_split_into_words(words, add_prefix_space, both):
    """The fast class refuses them without ``add_prefix_space``; documented is a space before each word either way."""
    ours, _ = both(add_prefix_space=add_prefix_space)
    _, theirs = both(add_prefix_space=True)
    for options in all_pairs({"padding": [False, True], "truncation": [False, True], "max_length": [None, 12]}):
        more = {"return_offsets_mapping": True, "is_split_into_words": True}
        assert_equal_outcomes((ours, theirs), *WORDS[words], **options, **more)


def test_words_are_cut_as_the_slow_class_cuts_them(both_small, small, transformers):
    ours, _ = both_small()
    slow = transformers.LongformerTokenizer.from_pretrained(small)
    for text, pair in [(["The", "quick", "fox's", "naïve", "<mask>"], None), (["Who", "said?"], ["the", "dog"])]:
        expected = slow(text, pair, is_split_into_words=True)
        assert ours(text, pair, is_split_into_words=True)["input_ids"] == expected["input_ids"]


# Blocks that are cut badly more often than others: marks that combine, emoji joined to one picture, direction and control.
UNICODE = st.lists(
    st.one_of(
        st.text(st.characters(exclude_categories=["Cs"]), max_size=6),
        st.text(st.characters(categories=["Mn", "Me", "Mc"]), min_size=1, max_size=3),
        st.text(st.characters(categories=["Cc", "Cf", "Zs", "Zl", "Zp"]), min_size=1, max_size=3),
        st.text(st.characters(min_codepoint=0x590, max_codepoint=0x6FF), min_size=1, max_size=5),
        st.sampled_from(
            [
                "👩‍👩‍👧",
                "👍🏽",
                "🏳️‍🌈",
                "🇩🇪",
                "e\u0301",
                "\u200b",
                "\u200d",
                "\ufeff",
                "\u202e",
                "\x00",
                "\r\n",
                "''ll",
                "1\u20e3",
            ]
        ),
        st.sampled_from(["<mask>", " <mask>", "<s>", "</s>", "<pad>", "<unk>", "< mask>", "Ġ", "the", " fox", "  ", "\t"]),
    ),
    max_size=8,
).map("".join)


def assert_same_text(pair, text, other):
    ours, theirs = pair
    options = {"return_offsets_mapping": True, "return_special_tokens_mask": True}
    assert_equal_outcomes(pair, text, other, **options)
    assert_equal_outcomes(pair, text, split_special_tokens=True, **options)
    ids = theirs(text)["input_ids"]
    assert ours.decode(ids) == theirs.decode(ids)
    assert ours.decode(ids[1:-2]) == theirs.decode(ids[1:-2])
    skipped = {"skip_special_tokens": True, "clean_up_tokenization_spaces": True}
    assert ours.decode(ids, **skipped) == theirs.decode(ids, **skipped)
    encoded, original = ours(text), theirs(text)
    for token in range(len(ids)):
        assert encoded.token_to_chars(token) == original.token_to_chars(token)
        assert encoded.token_to_word(token) == original.token_to_word(token)
    for character in range(len(text)):
        assert encoded.char_to_token(character) == original.char_to_token(character)
        assert encoded.char_to_word(character) == original.char_to_word(character)


@given(text=UNICODE, other=UNICODE)
def test_any_unicode_in_the_small_vocabulary(text, other, both_small):
    assert_same_text(both_small(), text, other)


@given(text=UNICODE, other=UNICODE)
def test_any_unicode_in_the_vocabulary_of_roberta(text, other, both_real):
    assert_same_text(both_real(), text, other)


@given(text=UNICODE)
def test_texts_survive_the_way_there_and_back(text, both_small):
    """Byte-level BPE loses nothing; only special tokens in the text take spaces with them."""
    ours, _ = both_small()
    if not any(token in text for token in ours.all_special_tokens):
        assert ours.decode(ours(text, add_special_tokens=False)["input_ids"]) == text
        assert unicodedata.normalize("NFC", ours.decode(ours(text)["input_ids"])) == unicodedata.normalize(
            "NFC", f"<s>{text}</s>"
        )


@pytest.mark.parametrize(
    ("texts", "ids"),
    [
        (("Hello world",), [0, 31414, 232, 2]),
        ((" Hello world",), [0, 20920, 232, 2]),
        (("A, <mask> AllenNLP sentence.",), [0, 250, 6, 50264, 3823, 487, 21992, 3645, 4, 2]),
        (("A", "B"), [0, 250, 2, 2, 387, 2]),
    ],
    ids=["text", "space before it", "mask", "pair"],
)
def test_the_known_ids_of_roberta(texts, ids, both_real):
    for tokenizer in both_real():
        assert tokenizer(*texts)["input_ids"] == ids
        assert tokenizer.encode(*texts) == ids


def articles(assets):
    root = ElementTree.parse(assets / "hyperpartisan" / "articles-training-byarticle-20181122.xml").getroot()
    return ["".join(article.itertext()) for article in root]


def test_the_whole_hyperpartisan_set(both_real, assets):
    texts = articles(assets)
    assert len(texts) == 645
    pair = ours, theirs = both_real(model_max_length=4096)
    options = {"truncation": True, "stride": 128, "return_overflowing_tokens": True, "return_offsets_mapping": True}
    assert_equal_outcomes(pair, texts, **options)
    ids = [row[1:-1] for row in ours(texts, verbose=False)["input_ids"]]
    assert ours.batch_decode(ids) == texts
    sample = list(itertools.islice(texts, 0, None, 40))
    assert ours.batch_decode(ids[::40]) == theirs.batch_decode(ids[::40]) == sample
