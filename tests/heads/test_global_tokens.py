"""Which tokens each head makes global, what it refuses, and the examples of the documentation."""

import doctest
import importlib
import logging
import pkgutil

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from model_cases import MODELS, PADDING, SEPARATOR, ours

import longformer_triton.heads
import longformer_triton.model
from longformer_triton import AttentionPattern
from longformer_triton.heads.global_tokens import after_first_separators, first_token, question, tell_nothing_is_global

pytestmark = pytest.mark.usefixtures("one_thread")

HEADS = MODELS[1:]
BY_SEPARATOR = ("LongformerForQuestionAnswering", "LongformerForMultipleChoice")
S, P = SEPARATOR, PADDING
IDS = torch.tensor(
    [
        [0, 11, 12, S, S, 13, 14, 15, S, 16],
        [0, 11, S, 13, S, 15, S, S, P, P],
        [0, 11, 12, 13, 14, 15, 16, S, P, P],
        [S, 11, 12, 13, 14, 15, 16, 17, 18, S],
        [P, P, P, 0, 14, S, S, 16, 17, S],
    ]
)
REAL = (IDS != P).long()
# What transformers makes global: before the first separator; after the first and the token that follows it.
QUESTION = [
    [1, 1, 1, 0, 0, 0, 0, 0, 0, 0],
    [1, 1, 0, 0, 0, 0, 0, 0, 0, 0],
    [1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
    [0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    [1, 1, 1, 1, 1, 0, 0, 0, 0, 0],
]
AFTER = [
    [0, 0, 0, 0, 0, 1, 1, 1, 1, 1],
    [0, 0, 0, 0, 1, 1, 1, 1, 1, 1],
    [0, 0, 0, 0, 0, 0, 0, 0, 0, 1],
    [0, 0, 1, 1, 1, 1, 1, 1, 1, 1],
    [0, 0, 0, 0, 0, 0, 0, 1, 1, 1],
]
FIRST = [[1] + [0] * 9] * 5
NONE = [[0] * 10] * 5
DEFAULTS = {
    "LongformerForMaskedLM": NONE,
    "LongformerForSequenceClassification": FIRST,
    "LongformerForMultipleChoice": AFTER,
    "LongformerForTokenClassification": NONE,
    "LongformerForQuestionAnswering": QUESTION,
}


def shaped(name, inputs):
    """The same texts, for multiple choice as the only choices of their questions."""
    return {key: value[:, None] for key, value in inputs.items()} if name.endswith("Choice") else inputs


@pytest.fixture
def patterns(monkeypatch):
    """Collects the patterns that models build."""
    built, original = [], AttentionPattern.from_masks
    monkeypatch.setattr(AttentionPattern, "from_masks", lambda *a, **k: built.append(original(*a, **k)) or built[-1])
    return built


def marked(pattern):
    mask = pattern.global_mask
    return torch.zeros(pattern.batch, pattern.seq_len) if mask is None else mask.float()


# --- defaults ---------------------------------------------------------------------------------------------------------


def test_separators_divide_a_text_as_transformers_divides_it():
    assert question(IDS, S, REAL).tolist() == QUESTION
    assert after_first_separators(IDS, S, REAL).tolist() == AFTER
    assert first_token(IDS).tolist() == first_token(torch.zeros(5, 10, 3)).tolist() == FIRST
    assert {mask.dtype for mask in (question(IDS, S), after_first_separators(IDS, S), first_token(IDS))} == {torch.int64}


def test_a_row_without_a_separator_marks_nothing():
    padding = torch.full((1, 4), P)
    for default in (question, after_first_separators):
        assert default(padding, S, torch.zeros_like(padding)).tolist() == [[0, 0, 0, 0]]


@given(st.lists(st.lists(st.sampled_from([S, 5]), min_size=6, max_size=6), min_size=1, max_size=4))
def test_only_the_first_separator_of_a_row_counts(rows):
    rows = [[5] * (number % 3) + row + [S] for number, row in enumerate(rows)]
    width = max(map(len, rows))
    ids = torch.tensor([row + [5] * (width - len(row)) for row in rows])
    for number, row in enumerate(rows):
        first = row.index(S)
        assert question(ids, S)[number].tolist() == [int(place < first) for place in range(width)]
        assert after_first_separators(ids, S)[number].tolist() == [int(place > first + 1) for place in range(width)]


@pytest.mark.parametrize("name", HEADS)
def test_the_task_says_which_tokens_are_global(name, patterns):
    model = ours(name)
    without = model(**shaped(name, {"input_ids": IDS, "attention_mask": REAL}))[0]
    expected = torch.tensor(DEFAULTS[name])
    assert torch.equal(marked(patterns[0]), (expected * REAL).float()), "masked tokens are never global"
    spelled_out = {"input_ids": IDS, "attention_mask": REAL, "global_attention_mask": expected}
    assert torch.equal(without, model(**shaped(name, spelled_out))[0])
    assert [len(index) for index in patterns[0].global_index] == [max((expected * REAL).sum(1))] * 5


@pytest.mark.parametrize("name", HEADS)
def test_a_mask_that_is_given_is_taken_as_it_is(name, patterns):
    model = ours(name)
    given_mask = torch.zeros_like(IDS)
    given_mask[:, 7] = 1
    for mask in (given_mask, torch.zeros_like(IDS)):
        model(**shaped(name, {"input_ids": IDS, "attention_mask": REAL, "global_attention_mask": mask}))
        assert torch.equal(marked(patterns.pop()), (mask * REAL).float())


@pytest.mark.parametrize("name", HEADS)
def test_the_separator_and_the_padding_are_those_of_the_configuration(name, patterns):
    other = torch.where(IDS == S, 33, IDS)
    ours(name, sep_token_id=33)(**shaped(name, {"input_ids": other, "attention_mask": REAL}))
    assert torch.equal(marked(patterns[0]), (torch.tensor(DEFAULTS[name]) * REAL).float())


# --- separators -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BY_SEPARATOR)
def test_rows_may_have_different_numbers_of_separators(name):
    """transformers asks for three in every row; here a batch computes what its rows do alone."""
    model = ours(name).double()
    inputs = shaped(name, {"input_ids": IDS, "attention_mask": REAL})
    together = model(**inputs)[0]
    for row in range(len(IDS)):
        alone = model(**{key: value[row : row + 1] for key, value in inputs.items()})[0]
        torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", BY_SEPARATOR)
def test_a_text_without_a_separator_is_refused(name):
    ids = IDS.clone()
    ids[2, 7] = 17
    inputs = shaped(name, {"input_ids": ids, "attention_mask": REAL})
    words = r"input_ids: row 2 has 0 separators \(sep_token_id 2\).*1 of 5 rows.*pair.*global_attention_mask"
    with pytest.raises(ValueError, match=words):
        ours(name)(**inputs)
    # With a mask, nobody looks for separators.
    ours(name)(**inputs, **shaped(name, {"global_attention_mask": torch.zeros_like(ids)}))


@pytest.mark.parametrize("name", BY_SEPARATOR)
def test_an_unknown_separator_is_refused_where_it_is_needed(name):
    """As it is after converting a BERT whose tokenizer is not at hand."""
    model = ours(name, sep_token_id=None)
    arguments = shaped(name, {"input_ids": IDS, "attention_mask": REAL})
    with pytest.raises(ValueError, match=r"sep_token_id: got None.*model\.config\.sep_token_id.*global_attention_mask"):
        model(**arguments)
    assert model(**arguments, global_attention_mask=torch.zeros_like(arguments["input_ids"]))[0].isfinite().all()


@pytest.mark.parametrize("name", BY_SEPARATOR)
def test_a_row_of_padding_needs_no_separator(name, patterns):
    ids, real = IDS.clone(), REAL.clone()
    ids[1], real[1] = P, 0
    got = ours(name)(**shaped(name, {"input_ids": ids, "attention_mask": real}))[0]
    assert got.isfinite().all()
    assert marked(patterns[0])[1].sum() == 0
    with pytest.raises(ValueError, match="row 1 has 0 separators"):
        ours(name)(**shaped(name, {"input_ids": ids}))


# --- embeddings instead of ids ----------------------------------------------------------------------------------------


def embedded(model, name):
    """``IDS`` as embeddings, with the positions that their ids would have given them."""
    embeddings = model.base_model.embeddings
    positions = REAL.cumsum(1) * REAL + P
    return shaped(name, {"inputs_embeds": embeddings.word_embeddings(IDS), "position_ids": positions, "attention_mask": REAL})


@pytest.mark.parametrize("name", HEADS)
def test_embeddings_with_a_mask_are_as_good_as_ids(name):
    model, mask = ours(name), torch.tensor(DEFAULTS[name])
    expected = model(**shaped(name, {"input_ids": IDS, "attention_mask": REAL}))[0]
    got = model(**embedded(model, name), **shaped(name, {"global_attention_mask": mask}))[0]
    assert torch.equal(got, expected)


@pytest.mark.parametrize("name", HEADS)
def test_embeddings_without_a_mask_show_the_first_token_but_no_separator(name, patterns):
    model = ours(name)
    assert model(**embedded(model, name))[0].isfinite().all()
    is_known = name == "LongformerForSequenceClassification"
    assert torch.equal(marked(patterns[0]), (torch.tensor(FIRST if is_known else NONE) * REAL).float())


@pytest.mark.parametrize("name", ["LongformerForQuestionAnswering", "LongformerForMultipleChoice"])
def test_once_it_is_said_that_embeddings_show_no_separator(name, caplog):
    tell_nothing_is_global.cache_clear()
    model = ours(name)
    inputs = embedded(model, name)
    with caplog.at_level(logging.WARNING, "longformer_triton"):
        model(**inputs, **shaped(name, {"global_attention_mask": torch.zeros_like(IDS)}))
        assert not caplog.records
        model(**inputs)
        model(**inputs)
    (record,) = caplog.records
    assert "global_attention_mask" in record.getMessage()
    assert "inputs_embeds do not show" in record.getMessage()


# --- refusals ---------------------------------------------------------------------------------------------------------

EMBEDDED = torch.zeros(5, 10, 12)
WRONG = {
    "neither": ({}, "input_ids: got neither"),
    "both": ({"input_ids": IDS, "inputs_embeds": EMBEDDED}, "input_ids: got both of input_ids and inputs_embeds"),
    "narrow_embeddings": ({"inputs_embeds": EMBEDDED[..., :5]}, r"inputs_embeds: got shape \(5, 10, 5\).*12"),
    "short_mask": ({"input_ids": IDS, "attention_mask": REAL[:, :9]}, "attention_mask: got shape"),
    "mask_of_fewer_rows": ({"input_ids": IDS, "attention_mask": REAL[:3]}, "attention_mask: got shape"),
    "short_globals": ({"input_ids": IDS, "global_attention_mask": REAL[:, :9]}, "global_attention_mask: got shape"),
    "few_heads": ({"input_ids": IDS, "head_mask": torch.ones(1)}, "head_mask: got shape"),
}


@pytest.mark.parametrize(("arguments", "words"), WRONG.values(), ids=WRONG)
@pytest.mark.parametrize("name", HEADS)
def test_every_head_refuses_by_name(name, arguments, words):
    shaped_too = {key: value if key == "head_mask" else shaped(name, {key: value})[key] for key, value in arguments.items()}
    with pytest.raises(ValueError, match=words):
        ours(name)(**shaped_too)


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("wrong", ["one_text", "no_tokens", "one_mask"])
def test_every_head_refuses_a_wrong_number_of_dimensions(name, wrong):
    """A single text without its batch dimension is the commonest of mistakes; the message says what is expected."""
    arguments = {
        "one_text": {"input_ids": IDS[0]},
        "no_tokens": shaped(name, {"input_ids": IDS[:, :0]}),
        "one_mask": {**shaped(name, {"input_ids": IDS}), "attention_mask": REAL[0]},
    }[wrong]
    words = "attention_mask: got shape" if wrong == "one_mask" else "input_ids: "
    with pytest.raises(ValueError, match=words):
        ours(name)(**arguments)


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize(
    "argument",
    ["input_ids", "inputs_embeds", "attention_mask", "global_attention_mask", "token_type_ids", "position_ids"],
)
def test_every_head_wants_tensors(name, argument):
    given = {} if argument.startswith("input") else {"input_ids": IDS}
    lists = shaped(name, {argument: EMBEDDED if argument == "inputs_embeds" else REAL})[argument].tolist()
    with pytest.raises(TypeError, match=f"^{argument}: got list, expected a tensor"):
        ours(name)(**shaped(name, given), **{argument: lists})


def test_multiple_choice_asks_for_its_dimension_of_choices():
    model = ours("LongformerForMultipleChoice")
    for arguments in ({"input_ids": IDS}, {"inputs_embeds": EMBEDDED}):
        with pytest.raises(ValueError, match=r"got shape .*expected \(batch, num_choices, seq_len\)"):
            model(**arguments)


@pytest.mark.parametrize("num_labels", [1, 3])
def test_question_answering_has_two_labels(num_labels):
    with pytest.raises(ValueError, match=f"num_labels: got {num_labels}, expected 2"):
        ours("LongformerForQuestionAnswering", num_labels=num_labels)


# --- the decoder of the masked language model -------------------------------------------------------------------------


def test_the_decoder_is_the_word_embedding():
    model = ours("LongformerForMaskedLM")
    table = model.longformer.embeddings.word_embeddings.weight
    assert model.lm_head.decoder.weight is table
    assert model.lm_head.bias is model.lm_head.decoder.bias
    names = {"lm_head.decoder.weight", "lm_head.decoder.bias", "lm_head.bias"}
    assert names <= set(model.state_dict()), "checkpoints name them all"
    with torch.no_grad():
        table[7] += 1.0
        model.lm_head.bias[9] += 5.0
    hidden = model.longformer(IDS, attention_mask=REAL).last_hidden_state
    head = model.lm_head
    features = head.layer_norm(torch.nn.functional.gelu(head.dense(hidden)))
    torch.testing.assert_close(model(IDS, attention_mask=REAL).logits, features @ table.T + head.decoder.bias)


def test_the_decoder_is_its_own_if_the_configuration_says_so():
    model = ours("LongformerForMaskedLM", tie_word_embeddings=False)
    assert model.lm_head.decoder.weight is not model.longformer.embeddings.word_embeddings.weight
    assert model.lm_head.bias is model.lm_head.decoder.bias


# --- documentation ----------------------------------------------------------------------------------------------------


def modules():
    for package in (longformer_triton.heads, longformer_triton.model):
        yield package.__name__
        for module in pkgutil.iter_modules(package.__path__):
            yield f"{package.__name__}.{module.name}"


@pytest.mark.parametrize("name", list(modules()))
def test_examples_of_the_documentation_pass(name):
    if name.startswith("longformer_triton.model.patch"):
        pytest.importorskip("transformers", reason="transformers is not installed")
    assert doctest.testmod(importlib.import_module(name)).failed == 0


@pytest.mark.parametrize("name", MODELS)
def test_every_model_has_an_example(name):
    assert ">>> model = " in getattr(longformer_triton, name).__doc__


@pytest.mark.parametrize(("given", "missing"), [("start", "end"), ("end", "start")])
def test_one_position_of_an_answer_asks_for_the_other(given, missing):
    """Without a word the loss would be None."""
    with pytest.raises(ValueError, match=rf"^{missing}_positions: got None with {given}_positions, expected both"):
        ours("LongformerForQuestionAnswering")(IDS, **{f"{given}_positions": torch.ones(len(IDS), dtype=torch.long)})
