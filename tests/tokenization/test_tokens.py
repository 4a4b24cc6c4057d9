"""Special tokens, added tokens, and the way back from ids to texts."""

import copy
import pickle

import numpy as np
import pytest
import torch
from tokenizers import AddedToken

from longformer_triton.tokenization import LongformerTokenizer
from longformer_triton.tokenization.special import NAMES


@pytest.fixture
def pair(small, transformers):
    """Fresh ones: these tests change them."""
    return LongformerTokenizer.from_pretrained(small), transformers.LongformerTokenizerFast.from_pretrained(small)


def state(tokenizer):
    return {
        **{name: getattr(tokenizer, name) for name in NAMES},
        **{f"{name}_id": getattr(tokenizer, f"{name}_id") for name in NAMES},
        "additional": (tokenizer.additional_special_tokens, tokenizer.additional_special_tokens_ids),
        "all": (tokenizer.all_special_tokens, tokenizer.all_special_ids),
        "map": tokenizer.special_tokens_map,
        "kinds": {name: type(token).__name__ for name, token in tokenizer.special_tokens_map_extended.items()},
        "added": (tokenizer.get_added_vocab(), {place: str(token) for place, token in tokenizer.added_tokens_decoder.items()}),
        "sizes": (len(tokenizer), tokenizer.vocab_size, tokenizer.vocab),
        "room": (tokenizer.max_len_single_sentence, tokenizer.max_len_sentences_pair, tokenizer.pad_token_type_id),
        "text": tokenizer("<ent>the <b> fox[C]</s> <c>")["input_ids"],
    }


STEPS = {
    "tokens": lambda tokenizer: tokenizer.add_tokens(["<b>", "fox", AddedToken("[C]", lstrip=True, single_word=True)]),
    "one token": lambda tokenizer: tokenizer.add_tokens("<b>"),
    "no tokens": lambda tokenizer: tokenizer.add_tokens([]),
    "the same tokens twice": lambda tokenizer: tokenizer.add_tokens(["<b>", "<b>"]) + tokenizer.add_tokens("<b>"),
    "special tokens": lambda tokenizer: tokenizer.add_tokens(["<b>"], special_tokens=True),
    "roles": lambda tokenizer: tokenizer.add_special_tokens({"cls_token": "[C]", "mask_token": AddedToken("<b>", rstrip=True)}),
    "a role for a token that is there": lambda tokenizer: tokenizer.add_special_tokens({"pad_token": "</s>"}),
    "additional tokens": lambda tokenizer: tokenizer.add_special_tokens({"additional_special_tokens": ["<ent>", "<c>"]}),
    "more additional tokens": lambda tokenizer: (
        tokenizer.add_special_tokens({"additional_special_tokens": ["<ent>"]})
        + 10
        * tokenizer.add_special_tokens({"additional_special_tokens": ["<ent>", "<c>"]}, replace_additional_special_tokens=False)
        + 100 * tokenizer.add_special_tokens({"additional_special_tokens": ["<b>"]})
    ),
    "an empty list of additional tokens": lambda tokenizer: (
        tokenizer.add_special_tokens({"additional_special_tokens": ["<ent>"]})
        + 10 * tokenizer.add_special_tokens({"additional_special_tokens": []})
    ),
    "no roles": lambda tokenizer: tokenizer.add_special_tokens({}),
    "an attribute": lambda tokenizer: setattr(tokenizer, "pad_token", "the"),
    "an attribute by id": lambda tokenizer: setattr(tokenizer, "pad_token_id", 2),
    "an attribute without an entry": lambda tokenizer: setattr(tokenizer, "cls_token", "<nowhere>"),
    "a list of additional ones": lambda tokenizer: setattr(tokenizer, "additional_special_tokens", ["fox", "</s>"]),
}


@pytest.mark.parametrize("step", STEPS)
def test_tokens_and_roles_change_as_in_transformers(step, pair):
    ours, theirs = pair
    assert state(ours) == state(theirs)
    assert STEPS[step](ours) == STEPS[step](theirs)
    assert state(ours) == state(theirs)


