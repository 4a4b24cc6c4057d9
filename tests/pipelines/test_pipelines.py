"""Pipelines on untrained models: what goes in and out, in which order, and what is refused."""

import copy
import itertools
import types

import pytest
import torch
from model_cases import TINY
from text_cases import tokenizer_of
from tokenizers import AddedToken

import longformer_triton
from longformer_triton.heads.label_pipelines import Embedding
from longformer_triton.heads.pipelines import pipeline

pytestmark = pytest.mark.usefixtures("one_thread")

WORDS = ["the", "cat", "dog", "saw", "a", "tree", "who", "runs", "far", "away"]
HEADS = {
    "fill-mask": "LongformerForMaskedLM",
    "question-answering": "LongformerForQuestionAnswering",
    "text-classification": "LongformerForSequenceClassification",
    "token-classification": "LongformerForTokenClassification",
    "multiple-choice": "LongformerForMultipleChoice",
    "embedding": "LongformerModel",
}
TEXT = "the cat saw a tree"
INPUTS = {
    "fill-mask": "the <mask> saw a tree",
    "question-answering": {"question": "who saw a tree", "context": TEXT},
    "text-classification": TEXT,
    "token-classification": TEXT,
    "multiple-choice": {"context": TEXT, "choices": ["the cat runs", "the dog runs far away"]},
    "embedding": TEXT,
}
LONG = " ".join(itertools.islice(itertools.cycle(WORDS), 300))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return tokenizer_of(WORDS, tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory, tokenizer):
    """A directory for each task, model and tokenizer in it."""
    folders = {}
    for task, name in HEADS.items():
        torch.manual_seed(3)
        config = longformer_triton.LongformerConfig(**{**TINY, "vocab_size": len(tokenizer)})
        folders[task] = tmp_path_factory.mktemp(task)
        getattr(longformer_triton, name)(config).save_pretrained(folders[task])
        tokenizer.save_pretrained(folders[task])
    return folders


def longer(task, words):
    """The input of a task with more text."""
    more = " ".join(itertools.islice(itertools.cycle(WORDS), words))
    if isinstance(INPUTS[task], str):
        return f"{INPUTS[task]} {more}"
    return {**INPUTS[task], "context": f"{TEXT} {more}"}


def close(got, expected):
    """Whether two results are the same but for rounding."""
    if isinstance(expected, dict):
        return got.keys() == expected.keys() and all(close(got[name], value) for name, value in expected.items())
    if isinstance(expected, (list, tuple)):
        return len(got) == len(expected) and all(map(close, got, expected))
    return got == pytest.approx(expected, abs=1e-5) if isinstance(expected, float) else got == expected


@pytest.mark.parametrize("task", HEADS)
def test_batches_change_nothing_and_keep_the_order(task, checkpoints):
    pipe = pipeline(task, checkpoints[task], batch_size=3)
    inputs = [longer(task, words) for words in (7, 0, 30, 2, 19, 7, 1)]
    together = pipe(inputs)
    assert len(together) == len(inputs)
    assert close(together, [pipe(one) for one in inputs])
    assert close(list(pipe(iter(inputs))), together)
    assert pipe([]) == []


@pytest.mark.parametrize("task", HEADS)
def test_a_model_object_does_what_its_directory_does(task, checkpoints, tokenizer):
    model = getattr(longformer_triton, HEADS[task]).from_pretrained(checkpoints[task]).train()
    pipe = pipeline(task, model, tokenizer)
    assert not model.training
    assert close(pipe(INPUTS[task]), pipeline(task, checkpoints[task])(INPUTS[task]))


def test_a_stream_is_read_as_far_as_is_needed(checkpoints):
    read = []

    def texts():
        for number in itertools.count():
            read.append(number)
            yield TEXT

    results = pipeline("embedding", checkpoints["embedding"], batch_size=2)(texts())
    next(results)
    assert len(read) < 100


def test_dtype_and_device_reach_the_model(checkpoints):
    pipe = pipeline("embedding", checkpoints["embedding"], dtype="bfloat16", device="cpu")
    assert pipe.model.dtype == torch.bfloat16
    assert all(isinstance(number, float) for number in pipe(TEXT)["mean"])


