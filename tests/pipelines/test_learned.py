"""Pipelines on models that learned something here: words from their neighbours, and answers that only global tokens can give.

The question's word says which kind of thing is asked for, and the text holds one thing of each kind, thousands of tokens away.
A model that sees windows alone cannot know which is meant: trained alike, it is the control, and has to stay at chance.
"""

import pytest
import torch
from text_cases import tokenizer_of

from longformer_triton import LongformerConfig, LongformerForMaskedLM, LongformerForQuestionAnswering
from longformer_triton.heads.pipelines import pipeline

pytestmark = pytest.mark.usefixtures("one_thread")

KINDS = {
    "who": ["anna", "boris", "carla", "david", "elena", "felix"],
    "where": ["paris", "london", "tokyo", "cairo", "lima", "oslo"],
    "when": ["monday", "tuesday", "friday", "spring", "winter", "noon"],
}
FILLER = ["the", "and", "of", "to", "in", "was", "that", "it", "with", "as", "had", "for"]
CYCLE = ["one", "two", "three", "four", "five", "six", "seven", "eight"]
WORDS = [*KINDS, *(word for words in KINDS.values() for word in words), *FILLER, *CYCLE]


class WindowOnly(LongformerForQuestionAnswering):
    """The control: nothing is global, whatever a caller says."""

    def forward(self, input_ids, **options):
        options["global_attention_mask"] = torch.zeros_like(input_ids)
        return super().forward(input_ids, **options)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return tokenizer_of(WORDS, tmp_path_factory.mktemp("tokenizer"))


def document(words, generator, first):
    """(question, text, answer): ``words`` words of filler, and behind ``first`` of them one thing of each kind."""

    def choose(among):
        return among[int(torch.randint(len(among), (), generator=generator))]

    text = [choose(FILLER) for _ in range(words)]
    places = (torch.randperm(words - first, generator=generator)[: len(KINDS)] + first).tolist()
    things = {question: choose(kind) for question, kind in KINDS.items()}
    for place, thing in zip(places, things.values(), strict=True):
        text[place] = thing
    question = choose(list(KINDS))
    return f" {question}", " " + " ".join(text), things[question]


def trained(kind, tokenizer, batch_of, steps):
    """A small model without positions, so that what it learns on short texts holds for long ones."""
    torch.manual_seed(0)
    config = LongformerConfig(
        vocab_size=len(tokenizer), hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128,
        max_position_embeddings=4200, attention_window=8, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        initializer_range=0.2,
    )  # fmt: skip
    model = kind(config).train()
    torch.nn.init.zeros_(model.longformer.embeddings.position_embeddings.weight).requires_grad_(False)
    optimizer = torch.optim.AdamW([parameter for parameter in model.parameters() if parameter.requires_grad], lr=2e-3)
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        optimizer.zero_grad()
        model(**batch_of(generator)).loss.backward()
        optimizer.step()
    return model


def accuracy_of_answers(kind, tokenizer):
    """How many of twenty-four questions about unseen texts of 4000 words are answered, after training on texts of 60."""

    def batch_of(generator):
        examples = [document(60, generator, first=10) for _ in range(32)]
        encoded = tokenizer([question for question, *_ in examples], [text for _, text, _ in examples], return_tensors="pt")
        wanted = torch.tensor([tokenizer.encode(f" {answer}", add_special_tokens=False)[0] for *_, answer in examples])
        places = (encoded["input_ids"] == wanted[:, None]).int().argmax(1)
        return {**encoded, "start_positions": places, "end_positions": places}

    answer = pipeline("question-answering", trained(kind, tokenizer, batch_of, steps=120), tokenizer)
    generator = torch.Generator().manual_seed(99)
    examples = [document(4000, generator, first=2000) for _ in range(24)]
    found = answer([{"question": question, "context": text} for question, text, _ in examples])
    for one, (_, text, _) in zip(found, examples, strict=True):
        assert one["answer"] == text[one["start"] : one["end"]]
    return sum(one["answer"] == right for one, (*_, right) in zip(found, examples, strict=True)) / len(examples)


def test_a_global_question_finds_its_answer_thousands_of_tokens_away(tokenizer):
    assert accuracy_of_answers(LongformerForQuestionAnswering, tokenizer) >= 0.95


def test_windows_alone_leave_the_answer_to_chance(tokenizer):
    """One in three: of the three things, which is asked for cannot be known."""
    assert accuracy_of_answers(WindowOnly, tokenizer) <= 0.65


def counting(words, start):
    return [CYCLE[(start + number) % len(CYCLE)] for number in range(words)]


def accuracy_of_words(model, tokenizer):
    """How many masked words of a count that begins anywhere are filled in rightly, in long texts."""
    fill = pipeline("fill-mask", model, tokenizer)
    texts, right = [], []
    for start in range(16):
        words = counting(500, start)
        place = 30 * start + 10
        right.append(words[place])
        words[place] = "<mask>"
        texts.append(" " + " ".join(words))
    found = fill(texts, top_k=1)
    return sum(one[0]["token_str"].strip() == word for one, word in zip(found, right, strict=True)) / len(right)


def test_masked_words_are_learned_from_their_neighbours(tokenizer):
    def batch_of(generator):
        starts = torch.randint(len(CYCLE), (32,), generator=generator).tolist()
        encoded = tokenizer([" " + " ".join(counting(30, start)) for start in starts], return_tensors="pt")
        ids = encoded["input_ids"]
        masked = (torch.rand(ids.shape, generator=generator) < 0.1) & (ids > 4)
        labels = ids.masked_fill(~masked, -100)
        labels[:, 1] = ids[:, 1]
        return {**encoded, "input_ids": ids.masked_fill(masked, tokenizer.mask_token_id), "labels": labels}

    untrained = trained(LongformerForMaskedLM, tokenizer, batch_of, steps=0)
    assert accuracy_of_words(untrained, tokenizer) <= 0.5
    assert accuracy_of_words(trained(LongformerForMaskedLM, tokenizer, batch_of, steps=150), tokenizer) >= 0.95
