"""Masks of global tokens: where they are, in each form of batch, and never on padding."""

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from longformer_triton.heads import global_tokens
from longformer_triton.tokenization import BatchEncoding
from longformer_triton.tokenization import global_attention as masks

QUESTIONS = ["Who said it?", "Why?"]
TEXTS = [
    "The fox is quick. The dog is lazy! They crossed (in 1984) the longest river of all, and it's said they were quicker.",
    "Naïve foxes.\nThe dog",
]
FORMS = {
    "lists": {},
    "padded": {"padding": True},
    "left": {"padding": True, "padding_side": "left", "return_tensors": "pt"},
    "tensors": {"padding": "max_length", "max_length": 96, "return_tensors": "pt"},
    "arrays": {"padding": True, "return_tensors": "np", "pad_to_multiple_of": 16},
    "without a mask": {"padding": True, "return_attention_mask": False},
}


def rows(value):
    return value.tolist() if hasattr(value, "tolist") else value


def chosen(mask, encoded):
    """For each row the tokens that are global."""
    return [[encoded.tokens(row)[place] for place, value in enumerate(line) if value] for row, line in enumerate(rows(mask))]


@pytest.mark.parametrize("form", FORMS)
def test_the_first_token_is_global_for_classification(form, tokenizer):
    encoded = tokenizer(TEXTS, global_attention="first", **FORMS[form])
    mask = encoded["global_attention_mask"]
    assert chosen(mask, encoded) == [["<s>"], ["<s>"]]
    assert type(mask) is type(encoded["input_ids"])
    assert [len(row) for row in rows(mask)] == [len(row) for row in rows(encoded["input_ids"])]
    assert rows(masks.first_token(encoded)) == rows(mask)


@pytest.mark.filterwarnings("ignore:global_attention")
@pytest.mark.parametrize("form", FORMS)
def test_the_question_is_global_for_question_answering(form, tokenizer):
    encoded = tokenizer(QUESTIONS, TEXTS, global_attention="question", **FORMS[form])
    expected = [["<s>", *tokenizer.tokenize(question)] for question in QUESTIONS]
    assert chosen(encoded["global_attention_mask"], encoded) == expected


@pytest.mark.filterwarnings("ignore:global_attention")
def test_the_question_is_what_the_model_would_choose(tokenizer):
    """Without a mask, the model's head finds the first separator; both have to mean the same tokens."""
    encoded = tokenizer(QUESTIONS, TEXTS, global_attention="question", padding=True, return_tensors="pt")
    by_model = global_tokens.question(encoded["input_ids"], tokenizer.sep_token_id, encoded["attention_mask"])
    assert torch.equal(encoded["global_attention_mask"], by_model)


@pytest.mark.filterwarnings("ignore:global_attention")
def test_the_question_is_global_in_each_window(tokenizer):
    """A separator that the question holds does not end it."""
    question = "Who </s> said?"
    options = {"truncation": "only_second", "max_length": 30, "stride": 4, "return_overflowing_tokens": True, "padding": True}
    encoded = tokenizer(question, TEXTS[0], global_attention="question", **options)
    assert len(encoded["input_ids"]) > 2
    assert chosen(encoded["global_attention_mask"], encoded) == [["<s>", *tokenizer.tokenize(question)]] * len(
        encoded["input_ids"]
    )
    left = {"padding": "max_length", "max_length": 99, "padding_side": "left"}
    for shape in ({}, left):
        encoded = tokenizer([""], [TEXTS[0]], global_attention="question", **shape)
        assert chosen(encoded["global_attention_mask"], encoded) == [["<s>"]]
    encoded = tokenizer("Who?", "The fox", global_attention="question", add_special_tokens=False)
    assert sum(encoded["global_attention_mask"]) == len(tokenizer.tokenize("Who?"))


def test_nothing_is_global_if_so_said_and_there_is_no_mask_unasked(tokenizer):
    assert set(tokenizer(TEXTS[0], global_attention="none")["global_attention_mask"]) == {0}
    assert "global_attention_mask" not in tokenizer(TEXTS[0])


