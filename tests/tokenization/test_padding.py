"""``pad``, the collator: equal to transformers', but it changes nothing that it is given."""

import copy

import numpy as np
import pytest
import torch
from all_pairs import all_pairs

ROWS = ["the quick brown fox", "dog", "foxes and dogs said it's quicker"]
OPTIONS = {
    "padding": [True, "longest", "max_length", False],
    "max_length": [None, 40],
    "pad_to_multiple_of": [None, 8],
    "padding_side": [None, "left"],
    "return_attention_mask": [None, False, True],
    "return_tensors": [None, "np", "pt"],
    "given": ["rows", "batch", "one row", "no mask", "tensors", "arrays"],
}


def given(kind, tokenizer):
    names = {"return_special_tokens_mask": True, "return_token_type_ids": True, "return_attention_mask": kind != "no mask"}
    if kind == "one row":
        return tokenizer(ROWS[0], **names)
    if kind == "rows":
        return [tokenizer(text, **names) for text in ROWS]
    if kind in ("tensors", "arrays"):
        tensors = "pt" if kind == "tensors" else "np"
        return [{name: value[0] for name, value in tokenizer(text, return_tensors=tensors, **names).items()} for text in ROWS]
    return tokenizer(ROWS, **names)


def values(encoded):
    return {name: (type(value).__name__, as_list(value)) for name, value in encoded.items()}


def as_list(value):
    """Lists all the way down: rows of different lengths are an array of arrays."""
    value = value.tolist() if hasattr(value, "tolist") else value
    return [as_list(item) for item in value] if isinstance(value, list) else value


def outcome(tokenizer, encoded, options):
    try:
        return values(tokenizer.pad(encoded, **options))
    except ValueError:
        return "ValueError"


@pytest.mark.filterwarnings("ignore:`max_length` is ignored")
def test_pairs_of_options_equal_those_of_transformers(both_small):
    ours, theirs = both_small(model_max_length=32)
    compared = 0
    for row in all_pairs(OPTIONS):
        options = dict(row)
        kind = options.pop("given")
        if options["padding"] is False and kind in ("tensors", "arrays"):
            # Rows that stay of different lengths cannot be tensors; whether that is an error depends on the framework there.
            continue
        encoded, original = given(kind, ours), given(kind, theirs)
        before = copy.deepcopy(encoded)
        got, expected = outcome(ours, encoded, options), outcome(theirs, original, options)
        assert got == expected, row
        assert str(before) == str(encoded)
        compared += isinstance(got, dict)
    assert compared > 15


def test_global_masks_are_filled_up_with_zeros(tokenizer):
    rows = [tokenizer(text, global_attention="first", verbose=False) for text in ROWS]
    padded = tokenizer.pad(rows, padding_side="left", pad_to_multiple_of=8, return_tensors="pt")
    at_once = tokenizer(
        ROWS, global_attention="first", padding=True, padding_side="left", pad_to_multiple_of=8, return_tensors="pt"
    )
    assert {name: value.tolist() for name, value in padded.items()} == {name: value.tolist() for name, value in at_once.items()}


def test_one_tensor_gets_longer(tokenizer):
    batch = tokenizer(["fox", "fox"], return_tensors="pt")
    padded = tokenizer.pad(batch, padding="max_length", max_length=12)
    assert isinstance(padded["input_ids"], torch.Tensor)
    assert padded["input_ids"].shape == (2, 12)
    assert padded["attention_mask"].sum(1).tolist() == [batch["input_ids"].shape[1]] * 2
    one = {name: value[0] for name, value in tokenizer("fox", return_tensors="np").items()}
    padded = tokenizer.pad(one, padding="max_length", max_length=12)
    assert isinstance(padded["input_ids"], np.ndarray)
    assert padded["input_ids"].shape == (12,)


def test_nothing_is_padded_to_nothing(tokenizer):
    assert dict(tokenizer.pad({"input_ids": []})) == {"input_ids": [], "attention_mask": []}


@pytest.mark.parametrize(
    ("encoded", "kind", "message"),
    [
        ({"attention_mask": [[1]]}, ValueError, r"that includes input_ids, but you provided \['attention_mask'\]"),
        ([], TypeError, "encoded_inputs: got list of nothing"),
        ("fox", TypeError, "encoded_inputs: got str, expected a mapping"),
        ([[0, 5, 2]], TypeError, "encoded_inputs: got list of list"),
        ([{"input_ids": [0]}, {"input_ids": [0], "labels": 1}], ValueError, "expected the same entries in all"),
        ({"input_ids": [[0, 2]], "attention_mask": [[1, 1], [1]]}, ValueError, r"got rows \{'attention_mask': 2\}, expected 1"),
    ],
    ids=["no ids", "no rows", "a text", "lists of ids", "other entries", "other numbers"],
)
def test_what_cannot_be_padded_is_refused(encoded, kind, message, tokenizer):
    with pytest.raises(kind, match=message):
        tokenizer.pad(encoded)
    with pytest.raises(ValueError, match="padding_side: got 'up'"):
        tokenizer.pad({"input_ids": [[0]]}, padding_side="up")