AGAIN = {
    "once": [["<ent>"]],
    "and another token later": [["<ent>"], ["other"]],
    "with other settings": [[AddedToken("<ent>", lstrip=True, single_word=True)], ["other"]],
    "many times": [["<ent>", "</s>"], ["other", "<ent>"], [AddedToken("<ent>", rstrip=True)]],
}
COPIES = {
    "itself": lambda tokenizer: tokenizer,
    "copied": copy.deepcopy,
    "pickled": lambda tokenizer: pickle.loads(pickle.dumps(tokenizer)),
}


@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
@pytest.mark.parametrize("steps", AGAIN.values(), ids=AGAIN)
def test_a_special_token_that_is_added_again_stays_special(steps, copied, small, transformers):
    arguments = {"additional_special_tokens": ["<ent>"]}
    ours = LongformerTokenizer.from_pretrained(small, **arguments)
    theirs = transformers.LongformerTokenizerFast.from_pretrained(small, **arguments)
    for tokens in steps:
        assert ours.add_tokens(tokens) == theirs.add_tokens(tokens)
    ours = copied(ours)
    assert state(ours) == state(theirs)
    text = "the <ent> fox</s> <ent><ent> others"
    for options in ({}, {"split_special_tokens": True}, {"split_special_tokens": True, "max_length": 7, "truncation": True}):
        assert ours(text, **options).tokens() == theirs(text, **options).tokens()
    ids = ours(text)["input_ids"]
    assert ours.decode(ids, skip_special_tokens=True) == theirs.decode(ids, skip_special_tokens=True)
    ours.errors = "strict"
    assert ours.decode(ids, skip_special_tokens=True) == theirs.decode(ids, skip_special_tokens=True)


def test_tokens_that_are_none_are_refused(tokenizer):
    with pytest.raises(ValueError, match="special_tokens_dict: got the key 'first_token', expected some of bos_token"):
        tokenizer.add_special_tokens({"first_token": "a"})
    with pytest.raises(TypeError, match="cls_token: got int"):
        tokenizer.add_special_tokens({"cls_token": 3})
    with pytest.raises(TypeError, match="additional_special_tokens: got str, expected a list"):
        tokenizer.add_special_tokens({"additional_special_tokens": "abc"})
    with pytest.raises(TypeError, match="new_tokens: got int"):
        tokenizer.add_tokens(["a", 5])
    with pytest.raises(TypeError, match="pad_token: got int"):
        tokenizer.pad_token = 4
    assert len(tokenizer) == tokenizer.vocab_size


def test_conversions_equal_those_of_transformers(pair):
    ours, theirs = pair
    for tokens in ("the", "Ġthe", "nowhere", ["the", "<mask>", "nowhere"], []):
        assert ours.convert_tokens_to_ids(tokens) == theirs.convert_tokens_to_ids(tokens)
    for ids in (5, 10**6, [0, 4, 300, 10**6], np.array([4, 300]), torch.tensor([4, 300])):
        assert ours.convert_ids_to_tokens(ids) == theirs.convert_ids_to_tokens(ids)
    assert ours.convert_ids_to_tokens([0, 300, 2], skip_special_tokens=True) == theirs.convert_ids_to_tokens(
        [0, 300, 2], skip_special_tokens=True
    )
    tokens = theirs.tokenize("naïve 東京 foxes")
    assert ours.convert_tokens_to_string(tokens) == theirs.convert_tokens_to_string(tokens)
    assert ours.convert_tokens_to_string(tokens[:-3]) == theirs.convert_tokens_to_string(tokens[:-3])
    for first, second in (([5, 6], None), ([5, 6], [7]), ([], [])):
        for name in ("build_inputs_with_special_tokens", "create_token_type_ids_from_sequences"):
            assert getattr(ours, name)(first, second) == getattr(theirs, name)(first, second)
    assert [ours.num_special_tokens_to_add(pair) for pair in (False, True)] == [2, 4]


