"""The search for answers, and words from tokens, on made-up numbers."""

import itertools
import types

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from longformer_triton.heads.pipelines import Row
from longformer_triton.heads.span_pipelines import QuestionAnswering, TokenClassification, best_spans

NOWHERE = -float("inf")
logits = st.lists(st.one_of(st.integers(-50, 50), st.just(NOWHERE)), min_size=1, max_size=12)


def brute_force(starts, ends, most_tokens):
    pairs = itertools.product(range(len(starts)), repeat=2)
    return sorted(
        ((starts[i] + ends[j], i, j) for i, j in pairs if i <= j < i + most_tokens and starts[i] + ends[j] > NOWHERE),
        key=lambda found: -found[0],
    )


@given(numbers=st.lists(st.tuples(logits.map(lambda row: row[0]), logits.map(lambda row: row[0])), min_size=1, max_size=12),
       most_tokens=st.integers(1, 15), count=st.integers(1, 6))  # fmt: skip
def test_the_best_spans_are_those_of_a_search_through_all(numbers, most_tokens, count):
    starts, ends = (list(map(float, side)) for side in zip(*numbers, strict=True))
    found = best_spans(torch.tensor(starts), torch.tensor(ends), most_tokens, count)
    expected = brute_force(starts, ends, most_tokens)
    assert [value for value, _, _ in found] == [value for value, _, _ in expected[:count]]
    assert set(found) <= set(expected)


def asking(**attributes):
    """The task without a model: only what turns logits into answers."""
    return types.SimpleNamespace(
        _only_context=QuestionAnswering._only_context, _log_total=QuestionAnswering._log_total, **attributes
    )


def window(first, last, text="0123456789"):
    """A row <s> ? </s></s> characters first .. last </s>, one token a character."""
    characters = range(first, last + 1)
    count = len(characters)
    offsets = [(0, 0), (0, 1), (0, 0), (0, 0), *((place, place + 1) for place in characters), (0, 0)]
    return Row([0, 9, 2, 2, *([5] * count), 2], offsets, [None, 0, None, None, *([1] * count), None], [None] * (count + 5))


def scores(row, start, end, value=5.0):
    """Logits that favour the characters start .. end - 1, if the row has them."""
    both = torch.zeros(2, len(row.input_ids))
    for side, character in ((0, start), (1, end - 1)):
        for place, (part, offset) in enumerate(zip(row.part, row.offsets, strict=True)):
            if part == 1 and offset[0] == character:
                both[side, place] = value
    return both


def answer(rows, outputs, **options):
    item = {"question": "?", "context": "0123456789"}
    return QuestionAnswering.result(asking(), item, rows, outputs, **QuestionAnswering.options(asking(), **options))


def test_an_answer_is_a_stretch_of_the_original_text():
    row = window(0, 9)
    found = answer([row], [scores(row, 3, 6)])
    assert {name: found[name] for name in ("answer", "start", "end")} == {"answer": "345", "start": 3, "end": 6}


def test_the_question_and_special_tokens_are_never_the_answer():
    row = window(0, 9)
    output = scores(row, 3, 6)
    output[:, [0, 1, 2, 3, -1]] = 100.0
    assert answer([row], [output])["answer"] == "345"


def test_probabilities_of_all_spans_of_one_character_and_more_sum_to_less_than_one():
    row = window(0, 4)
    found = answer([row], [torch.randn(2, 10)], top_k=100)
    total = sum(one["score"] for one in found)
    # Pairs with the end before the start are the rest.
    assert 0.5 < total < 1.0
    assert [one["score"] for one in found] == sorted((one["score"] for one in found), reverse=True)


def test_an_answer_in_two_windows_is_one_answer():
    rows = [window(0, 6), window(4, 9)]
    found = answer(rows, [scores(rows[0], 5, 6, 4.0), scores(rows[1], 5, 6, 6.0)], top_k=3)
    assert [(one["start"], one["end"]) for one in found].count((5, 6)) == 1
    assert (found[0]["start"], found[0]["end"]) == (5, 6)


def test_the_surer_window_wins():
    rows = [window(0, 5), window(5, 9)]
    assert answer(rows, [scores(rows[0], 1, 2, 4.0), scores(rows[1], 7, 9, 6.0)])["answer"] == "78"


def test_a_long_answer_is_cut_off_by_the_limit():
    row = window(0, 9)
    found = answer([row], [scores(row, 1, 9)], max_answer_tokens=3)
    assert found["end"] - found["start"] <= 3


