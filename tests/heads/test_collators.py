"""Collators: what they mask, how they pad, and which tokens they make global for each task."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from model_cases import TINY
from text_cases import tokenizer_of

import longformer_triton
from longformer_triton.heads import GlobalAttentionCollator, MaskedLanguageCollator
from longformer_triton.tokenization import global_attention

pytestmark = pytest.mark.usefixtures("one_thread")

WORDS = ["the", "cat", "saw", "a", "tree", "who", "was", "it"]
TASKS = {
    "text-classification": "LongformerForSequenceClassification",
    "question-answering": "LongformerForQuestionAnswering",
    "multiple-choice": "LongformerForMultipleChoice",
    "token-classification": "LongformerForTokenClassification",
    "fill-mask": "LongformerForMaskedLM",
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return tokenizer_of(WORDS, tmp_path_factory.mktemp("collators"))


@pytest.fixture
def left(tokenizer, monkeypatch):
    monkeypatch.setattr(tokenizer, "padding_side", "left")
    return tokenizer


def rows_of(tokenizer, task):
    """Two rows of different lengths with their labels."""
    short, long = " the cat", " a tree saw the cat who was it"
    if task == "multiple-choice":
        return [{**tokenizer([text] * 2, [" it was", " it was a tree"]), "label": n} for n, text in enumerate((short, long))]
    if task == "question-answering":
        rows = [tokenizer(" who was it", text) for text in (short, long)]
        return [{**row, "start_positions": 6, "end_positions": 7} for row in rows]
    rows = [tokenizer(text) for text in (short, long)]
    if task == "text-classification":
        return [{**row, "label": 1} for row in rows]
    return [{**row, "labels": list(range(len(row["input_ids"])))} for row in rows]


# --- masked tokens -----------------------------------------------------------------------------------------------------


def shares(collator, rows, mask_token_id):
    """(tokens, chosen, masked, replaced) summed over batches of the same rows."""
    ids = torch.tensor(rows)
    chosen = masked = replaced = 0
    for _ in range(20):
        batch = collator([{"input_ids": row} for row in rows])
        is_chosen = batch["labels"] != -100
        chosen += is_chosen.sum().item()
        masked += (batch["input_ids"][is_chosen] == mask_token_id).sum().item()
        replaced += ((batch["input_ids"] != ids) & (batch["input_ids"] != mask_token_id)).sum().item()
    return 20 * ids.numel(), chosen, masked, replaced


def test_shares_are_those_of_transformers(tokenizer, tmp_path):
    """15 % chosen, of which 80 % masked and 10 % replaced: both within four standard deviations, with fixed seeds."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    tokenizer.save_pretrained(tmp_path)
    theirs = transformers.LongformerTokenizerFast.from_pretrained(tmp_path)
    rows = torch.randint(5, len(tokenizer), (16, 500), generator=torch.Generator().manual_seed(2)).tolist()
    collators = {
        "ours": MaskedLanguageCollator(tokenizer, generator=torch.Generator().manual_seed(3)),
        "transformers": transformers.DataCollatorForLanguageModeling(theirs, seed=3),
    }
    for name, collator in collators.items():
        tokens, chosen, masked, replaced = shares(collator, rows, tokenizer.mask_token_id)
        # A random word is sometimes the word that was there, which counts as kept; with transformers also <mask>.
        for count, trials, share in ((chosen, tokens, 0.15), (masked, chosen, 0.8), (replaced, chosen, 0.1)):
            deviation = math.sqrt(trials * share * (1 - share))
            unseen = trials * 0.2 / len(tokenizer)
            assert abs(count - trials * share) < 4 * deviation + unseen, (name, count, trials, share)