def test_a_function_decides(tokenizer):
    seen = []

    def decide(encoded):
        seen.append(encoded)
        return np.asarray(masks.every(encoded, 10)) > 0

    encoded = tokenizer(TEXTS, padding=True, return_tensors="pt", global_attention=decide)
    assert isinstance(seen[0]["input_ids"], list)
    assert torch.equal(encoded["global_attention_mask"], masks.every(encoded, 10))
    one = tokenizer(TEXTS[0], global_attention=lambda encoded: [[1] + [0] * (len(encoded["input_ids"][0]) - 1)])
    assert one["global_attention_mask"] == [1] + [0] * (len(one["input_ids"]) - 1)
    everything = lambda encoded: [[1] * len(row) for row in encoded["input_ids"]]  # noqa: E731
    with pytest.warns(UserWarning, match="more than a quarter"):
        encoded = tokenizer(TEXTS, padding=True, global_attention=everything)
    assert encoded["global_attention_mask"] == encoded["attention_mask"]


@pytest.mark.parametrize(
    ("wanted", "kind", "message"),
    [
        ("all", ValueError, "global_attention: got 'all', expected 'first', 'question', 'none', or a function"),
        (3, TypeError, "global_attention: got int"),
        ("question", ValueError, "got 'question' for texts without a second part"),
        (lambda encoded: [[1]], ValueError, "the function gave rows of"),
        (lambda encoded: [[2] * len(row) for row in encoded["input_ids"]], ValueError, "each 0 or 1"),
    ],
    ids=["unknown name", "number", "no pair", "too short", "twos"],
)
def test_masks_that_cannot_be_right_are_refused(wanted, kind, message, tokenizer):
    with pytest.raises(kind, match=message):
        tokenizer(TEXTS, global_attention=wanted)


