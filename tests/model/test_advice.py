"""What a model says once, where what it is given is allowed and yet hardly meant."""

import logging

import pytest
import torch
from model_cases import ours

from longformer_triton.model import longformer


@pytest.fixture
def said(monkeypatch, caplog):
    """What was said during a forward pass."""
    monkeypatch.setattr(longformer, "_told", set())
    caplog.set_level(logging.WARNING, "longformer_triton")

    def of(model, **inputs):
        caplog.clear()
        with torch.no_grad():
            model(**inputs)
        return [record.getMessage() for record in caplog.records if record.name == longformer.__name__]

    return of


@pytest.mark.parametrize("max_globals", [None, 8], ids="max_globals_{}".format)
@pytest.mark.parametrize(("count", "is_many"), [(1, False), (4, False), (5, True), (8, True)])
def test_more_global_tokens_than_a_quarter(said, count, is_many, max_globals):
    """Those there are: room for more is no matter."""
    model, marks = ours("LongformerModel", max_globals=max_globals), torch.arange(16)[None] < count
    inputs = {"input_ids": torch.full((1, 16), 5), "attention_mask": torch.ones(1, 16), "global_attention_mask": marks.long()}
    messages = said(model, **inputs)
    assert [message.partition("; ")[0] for message in messages] == [
        f"global_attention_mask: {count} of 16 tokens are global"
    ] * is_many
    assert not said(model, **inputs)


def test_padding_without_a_mask(said):
    model = ours("LongformerModel")
    texts = torch.full((2, 9), 5)
    assert not said(model, input_ids=texts)
    texts[1, -2:] = model.config.pad_token_id
    (message,) = said(model, input_ids=texts)
    assert message.startswith("attention_mask: none given, though input_ids end in padding (pad_token_id 1)")