@pytest.mark.parametrize("task", HEADS)
def test_another_default_device_changes_nothing(task, checkpoints):
    pipe, options = pipeline(task, checkpoints[task]), {"targets": [" cat", " dog"]} if task == "fill-mask" else {}
    expected = pipe(INPUTS[task], **options)
    with torch.device("meta"):
        assert pipe(INPUTS[task], **options) == expected


def test_words_behind_masks_come_with_their_texts(checkpoints):
    pipe = pipeline("fill-mask", checkpoints["fill-mask"])
    found = pipe("the <mask> saw a tree", top_k=3)
    assert len(found) == 3
    assert found[0]["score"] >= found[1]["score"]
    assert all(one["sequence"].startswith("the") and one["sequence"].endswith(" saw a tree") for one in found)
    two = pipe("the <mask> saw a <mask>", top_k=2)
    assert [len(words) for words in two] == [2, 2]
    chosen = pipe("the <mask> saw a tree", targets=[" cat", " dog"])
    assert sorted(one["token_str"] for one in chosen) == [" cat", " dog"]
    assert {one["sequence"] for one in chosen} == {"the cat saw a tree", "the dog saw a tree"}


@pytest.mark.parametrize(
    ("text", "target", "expected"),
    [
        ("the <mask> saw", ".", "the. saw"),
        ("the  <mask> saw", " cat", "the cat saw"),
        ("the\n<mask> saw", " cat", "the cat saw"),
        ("the<mask> saw", ".", "the. saw"),
        ("the <mask>", "a", "thea"),
        ("<mask> saw", " cat", " cat saw"),
        (" <mask> saw", ".", ". saw"),
    ],
    ids=["joins", "two_spaces", "line", "no_space", "at_the_end", "at_the_beginning", "space_at_the_beginning"],
)
def test_a_sequence_has_the_spaces_that_the_model_predicted(text, target, expected, checkpoints, tokenizer):
    (found,) = pipeline("fill-mask", checkpoints["fill-mask"])(text, targets=[target])
    assert found["sequence"] == expected
    ids = [found["token"] if token == tokenizer.mask_token_id else token for token in tokenizer(text)["input_ids"]]
    assert tokenizer.decode(ids, skip_special_tokens=True) == expected


def test_a_mask_that_takes_in_no_spaces_leaves_them(checkpoints, tokenizer):
    model = longformer_triton.LongformerForMaskedLM.from_pretrained(checkpoints["fill-mask"])
    strict = copy.deepcopy(tokenizer)
    strict.add_special_tokens({"mask_token": AddedToken("<mask>", lstrip=False)})
    (found,) = pipeline("fill-mask", model, strict)("the <mask> saw", targets=["a"])
    assert found["sequence"] == "the a saw"


@pytest.mark.parametrize(
    ("function", "total"), [("softmax", 1.0), ("sigmoid", None), ("none", None)], ids=["softmax", "sigmoid", "none"]
)
def test_scores_of_labels(checkpoints, function, total):
    found = pipeline("text-classification", checkpoints["text-classification"])(TEXT, top_k=None, function=function)
    assert {one["label"] for one in found} == {"LABEL_0", "LABEL_1"}
    if total is not None:
        assert sum(one["score"] for one in found) == pytest.approx(total)


def test_a_pair_is_classified(checkpoints):
    pipe = pipeline("text-classification", checkpoints["text-classification"])
    found = pipe({"text": TEXT, "text_pair": "a dog runs"})
    assert set(found) == {"label", "score"}
    assert not close(found, pipe(TEXT))


def test_choices_share_one_whole(checkpoints):
    found = pipeline("multiple-choice", checkpoints["multiple-choice"])(INPUTS["multiple-choice"])
    assert sum(found["scores"]) == pytest.approx(1.0)
    assert found["text"] == INPUTS["multiple-choice"]["choices"][found["choice"]]