def test_every_token_is_as_likely_as_any_other_and_so_is_every_random_word(tokenizer):
    collator = MaskedLanguageCollator(tokenizer, generator=torch.Generator().manual_seed(4))
    row, size = [7] * 50, len(tokenizer)
    batch = collator([row] * 4000)
    of_places = (batch["labels"] != -100).float().mean(0)
    assert ((of_places - 0.15).abs() < 5 * math.sqrt(0.15 * 0.85 / 4000)).all()
    random = batch["input_ids"][(batch["labels"] != -100) & (batch["input_ids"] != tokenizer.mask_token_id)]
    counts = torch.bincount(random, minlength=size)
    special = set(tokenizer.all_special_ids)
    expected = 4000 * 50 * 0.15 * 0.1 / (size - len(special))
    others = counts[[word for word in range(size) if word != 7 and word not in special]]
    assert ((others - expected).abs() < 5 * math.sqrt(expected)).all()
    # A random <pad> would move the positions of the words behind it.
    assert counts[sorted(special)].sum() == 0


@given(
    lengths=st.lists(st.integers(0, 30), min_size=1, max_size=5),
    probability=st.sampled_from([0.0, 0.15, 1.0]),
    seed=st.integers(0, 99),
)
def test_what_is_hidden_is_in_the_labels_and_never_special(tokenizer, lengths, probability, seed):
    draw = torch.Generator().manual_seed(seed)
    texts = [torch.randint(5, len(tokenizer), (length,), generator=draw).tolist() for length in lengths]
    rows = [[0, *text, 2] for text in texts]
    collator = MaskedLanguageCollator(tokenizer, probability=probability, generator=torch.Generator().manual_seed(seed))
    batch = collator(rows)
    assert set(batch) == {"input_ids", "attention_mask", "labels"}
    assert batch["attention_mask"].sum(1).tolist() == [len(row) for row in rows]
    original = tokenizer.pad({"input_ids": rows}, return_tensors="pt")["input_ids"]
    chosen = batch["labels"] != -100
    assert torch.equal(batch["labels"][chosen], original[chosen])
    assert torch.equal(batch["input_ids"][~chosen], original[~chosen])
    special = torch.isin(original, torch.tensor(tokenizer.all_special_ids))
    assert not (chosen & special).any()
    if probability in (0.0, 1.0):
        assert torch.equal(chosen, ~special & (probability == 1.0))
    again = MaskedLanguageCollator(tokenizer, probability=probability, generator=torch.Generator().manual_seed(seed))(rows)
    assert all(torch.equal(again[name], batch[name]) for name in batch)


def test_a_mask_of_special_tokens_in_the_rows_is_followed(tokenizer):
    row = {"input_ids": [0, 7, 8, 9, 2], "special_tokens_mask": [1, 0, 1, 0, 1]}
    labels = MaskedLanguageCollator(tokenizer, probability=1.0)([row, {**row, "input_ids": [0, 7, 8, 9, 1]}])["labels"]
    assert (labels != -100).tolist() == [[False, True, False, True, False]] * 2


def test_without_a_generator_torchs_own_decides(tokenizer):
    rows, collator = [list(range(5, 25))] * 4, MaskedLanguageCollator(tokenizer)
    first, second = collator(rows), collator(rows)
    assert not torch.equal(first["labels"], second["labels"])
    torch.manual_seed(1)
    third = collator(rows)
    torch.manual_seed(1)
    assert torch.equal(collator(rows)["labels"], third["labels"])


def test_hidden_words_with_global_tokens(tokenizer):
    rows = rows_of(tokenizer, "fill-mask")
    batch = MaskedLanguageCollator(tokenizer, global_attention="first")(rows)
    assert batch["global_attention_mask"].tolist() == [[1, *[0] * (batch["input_ids"].shape[1] - 1)]] * 2
    marked = [{**row, "global_attention_mask": [0, 1] + [0] * (len(row["input_ids"]) - 2)} for row in rows]
    assert MaskedLanguageCollator(tokenizer)(marked)["global_attention_mask"].argmax(1).tolist() == [1, 1]


# --- global tokens of each task ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS)
def test_default_globals_are_what_the_head_would_choose(tokenizer, task):
    """With the collator's mask and without any, the head gives the same; and its loss takes the labels."""
    batch = GlobalAttentionCollator(tokenizer, task)(rows_of(tokenizer, task))
    labels = 20 if task == "token-classification" else 2
    config = longformer_triton.LongformerConfig(**{**TINY, "vocab_size": len(tokenizer), "num_labels": labels})
    model = getattr(longformer_triton, TASKS[task])(config).eval()
    given_mask = model(**batch)
    del batch["global_attention_mask"]
    by_itself = model(**batch)
    assert given_mask.loss.isfinite()
    for mine, own in zip(given_mask.to_tuple(), by_itself.to_tuple(), strict=True):
        assert torch.equal(mine, own)