@pytest.mark.parametrize(("weight", "expected"), [(9.0, ""), (-9.0, "345")], ids=["no_answer", "an_answer"])
def test_no_answer_competes_if_asked(weight, expected):
    row = window(0, 9)
    output = scores(row, 3, 6)
    output[:, 0] = weight
    assert answer([row], [output], null_answer=True)["answer"] == expected
    assert answer([row], [output])["answer"] == "345"


def test_an_answer_in_one_window_outweighs_doubts_in_another():
    rows = [window(0, 5), window(5, 9)]
    outputs = [scores(rows[0], 1, 2, 0.0), scores(rows[1], 7, 9, 6.0)]
    outputs[0][:, 0], outputs[1][:, 0] = 20.0, -5.0
    assert answer(rows, outputs, null_answer=True)["answer"] == "78"


LABELS = {0: "O", 1: "B-PER", 2: "I-PER", 3: "LOC"}
TEXT = "Anna Lee saw Rome"


def tagging():
    config = types.SimpleNamespace(id2label=LABELS)
    return types.SimpleNamespace(model=types.SimpleNamespace(config=config))


def tokens(*entries):
    """(row, probabilities) of tokens (first, last, word, label, probability)."""
    row = Row([5] * len(entries), [entry[:2] for entry in entries], [0] * len(entries), [entry[2] for entry in entries])
    rest = [(1 - entry[4]) / (len(LABELS) - 1) for entry in entries]
    output = torch.tensor([[other] * len(LABELS) for other in rest])
    for place, entry in enumerate(entries):
        output[place, entry[3]] = entry[4]
    return row, output


def tags(*parts, **options):
    rows, outputs = zip(*parts, strict=True)
    return TokenClassification.result(tagging(), TEXT, rows, outputs, **TokenClassification.options(tagging(), **options))


ANNA = ((0, 2, 0, 1, 0.9), (2, 4, 0, 2, 0.95), (5, 8, 1, 2, 0.8), (9, 12, 2, 0, 0.9), (13, 17, 3, 3, 0.7))


def test_tokens_come_one_by_one_without_aggregation():
    found = tags(tokens(*ANNA), aggregation="none")
    assert [(one["word"], one["label"], one["index"]) for one in found] == [
        ("An", "B-PER", 0), ("na", "I-PER", 1), ("Lee", "I-PER", 2), ("Rome", "LOC", 4),
    ]  # fmt: skip


def test_tokens_count_from_the_beginning_special_ones_too():
    """As in transformers' pipeline, whatever is left out."""
    row, output = tokens((0, 0, None, 0, 0.9), *ANNA, (0, 0, None, 0, 0.9))
    row.part[0] = row.part[-1] = None
    found = tags((row, output), aggregation="none")
    assert [one["index"] for one in found] == [1, 2, 3, 5]


@pytest.mark.parametrize("aggregation", ["first", "average", "max"])
def test_words_of_one_name_are_one_entity(aggregation):
    found = tags(tokens(*ANNA), aggregation=aggregation)
    assert [(one["word"], one["label"], one["start"], one["end"]) for one in found] == [
        ("Anna Lee", "PER", 0, 8),
        ("Rome", "LOC", 13, 17),
    ]


def test_aggregations_differ_in_which_token_speaks_for_a_word():
    split = ((0, 2, 0, 3, 0.6), (2, 4, 0, 1, 0.9))
    assert [tags(tokens(*split), aggregation=kind)[0]["label"] for kind in ("first", "average", "max")] == ["LOC", "PER", "PER"]


def test_spaces_alone_are_no_word():
    assert tags(tokens((0, 4, 0, 1, 0.9), (5, 5, 1, 3, 0.9)))[-1]["word"] == "Anna"


def test_a_new_beginning_is_a_new_name():
    found = tags(tokens((0, 4, 0, 1, 0.9), (5, 8, 1, 1, 0.9)))
    assert [one["word"] for one in found] == ["Anna", "Lee"]


def test_of_two_windows_the_one_with_more_text_around_a_token_speaks():
    first = tokens((0, 4, 0, 1, 0.9), (5, 8, 1, 0, 0.9))
    second = tokens((5, 8, 1, 2, 0.9), (9, 12, 2, 0, 0.9))
    middle = tokens((0, 4, 0, 0, 0.9), (5, 8, 1, 2, 0.9), (9, 12, 2, 0, 0.9))
    assert [one["word"] for one in tags(first, second, middle, aggregation="none")] == ["Anna", "Lee"]


def test_aggregations_have_names():
    with pytest.raises(ValueError, match="aggregation: got 'mean', expected one of none, first"):
        tags(tokens(*ANNA), aggregation="mean")