def test_the_mean_of_an_embedding_is_over_real_tokens(checkpoints, tokenizer):
    pipe = pipeline("embedding", checkpoints["embedding"])
    encoded = tokenizer(TEXT, return_tensors="pt")
    marked = torch.zeros_like(encoded["input_ids"])
    marked[:, 0] = 1
    with torch.no_grad():
        states = pipe.model(**encoded, global_attention_mask=marked).last_hidden_state[0]
    found = pipe([TEXT, LONG[:150]])[0]
    torch.testing.assert_close(torch.tensor(found["mean"]), states.mean(0), atol=1e-5, rtol=0)
    torch.testing.assert_close(torch.tensor(found["cls"]), states[0], atol=1e-5, rtol=0)


def test_the_mean_of_an_embedding_is_a_number_in_half_precision():
    """The sum is beyond the largest float16, 65504."""
    states = torch.full((1, 1000, 2), 100.0, dtype=torch.float16)
    stub = types.SimpleNamespace(model=lambda *_, **__: types.SimpleNamespace(last_hidden_state=states))
    mask = torch.ones(1, 1000, dtype=torch.int64)
    assert Embedding.forward(stub, mask, mask).tolist() == [[[100.0, 100.0]] * 2]


@pytest.mark.parametrize("task", [task for task in HEADS if task not in ("question-answering", "token-classification")])
def test_texts_longer_than_the_positions_are_refused_with_the_remedy(task, checkpoints):
    pipe = pipeline(task, checkpoints[task])
    with pytest.raises(ValueError, match=r"^input 1: got \d+ tokens, expected at most 118.*too_long='truncate'"):
        pipe([INPUTS[task], longer(task, 200)])
    assert pipeline(task, checkpoints[task], too_long="truncate")(longer(task, 200))


@pytest.mark.parametrize("task", ["question-answering", "token-classification"])
def test_long_texts_are_split_and_every_part_is_seen(task, checkpoints):
    pipe = pipeline(task, checkpoints[task], stride=20)
    found = pipe(longer(task, 400), **({"top_k": 5000} if task == "question-answering" else {"ignore_labels": ()}))
    length = len(longer(task, 400)["context"] if task == "question-answering" else longer(task, 400))
    places = {one["start"] for one in found}
    assert min(places) < 50
    assert max(places) > length - 50


def test_a_question_and_its_context_may_be_two_arguments(checkpoints):
    ask, one = pipeline("question-answering", checkpoints["question-answering"]), INPUTS["question-answering"]
    assert ask(**one, top_k=2) == ask(one, top_k=2)
    for given, error, message in (
        ({"question": "who"}, ValueError, "input 0: got no 'context' among .'question'., expected {'question': a text"),
        ({"question": "who", "context": [TEXT]}, TypeError, "input 0: got list for 'context', expected {'question': a text"),
        ({"inputs": one, "question": "who"}, TypeError, "inputs: got some beside question, expected either"),
        ({}, TypeError, "inputs: got NoneType, expected {'question': a text"),
    ):
        with pytest.raises(error, match=message):
            ask(**given)


@pytest.mark.parametrize(
    ("text", "words"),
    [("   ", []), ("a\n\ncat", ["a", "cat"]), (" a\t\tcat \r\n", ["a", "cat"]), ("a   cat", ["a", "cat"])],
    ids=["nothing_else", "lines", "tabs", "spaces"],
)
def test_white_space_is_no_word(text, words, checkpoints):
    pipe = pipeline("token-classification", checkpoints["token-classification"])
    with torch.no_grad():  # the same label for all, and each word a beginning, which no other joins
        pipe.model.classifier.bias[0] += 100
    pipe.model.config.id2label[0] = "B-X"
    assert [one["word"] for one in pipe(text)] == words


def test_answers_never_come_from_the_question(checkpoints):
    pipe = pipeline("question-answering", checkpoints["question-answering"])
    for one in pipe({"question": "who saw a dog", "context": "the cat runs"}, top_k=100):
        assert one["answer"] == "the cat runs"[one["start"] : one["end"]]
        assert one["answer"]