def test_default_globals_by_hand(tokenizer):
    found = {}
    for task in TASKS:
        found[task] = GlobalAttentionCollator(tokenizer, task)(rows_of(tokenizer, task))["global_attention_mask"]
    # <s> the cat </s>, and padding; <s> who was it </s> </s> the cat </s>; <s> the cat </s> </s> it was </s>.
    assert found["text-classification"][0].tolist() == [1, *[0] * 9]
    assert found["question-answering"][0].tolist() == [1, 1, 1, 1, *[0] * 11]
    assert found["multiple-choice"].shape == (2, 2, 16)
    assert found["multiple-choice"][0, 0].tolist() == [0, 0, 0, 0, 0, 1, 1, 1, *[0] * 8]
    assert not found["token-classification"].any()
    assert not found["fill-mask"].any()


@pytest.mark.parametrize("task", ["question-answering", "multiple-choice", "token-classification", "fill-mask"])
def test_padding_on_the_left_moves_everything_along(tokenizer, task, monkeypatch):
    right = GlobalAttentionCollator(tokenizer, task)(rows_of(tokenizer, task))
    monkeypatch.setattr(tokenizer, "padding_side", "left")
    moved = GlobalAttentionCollator(tokenizer, task)(rows_of(tokenizer, task))
    assert set(moved) == set(right)
    real = right["attention_mask"].flatten(0, -2)
    shift = real.shape[1] - real.sum(1)
    for name in right:
        if name in ("start_positions", "end_positions"):
            assert torch.equal(moved[name], right[name] + shift)
        elif right[name].dim() > 1:
            rolled = [row.roll(int(places)) for row, places in zip(right[name].flatten(0, -2), shift, strict=True)]
            assert torch.equal(moved[name].flatten(0, -2), torch.stack(rolled)), name
        else:
            assert torch.equal(moved[name], right[name])


def test_labels_of_tokens_end_in_minus_hundred(tokenizer):
    batch = GlobalAttentionCollator(tokenizer, "token-classification")(rows_of(tokenizer, "token-classification"))
    assert batch["labels"][0].tolist() == [0, 1, 2, 3, *[-100] * 6]


def test_labels_of_a_text_stay_a_vector(tokenizer):
    """Several labels at once, as many as there are tokens."""
    rows = [{"input_ids": [0, 7, 2], "labels": [1.0, 0.0, 1.0]}, {"input_ids": [0, 7, 8, 2], "labels": [0.0, 0.0, 1.0]}]
    batch = GlobalAttentionCollator(tokenizer, "text-classification")(rows)
    assert batch["labels"].tolist() == [[1, 0, 1], [0, 0, 1]]
    assert batch["labels"].dtype == torch.float32


@pytest.mark.parametrize("task", TASKS)
def test_batches_are_where_tokenizers_make_tensors(tokenizer, task):
    collators = [GlobalAttentionCollator(tokenizer, task)]
    if task == "fill-mask":
        collators += [MaskedLanguageCollator(tokenizer, probability=1, global_attention="first")]
    for collator in collators:
        with torch.device("meta"):
            batch = collator(rows_of(tokenizer, task))
        assert {value.device.type for value in batch.values()} == {"cpu"}


@pytest.mark.parametrize("kind", ["function", "rows", "first", "none"])
def test_other_global_tokens_than_the_tasks(tokenizer, kind):
    rows = rows_of(tokenizer, "token-classification")
    cat = tokenizer.encode(" cat", add_special_tokens=False)[0]
    wanted = {"function": lambda encoded: global_attention.token_ids(encoded, [cat]), "rows": None}.get(kind, kind)
    if kind == "rows":
        rows = [{**row, "global_attention_mask": [int(token == cat) for token in row["input_ids"]]} for row in rows]
    batch = GlobalAttentionCollator(tokenizer, "token-classification", global_attention=wanted)(rows)
    expected = {"first": [0, 0], "none": [], "function": [2, 5], "rows": [2, 5]}[kind]
    assert batch["global_attention_mask"].nonzero()[:, 1].tolist() == expected