@pytest.mark.parametrize(
    "ids", [5, [0, 300, 301, 2], torch.tensor([0, 300, 2]), np.array([300, 4]), [], torch.tensor(7), [10**6, 300]], ids=repr
)
def test_numbers_lists_and_tensors_are_decoded(ids, pair):
    ours, theirs = pair
    for options in ({}, {"skip_special_tokens": True}, {"clean_up_tokenization_spaces": True}):
        assert ours.decode(ids, **options) == theirs.decode(ids, **options)


@pytest.mark.parametrize(
    "rows",
    [[[0, 300, 2], [301]], torch.tensor([[0, 300], [301, 2]]), np.array([[300, 4]]), [torch.tensor([300])], [5, 300], []],
    ids=["lists", "tensor", "array", "list of tensors", "numbers", "nothing"],
)
def test_batches_are_decoded(rows, pair):
    ours, theirs = pair
    assert ours.batch_decode(rows) == theirs.batch_decode(rows)
    assert ours.batch_decode(rows, skip_special_tokens=True) == theirs.batch_decode(rows, skip_special_tokens=True)


def test_spaces_before_punctuation_are_cleaned_up(pair):
    ours, theirs = pair
    text = "it 's a fox , is n't it ? We 've ' seen ' I 'm ! they 're ."
    assert ours.clean_up_tokenization(text) == theirs.clean_up_tokenization(text)
    assert ours.decode(ours(text)["input_ids"], clean_up_tokenization_spaces=True) != ours.decode(ours(text)["input_ids"])


def test_ids_that_cannot_be_decoded_are_named(tokenizer):
    with pytest.raises(ValueError, match="token_ids: got -100 at position 2, expected ids from 0"):
        tokenizer.decode([0, 5, -100])
    with pytest.raises(ValueError, match="ids: got -1 at position 0"):
        tokenizer.convert_ids_to_tokens(-1)
    with pytest.raises(TypeError, match="batch_decode"):
        tokenizer.decode([[1, 2]])
    with pytest.raises(TypeError, match="token_ids: got"):
        tokenizer.decode("abc")


def test_bytes_that_are_no_text_are_decoded_as_errors_says(small):
    """The page documents ``errors``; the fast class reads it and does nothing with it, the slow one does this."""
    tokenizers = {how: LongformerTokenizer.from_pretrained(small, errors=how) for how in ("replace", "ignore", "strict")}
    ids = tokenizers["replace"]("a東", add_special_tokens=False)["input_ids"]
    cut = ids[:-1]
    for tokenizer in tokenizers.values():
        assert tokenizer.decode(ids) == "a東"
        assert tokenizer.decode([0, *ids, 2], skip_special_tokens=True) == "a東"
        assert tokenizer.decode([0, *ids]) == "<s>a東"
    if tokenizers["replace"].decode(cut) != "a":
        assert tokenizers["ignore"].decode(cut) == "a"
        with pytest.raises(UnicodeDecodeError):
            tokenizers["strict"].decode(cut)
    tokenizers["ignore"].add_tokens("日本")
    assert tokenizers["ignore"].decode(tokenizers["ignore"]("日本 fox")["input_ids"], skip_special_tokens=True) == "日本 fox"


def test_special_tokens_masks_of_bare_ids_are_those_of_the_slow_class(small, tokenizer, transformers):
    slow = transformers.LongformerTokenizer.from_pretrained(small)
    for arguments in (([5, 6],), ([5, 6], [7]), ([],), ([], [])):
        assert tokenizer.get_special_tokens_mask(*arguments) == slow.get_special_tokens_mask(*arguments)
    whole = tokenizer("the <mask>", "fox")["input_ids"]
    expected = slow.get_special_tokens_mask(whole, already_has_special_tokens=True)
    assert tokenizer.get_special_tokens_mask(whole, already_has_special_tokens=True) == expected
    assert tokenizer.get_special_tokens_mask(torch.tensor(whole), already_has_special_tokens=True) == expected
    with pytest.raises(ValueError, match="You should not supply"):
        tokenizer.get_special_tokens_mask([5], [6], already_has_special_tokens=True)