@pytest.mark.parametrize(
    ("task", "given", "error", "message"),
    [
        ("embedding", 3, TypeError, "inputs: got int, expected a text"),
        ("embedding", [TEXT, 3], TypeError, "input 1: got int, expected a text"),
        ("question-answering", {"question": "who"}, ValueError, "input 0: got no 'context'"),
        ("question-answering", {"question": "who", "context": 3}, TypeError, "input 0: got int for 'context'"),
        ("question-answering", {"question": "who", "context": " "}, ValueError, "input 0: got an empty context"),
        ("multiple-choice", {"context": TEXT, "choices": []}, ValueError, "input 0: got .* as choices, expected one text"),
        ("multiple-choice", {"context": TEXT, "choices": ["a"], "question": None}, TypeError, "input 0: got NoneType for 'que"),
        ("text-classification", {"text": TEXT, "text_pair": 5}, TypeError, "input 0: got int for 'text_pair', expected a text"),
        ("fill-mask", TEXT, ValueError, "input 0: got no <mask>"),
    ],
    ids=[
        "number", "number_in_a_list", "no_context", "context_of_another_type", "empty_context", "no_choices",
        "question_of_another_type", "pair_of_another_type", "no_mask",
    ],
)  # fmt: skip
def test_inputs_that_are_none_of_the_task_are_named(task, given, error, message, checkpoints):
    with pytest.raises(error, match=message):
        pipeline(task, checkpoints[task])(given)


HALF = "a \ud800 tree"


@pytest.mark.parametrize(
    ("task", "given", "name"),
    [
        ("embedding", HALF, "the text"),
        ("text-classification", HALF, "'text'"),
        ("text-classification", {"text": TEXT, "text_pair": HALF}, "'text_pair'"),
        ("question-answering", {"question": HALF, "context": TEXT}, "'question'"),
        ("question-answering", {"question": "who", "context": HALF}, "'context'"),
        ("multiple-choice", {"context": TEXT, "choices": ["a", HALF]}, "choice 1"),
    ],
    ids=["text", "classified_text", "pair", "question", "context", "choice"],
)
def test_half_a_character_is_refused_with_the_input_that_holds_it(task, given, name, checkpoints):
    with pytest.raises(ValueError, match=rf"^input 2: got the lone surrogate '\\ud800' in {name} at position 2"):
        pipeline(task, checkpoints[task])([INPUTS[task], INPUTS[task], given])


@pytest.mark.parametrize(
    ("task", "too_long", "most", "name"),
    [
        ("question-answering", "split", 118 - 4 - 20 - 1, "'question'"),
        ("question-answering", "truncate", 118 - 4 - 1, "'question'"),
        ("multiple-choice", "truncate", 118 - 4 - 1, "'question' and choice 1"),
    ],
    ids=["question_of_windows", "question", "choice"],
)
def test_what_is_never_cut_has_to_leave_room(task, too_long, most, name, checkpoints):
    """One token more than fits is refused with the input's number, as many as fit are answered."""
    pipe = pipeline(task, checkpoints[task], too_long=too_long, stride=20)

    def given(tokens):
        words = " the" * tokens
        if task == "question-answering":
            return {"question": words, "context": LONG}
        # The words before a choice and around it are stripped.
        return {"context": LONG, "choices": ["a", "t" + " the" * (tokens - 1)]}

    assert pipe([INPUTS[task], given(most)])
    remedy = "a smaller stride, or" if too_long == "split" else "a model with more"
    message = rf"^input 1: got {most + 1} tokens in {name}, which is never cut, expected at most {most}, .* or pass {remedy}"
    with pytest.raises(ValueError, match=message):
        pipe([INPUTS[task], given(most + 1)])