def test_functions_of_ids_do_for_batches(tokenizer):
    rows = rows_of(tokenizer, "fill-mask")
    for choose, expected in (
        (global_attention.first_token, [0, 0]),
        (lambda batch: global_attention.token_ids(batch, [0]), [0, 0]),
        (lambda batch: global_attention.every(batch, 5, start=1), [1, 1, 6]),
        (lambda batch: global_attention.token_spans(batch, [[(1, 2)], [(2, 4)]]), [1, 2, 3]),
    ):
        batch = GlobalAttentionCollator(tokenizer, "fill-mask", global_attention=choose)(rows)
        assert batch["global_attention_mask"].nonzero()[:, 1].tolist() == expected


@pytest.mark.parametrize(
    ("choose", "message"),
    [
        (global_attention.question, "ids alone, .*the parts of pairs. A collator takes the name"),
        (lambda batch: global_attention.character_spans(batch, [[(0, 2)]] * 2), "ids alone, .*which knows characters"),
        (lambda batch: global_attention.sentence_starts(batch, ["a"] * 2), "ids alone, .*which knows characters"),
    ],
    ids=["question", "character_spans", "sentence_starts"],
)
def test_functions_of_more_than_ids_say_so(tokenizer, choose, message):
    collator = GlobalAttentionCollator(tokenizer, "question-answering", global_attention=choose)
    with pytest.raises(ValueError, match=rf"^encoded: got {message}"):
        collator(rows_of(tokenizer, "question-answering"))


def test_first_means_the_first_real_token(left):
    batch = GlobalAttentionCollator(left, "fill-mask", global_attention="first")(rows_of(left, "fill-mask"))
    assert batch["global_attention_mask"].argmax(1).tolist() == (batch["attention_mask"].argmax(1)).tolist()


def test_lengths_are_multiples_if_asked_for(tokenizer):
    batch = GlobalAttentionCollator(tokenizer, "fill-mask", pad_to_multiple_of=8)(rows_of(tokenizer, "fill-mask"))
    assert {value.shape[1] for value in batch.values()} == {16}


def test_tensors_in_the_rows_do_as_lists_do(tokenizer):
    rows = rows_of(tokenizer, "token-classification")
    tensors = [{name: torch.tensor(value) for name, value in row.items()} for row in rows]
    collator = GlobalAttentionCollator(tokenizer, "token-classification")
    expected = collator(rows)
    assert all(torch.equal(value, expected[name]) for name, value in collator(tensors).items())


@pytest.mark.parametrize("task", ["question-answering", "multiple-choice"])
def test_what_the_tokenizer_gives_for_labels_does_not_reach_the_model(tokenizer, task):
    """Rows of one length, and of several, which would not even be a tensor."""
    given = {f"return_{name}": True for name in ("offsets_mapping", "overflowing_tokens", "special_tokens_mask", "length")}
    encoded = tokenizer([" who was it"] * 2, [" the cat", " a tree saw the cat"], **given)
    assert {"offset_mapping", "overflow_to_sample_mapping", "special_tokens_mask", "length"} < set(encoded)
    rows = [{name: encoded[name][number] for name in encoded} for number in (0, 1)]
    if task == "multiple-choice":
        rows = [{name: [value] for name, value in row.items()} for row in rows]
    collator = GlobalAttentionCollator(tokenizer, task)
    for several in (rows, rows[:1]):
        assert set(collator(several)) == {"input_ids", "attention_mask", "global_attention_mask"}
    if task == "question-answering":
        assert set(MaskedLanguageCollator(tokenizer)(rows)) == {"input_ids", "attention_mask", "labels"}
        assert "weight" in collator([{**row, "weight": 0.5} for row in rows]), "what else there is stays"


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"task": "summarization"}, "task: got 'summarization', expected one of text-classification"),
        ({"task": "fill-mask", "global_attention": "second"}, "global_attention: got 'second', expected 'first'"),
    ],
)
def test_unknown_names_are_refused(tokenizer, arguments, message):
    with pytest.raises(ValueError, match=message):
        GlobalAttentionCollator(tokenizer, **arguments)