def test_more_than_a_quarter_is_warned_of(tokenizer):
    text = "the fox " * 20
    length = len(tokenizer(text)["input_ids"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tokenizer(text, global_attention=lambda encoded: masks.token_spans(encoded, [[(0, length // 4)]]))
        tokenizer("a", global_attention="first")
        tokenizer(text, padding="max_length", max_length=9 * length, global_attention="first")
    with pytest.warns(UserWarning, match=rf"{length // 4 + 1} of {length} tokens of row 0 are global, more than a quarter"):
        tokenizer(text, global_attention=lambda encoded: masks.token_spans(encoded, [[(0, length // 4 + 1)]]))
    with pytest.warns(UserWarning, match=f"of {length} tokens"):
        # Padding is none of the text.
        tokenizer(
            text,
            padding="max_length",
            max_length=9 * length,
            global_attention=lambda encoded: masks.token_spans(encoded, [[(0, length // 2)]]),
        )


def test_chosen_ids_are_global(tokenizer):
    tokenizer.add_tokens(["<p>"])
    encoded = tokenizer("<p>the fox<p>the dog", "<p>the river")
    ids = [tokenizer.convert_tokens_to_ids("<p>"), tokenizer.cls_token_id]
    mask = masks.token_ids(encoded, ids)
    assert [token for token, value in zip(encoded.tokens(), mask, strict=True) if value] == ["<s>", "<p>", "<p>", "<p>"]
    padded = tokenizer(["<pad>a", ""], padding=True, return_tensors="pt")
    assert masks.token_ids(padded, [tokenizer.pad_token_id]).sum() == 1, "a <pad> in the text is a token, padding is none"


def test_every_nth_token_is_counted_from_the_first_real_one(tokenizer):
    text = "the quick brown fox jumps over it"
    plain = masks.every(tokenizer(text), 3, start=1)
    assert plain == [int(place % 3 == 1) for place in range(len(plain))]
    left = tokenizer([text], padding="max_length", max_length=len(plain) + 5, padding_side="left")
    assert masks.every(left, 3, start=1) == [[0] * 5 + plain]
    padded = tokenizer.pad([tokenizer(text), tokenizer("fox")], return_tensors="pt")
    assert masks.every(padded, 1).tolist() == padded["attention_mask"].tolist()
    with pytest.raises(ValueError, match="step: got 0 from start 0"):
        masks.every(padded, 0)
    with pytest.raises(ValueError, match="from start -1"):
        masks.every(padded, 3, start=-1)


def test_spans_of_tokens_are_global(tokenizer):
    encoded = tokenizer(["the fox", "the quick fox"], padding=True)
    width = len(encoded["input_ids"][0])
    mask = masks.token_spans(encoded, [[(0, 1), (2, width)], []])
    real = encoded["attention_mask"][0]
    assert mask == [[1, 0, *real[2:]], [0] * width]
    with pytest.raises(ValueError, match="bounds: got 1 entries, expected 2, one for each row"):
        masks.token_spans(encoded, [[]])
    with pytest.raises(ValueError, match=rf"bounds: got \(1, 99\) in row 1, expected 0 <= first <= end <= {width}"):
        masks.token_spans(encoded, [[], [(1, 99)]])


@given(data=st.data())
def test_spans_of_characters_are_the_tokens_that_hold_them(data, both_small):
    tokenizer, _ = both_small()
    text = data.draw(st.text(st.sampled_from("ab e\u0301👍東 fox.\n"), min_size=1, max_size=20))
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, len(text)))
    encoded = tokenizer("who", text, return_offsets_mapping=True)
    mask = masks.character_spans(encoded, [[(start, end)]], sequence_index=1)
    inside = set(range(start, end))
    for place, (part, (first, stop)) in enumerate(zip(encoded.sequence_ids(), encoded["offset_mapping"], strict=True)):
        assert mask[place] == int(part == 1 and bool(inside & set(range(first, stop))))


def test_spans_of_characters_are_found_in_each_window(tokenizer):
    options = {"truncation": True, "max_length": 20, "stride": 5, "return_overflowing_tokens": True, "padding": True}
    encoded = tokenizer(TEXTS, **options)
    start = TEXTS[0].index("river")
    mask = masks.character_spans(encoded, [[(start, start + 5)], []])
    found = ["".join(row).replace("Ġ", "") for row in chosen(mask, encoded)]
    assert set(found) == {"river", ""}
    assert all(not row for row, source in zip(found, encoded["overflow_to_sample_mapping"], strict=True) if source == 1)
    with pytest.raises(ValueError, match="bounds: got 3 entries, expected 2, one for each text"):
        masks.character_spans(encoded, [[], [], []])
    with pytest.raises(ValueError, match=r"bounds: got \(4, 2\) in text 1"):
        masks.character_spans(encoded, [[], [(4, 2)]])
    with pytest.raises(ValueError, match="encoded: got ids alone"):
        masks.character_spans(BatchEncoding({"input_ids": [0, 2]}), [[]])


@pytest.mark.parametrize(
    ("text", "starts"),
    [
        ("", []),
        ("  fox", [2]),
        ("The fox. The dog", [0, 9]),
        ('"Why?" he said. "Because!"  So.', [0, 7, 16, 28]),
        ("3.14 per cent", [0]),
        ("a\n\n b\nc", [0, 4, 6]),
        ("Ends here. ", [0]),
    ],
    ids=["nothing", "space", "two", "quotes", "number", "lines", "end"],
)
def test_sentences_begin_behind_marks_and_at_lines(text, starts):
    assert masks.sentence_boundaries(text) == starts


def test_sentence_starts_are_global(tokenizer):
    encoded = tokenizer(QUESTIONS, TEXTS, padding=True, return_tensors="pt")
    mask = masks.sentence_starts(encoded, TEXTS, sequence_index=1)
    for row, text in enumerate(TEXTS):
        places = {encoded.token_to_chars(row, place).start for place in mask[row].nonzero().flatten().tolist()}
        assert places == set(masks.sentence_boundaries(text))
    words = masks.sentence_starts(tokenizer("the fox"), "the fox", starts_of=lambda text: [text.index("fox")])
    assert words == [int(tokenizer("the fox").char_to_token(4) == place) for place in range(len(words))]
    with pytest.raises(ValueError, match="texts: got 1 entries, expected 2"):
        masks.sentence_starts(encoded, TEXTS[0])


@pytest.mark.parametrize("form", ["lists", "tensors", "arrays"])
def test_masks_are_joined(form, tokenizer):
    encoded = tokenizer(TEXTS, **FORMS[form])
    joined = masks.union(masks.first_token(encoded), masks.sentence_starts(encoded, TEXTS), masks.every(encoded, 7))
    apart = [
        rows(mask) for mask in (masks.first_token(encoded), masks.sentence_starts(encoded, TEXTS), masks.every(encoded, 7))
    ]
    assert rows(joined) == [[max(values) for values in zip(*lines, strict=True)] for lines in zip(*apart, strict=True)]
    one = tokenizer(TEXTS[0])
    assert masks.union(masks.first_token(one)) == masks.first_token(one)
