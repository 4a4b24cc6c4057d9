"""Converted checkpoints: where the window covers the text, what the source computes, run by transformers; beyond it, tiles."""

import pytest
import torch
from conversion_cases import (
    KINDS,
    LEARNED,
    SEPARATOR,
    TASKS,
    WINDOW,
    assert_computes_the_same,
    assert_same,
    results,
    saved,
    source,
    texts,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from longformer_triton import convert_to_longformer

transformers = pytest.importorskip("transformers", reason="transformers is not installed")
pytestmark = pytest.mark.usefixtures("one_thread")

IN_FLOAT32 = 1e-5
each_kind = pytest.mark.parametrize("kind", KINDS)
each_task = pytest.mark.parametrize("task", TASKS)
FORMATS = {
    "safetensors_shards": {"max_shard_size": "4KB"},
    "bin": {"safe_serialization": False},
    "bin_shards": {"safe_serialization": False, "max_shard_size": "4KB"},
}


def long(folder, destination=None, **options):
    return convert_to_longformer(
        folder, destination, **{"max_positions": 200, "attention_window": WINDOW, "sep_token_id": SEPARATOR, **options}
    )


@each_task
@each_kind
def test_the_result_computes_what_the_source_does(tmp_path, kind, task):
    """With the global tokens that each task has by itself: their projections are copies."""
    original = saved(tmp_path, kind, task)
    model = long(tmp_path)
    assert type(model).__name__ == f"Longformer{task}"
    assert not model.training
    for types in (True, False):
        for seq_len in (13, LEARNED):
            arguments = texts(original, seq_len, types=types)
            assert_same(results(model, arguments), results(original, arguments))


@each_task
@each_kind
def test_transformers_loads_the_result_and_computes_the_same(tmp_path, kind, task):
    original = saved(tmp_path / "source", kind, task)
    model = long(tmp_path / "source", tmp_path / "result")
    loaded, info = getattr(transformers, type(model).__name__).from_pretrained(tmp_path / "result", output_loading_info=True)
    assert (info["missing_keys"], info["mismatched_keys"]) == ([], [])
    assert all(".pooler." in name for name in info["unexpected_keys"])
    arguments = texts(original)
    assert_same(results(loaded, arguments), results(original, arguments), IN_FLOAT32)
    again = type(model).from_pretrained(tmp_path / "result")
    assert all(torch.equal(value, results(model, arguments)[name]) for name, value in results(again, arguments).items())


@pytest.mark.parametrize("task", ["ForMaskedLM", "ForSequenceClassification"])
@pytest.mark.parametrize("kind", ["roberta", "bert"])
def test_a_window_that_does_not_cover_the_text_is_windowed_attention(tmp_path, kind, task):
    """So that the equalities above are those of windows that cover it, and not of windows that are ignored."""
    original = saved(tmp_path / "source", kind, task)
    model = long(tmp_path / "source", tmp_path / "result", attention_window=[4, 8])
    loaded = getattr(transformers, type(model).__name__).from_pretrained(tmp_path / "result").eval()
    arguments = texts(original)
    got = results(model, arguments)
    assert_same(got, results(loaded, arguments), IN_FLOAT32)
    assert (got["logits"] - results(original, arguments)["logits"]).abs().max() > 0.1


@pytest.mark.parametrize("options", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("kind", ["roberta", "bert"])
def test_every_format_of_weights_is_read(tmp_path, kind, options):
    original = source(kind, "ForMaskedLM")
    original.save_pretrained(tmp_path, **options)
    assert not (tmp_path / "model.safetensors").exists()
    assert_computes_the_same(long(tmp_path), original)


@each_kind
def test_the_decoder_need_not_be_the_word_embedding(tmp_path, kind):
    original = saved(tmp_path, kind, "ForMaskedLM", tie_word_embeddings=False)
    model = long(tmp_path)
    assert model.get_output_embeddings().weight is not model.get_input_embeddings().weight
    assert_computes_the_same(model, original)


@each_kind
def test_texts_longer_than_the_source_read_its_positions_again(tmp_path, kind):
    """The oracle is the source itself with its table tiled: row i + LEARNED is row i."""
    original = saved(tmp_path, kind, "ForMaskedLM")
    longer = source(kind, "ForMaskedLM", learned=3 * LEARNED - 5)
    state = original.state_dict()
    (table,) = (name for name in state if name.endswith("position_embeddings.weight"))
    first = 0 if kind == "bert" else 2
    rows = [*range(first), *(first + place % LEARNED for place in range(3 * LEARNED - 5))]
    longer.load_state_dict({**state, table: state[table][rows]}, strict=False)
    model = long(tmp_path, max_positions=3 * LEARNED - 5 + (first or 1), attention_window=256)
    for seq_len in (LEARNED + 1, 2 * LEARNED, 3 * LEARNED - 5):
        assert_computes_the_same(model, longer, seq_len)
    with pytest.raises(ValueError, match=rf"input_ids: got 80 tokens, expected at most {3 * LEARNED - 5}: the position table"):
        model(torch.full((1, 80), 5))


@each_kind
def test_embeddings_without_ids_have_the_same_positions(tmp_path, kind):
    original = saved(tmp_path, kind, "ForTokenClassification")
    ids = texts(original, 17)["input_ids"][:1]
    arguments = {"inputs_embeds": original.get_input_embeddings()(ids).detach(), "attention_mask": torch.ones_like(ids)}
    assert_same(results(long(tmp_path), arguments), results(original, arguments))


@given(
    kind=st.sampled_from(sorted(KINDS)),
    learned=st.integers(8, 40),
    more=st.integers(0, 90),
    padding=st.sampled_from([0, 1, 3]),
    layers=st.integers(1, 3),
    heads=st.sampled_from([1, 2, 6]),
    window=st.integers(40, 60),
)
@settings(max_examples=20)
def test_sizes_of_all_kinds(tmp_path_factory, kind, learned, more, padding, layers, heads, window):
    folder = tmp_path_factory.mktemp("source")
    sizes = {"num_hidden_layers": layers, "num_attention_heads": heads, "pad_token_id": padding}
    original = saved(folder, kind, "ForMaskedLM", learned=learned, **sizes)
    first = padding + 1
    model = long(folder, max_positions=first + learned + more, attention_window=2 * window)
    assert_computes_the_same(model, original, learned)
    table = model.longformer.embeddings.position_embeddings.weight
    assert table.shape == (first + learned + more, 12)
    assert torch.equal(table[first + learned :], table[first : first + more])
    config = model.config
    assert (config.num_hidden_layers, config.pad_token_id) == (layers, padding)
    assert config.attention_window == [2 * window] * layers


@pytest.mark.parametrize("kind", ["roberta", "bert"])
def test_half_precision_stays_half_and_loads_as_float32_by_default(tmp_path, kind):
    source(kind, "ForMaskedLM").to(torch.bfloat16).save_pretrained(tmp_path / "source")
    model = long(tmp_path / "source", tmp_path / "result")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert model.config.dtype == torch.bfloat16
    original = getattr(transformers, f"{KINDS[kind]}ForMaskedLM").from_pretrained(tmp_path / "source", dtype=torch.float32)
    arguments = texts(original)
    again = type(model).from_pretrained(tmp_path / "result")
    assert again.dtype == torch.float32
    assert_same(results(again, arguments), results(original.eval(), arguments))
    for chosen in ("float16", torch.float32, None):
        assert long(tmp_path / "source", dtype=chosen).dtype == (torch.float16 if chosen == "float16" else torch.float32)