def test_what_cannot_be_meant_is_refused(tokenizer, monkeypatch):
    with pytest.raises(TypeError, match="global_attention: got int, expected a name"):
        GlobalAttentionCollator(tokenizer, "fill-mask", global_attention=1)
    with pytest.raises(ValueError, match=r"probability: got 1.5, expected 0 to 1"):
        MaskedLanguageCollator(tokenizer, probability=1.5)
    collator = GlobalAttentionCollator(tokenizer, "token-classification")
    for rows, message in (
        ([], "rows: got none"),
        ([{"input_ids": [0]}, {"input_ids": [0], "labels": [1]}], "expected the same in all"),
        ([{"ids": [0]}], "expected input_ids among them"),
        ([{"input_ids": [0, 2], "labels": [1]}], "labels: got 1 in row 0, expected 2"),
    ):
        with pytest.raises(ValueError, match=message):
            collator(rows)
    nested = [{"input_ids": [[0, 2, 2, 2]]}, {"input_ids": [[0, 2, 2, 2]] * 2}]
    with pytest.raises(ValueError, match="got 1 choices in some and 2 in others"):
        GlobalAttentionCollator(tokenizer, "multiple-choice")(nested)
    monkeypatch.setattr(tokenizer, "padding_side", "left")
    with pytest.raises(ValueError, match="padding_side 'left', expected 'right'"):
        GlobalAttentionCollator(tokenizer, "text-classification")
    monkeypatch.setattr(tokenizer, "mask_token", None)
    with pytest.raises(ValueError, match="without a mask_token"):
        MaskedLanguageCollator(tokenizer)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda tokenizer: GlobalAttentionCollator(5, "fill-mask"), "tokenizer: got int, expected a tokenizer"),
        (lambda tokenizer: MaskedLanguageCollator(5), "tokenizer: got int, expected a tokenizer"),
        (lambda tokenizer: MaskedLanguageCollator(tokenizer, probability="a"), "probability: got str, expected a number"),
        (lambda tokenizer: MaskedLanguageCollator(tokenizer, generator=5), "generator: got int, expected a torch.Generator"),
    ],
    ids=["tokenizer", "tokenizer_of_masks", "probability", "generator"],
)
def test_arguments_of_another_kind_are_refused(tokenizer, make, message):
    with pytest.raises(TypeError, match=message):
        make(tokenizer)


@pytest.mark.parametrize("task", ["token-classification", "fill-mask"])
@pytest.mark.parametrize("name", ["label", "labels", "global_attention_mask"])
def test_one_number_where_each_token_needs_its_own_is_named(tokenizer, task, name):
    rows = [{"input_ids": [0, 2], name: [1, 1]}, {"input_ids": [0, 2], name: torch.tensor(1)}]
    with pytest.raises(TypeError, match=f"^{name}: got 1 in row 1, expected a list, one number for each token"):
        GlobalAttentionCollator(tokenizer, task)(rows)


@pytest.mark.parametrize("name", ["label", "labels"])
def test_labels_of_another_task_give_way_to_masked_words(tokenizer, name):
    batch = MaskedLanguageCollator(tokenizer, probability=1)([{"input_ids": [0, 7, 2], name: 1}])
    assert batch["labels"].tolist() == [[-100, 7, -100]]


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ({"id": "x"}, "rows: got text in 'id', expected numbers: leave out such columns"),
        ({"words": ["a", "b"]}, "rows: got text in 'words'"),
        ({"label": None}, "rows: got None in 'label'"),
    ],
    ids=["text", "texts", "no_label"],
)
def test_columns_of_other_things_are_named(tokenizer, column, message):
    rows = [{"input_ids": [0, 2], "attention_mask": [1, 1], **column}]
    with pytest.raises(TypeError, match=message):
        GlobalAttentionCollator(tokenizer, "text-classification")(rows)
