"""Pipelines on untrained models: what goes in and out, in which order, and what is refused."""

import itertools

import pytest
import torch
from model_cases import TINY
from text_cases import tokenizer_of

import longformer_triton
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
        ("fill-mask", TEXT, ValueError, "input 0: got no <mask>"),
    ],
    ids=["number", "number_in_a_list", "no_context", "context_of_another_type", "empty_context", "no_choices", "no_mask"],
)
def test_inputs_that_are_none_of_the_task_are_named(task, given, error, message, checkpoints):
    with pytest.raises(error, match=message):
        pipeline(task, checkpoints[task])(given)


def test_tasks_models_and_options_that_do_not_fit_are_refused(checkpoints, tokenizer):
    with pytest.raises(ValueError, match="task: got 'summarise', expected one of fill-mask"):
        pipeline("summarise", checkpoints["fill-mask"])
    model = longformer_triton.LongformerModel.from_pretrained(checkpoints["embedding"])
    with pytest.raises(TypeError, match="model: got LongformerModel, expected a LongformerForMaskedLM"):
        pipeline("fill-mask", model, tokenizer)
    with pytest.raises(ValueError, match="tokenizer: got None beside a model object"):
        pipeline("embedding", model)
    with pytest.raises(ValueError, match="too_long: got 'split', expected one of truncate, error"):
        pipeline("embedding", model, tokenizer, too_long="split")
    with pytest.raises(ValueError, match="batch_size: got 0"):
        pipeline("embedding", model, tokenizer, batch_size=0)
    with pytest.raises(ValueError, match="function: got 'tanh'"):
        pipeline("text-classification", checkpoints["text-classification"])(TEXT, function="tanh")
    with pytest.raises(ValueError, match="targets: got 'elephant'"):
        pipeline("fill-mask", checkpoints["fill-mask"])(INPUTS["fill-mask"], targets=["elephant"])