def test_tasks_models_and_options_that_do_not_fit_are_refused(checkpoints, tokenizer):
    with pytest.raises(ValueError, match="task: got 'summarise', expected one of fill-mask"):
        pipeline("summarise", checkpoints["fill-mask"])
    model = longformer_triton.LongformerModel.from_pretrained(checkpoints["embedding"])
    with pytest.raises(
        TypeError, match=r"model: got a longformer_triton\.model\.longformer\.LongformerModel, expected a LongformerForMaskedLM"
    ):
        pipeline("fill-mask", model, tokenizer)
    with pytest.raises(TypeError, match="tokenizer: got int, expected a LongformerTokenizer, or the directory"):
        pipeline("embedding", model, 5)
    with pytest.raises(ValueError, match="tokenizer: got None beside a model object"):
        pipeline("embedding", model)
    with pytest.raises(ValueError, match="too_long: got 'split', expected one of truncate, error"):
        pipeline("embedding", model, tokenizer, too_long="split")


@pytest.mark.parametrize("task", ["question-answering", "embedding"])
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"batch_size": 0}, ValueError, "batch_size: got 0, expected an int >= 1"),
        ({"batch_size": "3"}, TypeError, "batch_size: got '3', expected an int >= 1"),
        ({"batch_size": True}, TypeError, "batch_size: got True, expected an int >= 1"),
        ({"stride": -1}, ValueError, "stride: got -1, expected an int >= 0"),
        ({"stride": None}, TypeError, "stride: got None, expected an int >= 0"),
    ],
    ids=["no_rows", "rows_in_text", "rows_as_truth", "negative_stride", "no_stride"],
)
def test_numbers_of_a_pipeline_are_checked_when_it_is_made(task, options, error, message, checkpoints):
    with pytest.raises(error, match=message):
        pipeline(task, checkpoints[task], **options)


@pytest.mark.parametrize(
    ("task", "options", "error", "message"),
    [
        ("fill-mask", {"top_k": 0}, ValueError, "top_k: got 0, expected an int >= 1"),
        ("fill-mask", {"top_k": -1}, ValueError, "top_k: got -1, expected an int >= 1"),
        ("fill-mask", {"top_k": None}, TypeError, "top_k: got None, expected an int >= 1"),
        ("fill-mask", {"targets": []}, ValueError, r"targets: got \[\], expected a word, a list of one at least"),
        ("fill-mask", {"targets": ["elephant"]}, ValueError, "targets: got 'elephant', which is"),
        ("fill-mask", {"targets": [5]}, ValueError, r"targets: got \[5\], expected a word"),
        ("fill-mask", {"targets": 5}, ValueError, "targets: got 5, expected a word"),
        ("text-classification", {"top_k": 0}, ValueError, "top_k: got 0, expected an int >= 1"),
        ("text-classification", {"function": "tanh"}, ValueError, "function: got 'tanh', expected one of softmax"),
        ("question-answering", {"top_k": "2"}, TypeError, "top_k: got '2', expected an int >= 1"),
        ("question-answering", {"max_answer_tokens": 0}, ValueError, "max_answer_tokens: got 0, expected an int >= 1"),
        ("question-answering", {"topk": 2}, TypeError, "topk: got an option .* expected top_k, max_answer_tokens, null_answer"),
        ("token-classification", {"aggregation": "mean"}, ValueError, "aggregation: got 'mean', expected one of none"),
        ("embedding", {"top_k": 1}, TypeError, "top_k: got an option that embedding does not have, expected none"),
    ],
    ids=[
        "no_words", "fewer_words_than_none", "words_without_number", "no_targets", "target_of_several_tokens",
        "target_of_another_type", "no_list_of_targets", "no_labels", "no_such_function", "answers_in_text", "no_length",
        "misspelt", "no_such_aggregation", "of_another_task",
    ],
)  # fmt: skip
def test_options_that_do_not_fit_are_refused_before_any_input_is_read(task, options, error, message, checkpoints):
    inputs = iter([INPUTS[task]])
    with pytest.raises(error, match=message):
        pipeline(task, checkpoints[task])(inputs, **options)
    assert list(inputs) == [INPUTS[task]]


def test_one_target_is_a_word_and_no_list_of_letters(checkpoints):
    pipe = pipeline("fill-mask", checkpoints["fill-mask"])
    assert close(pipe(INPUTS["fill-mask"], targets=" cat"), pipe(INPUTS["fill-mask"], targets=[" cat"]))
