"""The encoder on its own: windows, lengths, masks, positions, attention maps, and what it refuses."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_cases import PADDING, TINY, ours, texts

from longformer_triton import AttentionPattern
from longformer_triton.model.embeddings import positions_from_padding

pytestmark = pytest.mark.usefixtures("one_thread")

WINDOW = 8
LONGEST = TINY["max_position_embeddings"] - PADDING - 1


def ids_of(batch, seq_len):
    return torch.randint(3, TINY["vocab_size"], (batch, seq_len))


def close(got, expected):
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)


def real_up_to(lengths, seq_len):
    """(batch, seq_len) of 1 for the first tokens of each row, 0 after them."""
    return (torch.arange(seq_len) < torch.tensor(lengths)[:, None]).long()


# --- windows ----------------------------------------------------------------------------------------------------------


def by_method(model, window):
    model.set_attention_window(window)


def by_method_as_a_tensor(model, window):
    model.set_attention_window(torch.tensor(window))


def by_configuration(model, window):
    model.config.attention_window = window


@pytest.mark.parametrize("change", [by_method, by_method_as_a_tensor, by_configuration], ids=lambda change: change.__name__)
@pytest.mark.parametrize("window", [2, 64, [6, 2], (2, 10)], ids=str)
def test_a_new_window_takes_effect_at_the_next_forward_pass(window, change):
    model, ids = ours("LongformerModel"), ids_of(2, 21)
    before = model(ids).last_hidden_state
    change(model, window)
    fresh = ours("LongformerModel", attention_window=window)
    fresh.load_state_dict(model.state_dict())
    after = model(ids).last_hidden_state
    assert torch.equal(after, fresh(ids).last_hidden_state)
    assert not torch.allclose(after, before, atol=1e-3)


def test_a_head_passes_a_new_window_on_to_its_encoder():
    model, ids = ours("LongformerForMaskedLM"), ids_of(1, 21)
    model.set_attention_window([2, 6])
    fresh = ours("LongformerForMaskedLM", attention_window=[2, 6])
    fresh.load_state_dict(model.state_dict())
    assert model.config.attention_window == [2, 6]
    assert torch.equal(model(ids).logits, fresh(ids).logits)


WRONG_WINDOWS = {
    "odd": (3, ValueError),
    "zero": (0, ValueError),
    "negative": (-2, ValueError),
    "one_odd": ([4, 5], ValueError),
    "too_few": ([4], ValueError),
    "too_many": ([4, 4, 4], ValueError),
    "bool": (True, TypeError),
    "float": (4.0, TypeError),
    "list_of_floats": ([4, 4.0], TypeError),
    "none": (None, TypeError),
    "text": ("44", TypeError),
}


@pytest.mark.parametrize(("window", "error"), WRONG_WINDOWS.values(), ids=WRONG_WINDOWS)
def test_a_wrong_window_is_refused_by_name(window, error):
    model = ours("LongformerModel")
    with pytest.raises(error, match=r"attention_window.*expected"):
        model.set_attention_window(window)


def test_a_refused_window_leaves_the_model_as_it_was():
    model, ids = ours("LongformerModel"), ids_of(1, 9)
    before, windows = model(ids).last_hidden_state, list(model.config.attention_window)
    with pytest.raises(ValueError, match="even"):
        model.set_attention_window(3)
    assert model.config.attention_window == windows
    assert torch.equal(model(ids).last_hidden_state, before)


# --- lengths ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("marked", [[], [0]], ids=["no_global", "first_global"])
@pytest.mark.parametrize("seq_len", [1, 2, 3, WINDOW - 1, WINDOW, WINDOW + 1, 13, 31])
def test_every_length_is_computed_as_if_padded_to_the_window(seq_len, marked):
    """And nothing that comes back is longer than the input."""
    model = ours("LongformerModel", attention_window=WINDOW).double()
    padded_len = -(-seq_len // WINDOW) * WINDOW + WINDOW
    padded = torch.full((2, padded_len), PADDING)
    padded[:, :seq_len] = ids_of(2, seq_len)
    globals_ = torch.zeros_like(padded)
    globals_[:, marked] = 1
    extra = {"output_attentions": True, "output_hidden_states": True}
    short = model(padded[:, :seq_len], global_attention_mask=globals_[:, :seq_len], **extra)
    long = model(padded, attention_mask=real_up_to([seq_len] * 2, padded_len), global_attention_mask=globals_, **extra)
    close(short.last_hidden_state, long.last_hidden_state[:, :seq_len])
    close(short.pooler_output, long.pooler_output)
    shapes = {"hidden_states": (2, seq_len, 12), "attentions": (2, 3, seq_len, len(marked) + WINDOW + 1)}
    if marked:
        shapes["global_attentions"] = (2, 3, seq_len, len(marked))
    for name, shape in shapes.items():
        token_dim = 1 if name == "hidden_states" else 2
        for got, expected in zip(short[name], long[name], strict=True):
            assert got.shape == shape, name
            close(got, expected.narrow(token_dim, 0, seq_len))


def test_more_tokens_than_positions_are_refused_with_a_remedy():
    model = ours("LongformerModel")
    with pytest.raises(ValueError, match=rf"input_ids: got {LONGEST + 1} tokens, .*{LONGEST}.*resize_position_embeddings"):
        model(ids_of(1, LONGEST + 1))
    with pytest.raises(ValueError, match=f"inputs_embeds: got {LONGEST + 1} tokens"):
        model(inputs_embeds=torch.zeros(1, LONGEST + 1, 12))


def test_padding_does_not_count_towards_the_longest_text():
    model, ids = ours("LongformerModel").double(), ids_of(2, LONGEST + 5)
    ids[:, LONGEST:] = PADDING
    got = model(ids, attention_mask=(ids != PADDING).long()).last_hidden_state[:, :LONGEST]
    close(got, model(ids[:, :LONGEST]).last_hidden_state)


# --- positions --------------------------------------------------------------------------------------------------------


def test_positions_count_real_tokens():
    ids = torch.tensor([[0, 7, 2, 1, 1], [1, 1, 0, 7, 2], [1, 5, 1, 6, 7], [1, 1, 1, 1, 1]])
    expected = [[2, 3, 4, 1, 1], [1, 1, 2, 3, 4], [1, 2, 1, 3, 4], [1, 1, 1, 1, 1]]
    assert positions_from_padding(ids, PADDING).tolist() == expected
    # Another padding id moves both what is padding and where counting begins.
    assert positions_from_padding(torch.tensor([[4, 7, 7]]), 7).tolist() == [[8, 7, 7]]


def test_positions_of_ids_are_those_counted_over_padding():
    model = ours("LongformerModel")
    ids = torch.tensor([[1, 1, 5, 6, 7], [5, 6, 7, 8, 9]])
    given_too = torch.tensor([[1, 1, 2, 3, 4], [2, 3, 4, 5, 6]])
    assert torch.equal(model(ids).last_hidden_state, model(ids, position_ids=given_too).last_hidden_state)


def test_positions_of_embeddings_count_every_token():
    model, ids = ours("LongformerModel"), ids_of(2, 9)
    embedded = model.get_input_embeddings()(ids)
    assert torch.equal(model(inputs_embeds=embedded).last_hidden_state, model(ids).last_hidden_state)


# --- masks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("both", [False, True], ids=["in_one_mask", "in_two_masks"])
def test_attention_mask_of_two_marks_global_tokens(both):
    model, ids = ours("LongformerModel"), ids_of(2, 21)
    real, marked = real_up_to([21, 15], 21), torch.zeros_like(ids)
    marked[0, [0, 9]] = marked[1, 3] = 1
    expected = model(ids, attention_mask=real, global_attention_mask=marked).last_hidden_state
    merged = real + marked
    marked[1, 3] = 0
    got = model(ids, attention_mask=merged, global_attention_mask=marked if both else None).last_hidden_state
    assert torch.equal(got, expected)
    assert not torch.allclose(got, model(ids, attention_mask=real).last_hidden_state, atol=1e-3)


def test_a_row_of_padding_is_finite_and_disturbs_no_other():
    model, ids = ours("LongformerModel").double(), ids_of(3, 13)
    real = real_up_to([13, 0, 9], 13)
    ids[real == 0] = PADDING
    marked = torch.zeros_like(ids)
    marked[:, 0] = 1  # the row of padding included: no token of it becomes global
    output = model(ids, attention_mask=real, global_attention_mask=marked, output_attentions=True)
    others = [0, 2]
    alone = model(ids[others], attention_mask=real[others], global_attention_mask=marked[others])
    close(output.last_hidden_state[others], alone.last_hidden_state)
    assert all(part.isfinite().all() for part in (output[0], output[1], *output.attentions, *output.global_attentions))

    def gradients(result, rows):
        target = result.last_hidden_state[rows].square().sum()
        return torch.autograd.grad(target, list(model.parameters()), allow_unused=True, materialize_grads=True)

    for got, expected in zip(gradients(output, others), gradients(alone, [0, 1]), strict=True):
        close(got, expected)
    output = model(ids, attention_mask=real, global_attention_mask=marked)
    assert all(grad.isfinite().all() for grad in gradients(output, [0, 1, 2]))


@given(batch=texts("LongformerModel"))
@settings(max_examples=12)
def test_texts_of_a_batch_are_independent(batch):
    model = ours("LongformerModel").double()
    inputs = batch.inputs("LongformerModel")
    with torch.no_grad():
        together = model(**inputs)
        for row in range(batch.batch):
            single = {name: value if name == "head_mask" else value[row : row + 1] for name, value in inputs.items()}
            alone = model(**single)
            close(together.last_hidden_state[row : row + 1], alone.last_hidden_state)
            close(together.pooler_output[row : row + 1], alone.pooler_output)


def test_one_pattern_is_built_and_shared_by_layers_of_one_window(monkeypatch):
    built, seen = [], []
    original = AttentionPattern.from_masks

    def counted(*args, **kwargs):
        built.append(original(*args, **kwargs))
        return built[-1]

    monkeypatch.setattr(AttentionPattern, "from_masks", counted)
    model = ours("LongformerModel", num_hidden_layers=4, attention_window=[4, 8, 4, 8])
    for layer in model.encoder.layer:
        layer.register_forward_pre_hook(lambda _, args, kwargs: seen.append(kwargs["pattern"]), with_kwargs=True)
    marked = torch.zeros(2, 21, dtype=torch.long)
    marked[:, 0] = 1
    model(ids_of(2, 21), attention_mask=torch.ones_like(marked), global_attention_mask=marked)
    assert len(built) == 1
    assert [pattern.window for pattern in seen] == [(2, 2), (4, 4)] * 2
    assert seen[0] is seen[2]
    assert seen[1] is seen[3]
    assert all(pattern.global_index is built[0].global_index for pattern in seen)


# --- attention, by hand -----------------------------------------------------------------------------------------------


def probabilities_by_hand(attention, states, real, marked, side):
    """(ordinary rows, rows of global tokens), each (batch, heads, seq_len, seq_len), as in the paper."""

    def split(linear):
        return linear(states).unflatten(-1, (attention.num_heads, attention.head_dim)).transpose(1, 2)

    def softmax(query, key, visible):
        scores = split(query) @ split(key).transpose(-1, -2) / attention.head_dim**0.5
        return scores.masked_fill(~visible, -1e9).softmax(-1) * visible

    place = torch.arange(states.shape[1])
    near = (place[:, None] - place).abs() <= side
    keys = real[:, None, None, :] == 1
    ordinary = softmax(attention.query, attention.key, (near | (marked == 1)[:, None, None, :]) & keys)
    return ordinary, softmax(attention.query_global, attention.key_global, keys.expand_as(ordinary))


def masked_texts():
    ids, real = ids_of(3, 19), real_up_to([19, 12, 17], 19)
    marked = torch.zeros_like(ids)
    marked[0, [0, 7, 18]] = marked[1, 4] = 1  # and none in the third text
    return ids, real, marked


@pytest.mark.parametrize("window", [2, 6, 40])
def test_layers_are_dense_softmax_over_the_visible_tokens(window):
    model = ours("LongformerModel", attention_window=window).double()
    ids, real, marked = masked_texts()
    states = model(ids, attention_mask=real, global_attention_mask=marked, output_hidden_states=True).hidden_states
    for number, layer in enumerate(model.encoder.layer):
        attention, before = layer.attention.self, states[number]
        ordinary, of_globals = probabilities_by_hand(attention, before, real, marked, window // 2)
        value, value_global = (
            linear(before).unflatten(-1, (3, 4)).transpose(1, 2) for linear in (attention.value, attention.value_global)
        )
        context = torch.where(marked[:, None, :, None] == 1, of_globals @ value_global, ordinary @ value)
        attended = layer.attention.output(context.transpose(1, 2).flatten(2), before)
        after = layer.output(layer.intermediate(attended), attended)
        close(states[number + 1][real == 1], after[real == 1])


def test_attention_maps_have_the_documented_layout():
    model = ours("LongformerModel", attention_window=6).double()
    ids, real, marked = masked_texts()
    output = model(ids, attention_mask=real, global_attention_mask=marked, output_hidden_states=True, output_attentions=True)
    most, side, seq_len = 3, 3, ids.shape[1]
    for number, layer in enumerate(model.encoder.layer):
        ordinary, of_globals = probabilities_by_hand(layer.attention.self, output.hidden_states[number], real, marked, side)
        local, global_ = torch.zeros(3, 3, seq_len, most + 2 * side + 1), torch.zeros(3, 3, seq_len, most)
        for text in range(3):
            globals_ = marked[text].nonzero().flatten().tolist()
            global_[text, :, :, : len(globals_)] = of_globals[text][:, globals_].transpose(1, 2)
            for row in real[text].nonzero().flatten().tolist():
                if row in globals_:
                    continue
                local[text, :, row, : len(globals_)] = ordinary[text, :, row, globals_]
                for key in {*range(max(0, row - side), min(seq_len, row + side + 1))} - {*globals_}:
                    local[text, :, row, most + side + key - row] = ordinary[text, :, row, key]
        torch.testing.assert_close(output.attentions[number].float(), local)
        torch.testing.assert_close(output.global_attentions[number].float(), global_)


def test_attention_of_every_real_token_sums_to_one():
    model = ours("LongformerModel")
    ids, real, marked = masked_texts()
    output = model(ids, attention_mask=real, global_attention_mask=marked, output_attentions=True)
    expected = (real * (1 - marked)).float()[:, None].expand(3, 3, 19)
    of_globals = torch.tensor([[1.0, 1, 1], [1, 0, 0], [0, 0, 0]])[:, None].expand(3, 3, 3)
    for local, global_ in zip(output.attentions, output.global_attentions, strict=True):
        torch.testing.assert_close(local.sum(-1), expected)
        torch.testing.assert_close(global_.sum(2), of_globals)


@pytest.mark.parametrize("given_", ["no_mask", "mask_of_zeros", "marks_on_padding"])
def test_without_global_tokens_a_map_is_its_window(given_):
    model, ids = ours("LongformerModel"), ids_of(2, 9)
    real = real_up_to([9, 7], 9)
    marked = {"no_mask": None, "mask_of_zeros": torch.zeros_like(ids), "marks_on_padding": 1 - real}[given_]
    output = model(ids, attention_mask=real, global_attention_mask=marked, output_attentions=True)
    assert [tuple(local.shape) for local in output.attentions] == [(2, 3, 9, 5), (2, 3, 9, 9)]
    assert output.global_attentions is None


# --- refusals ---------------------------------------------------------------------------------------------------------

IDS, EMBEDDED = torch.full((2, 9), 5), torch.zeros(2, 9, 12)
REFUSED = {
    "neither": ({}, ValueError, "input_ids: got neither of input_ids and inputs_embeds, expected one"),
    "both": ({"input_ids": IDS, "inputs_embeds": EMBEDDED}, ValueError, "input_ids: got both of"),
    "float_ids": ({"input_ids": IDS.float()}, TypeError, "input_ids: got dtype torch.float32, expected integers"),
    "bool_ids": ({"input_ids": IDS > 3}, TypeError, "input_ids: got dtype torch.bool, expected integers"),
    "flat_ids": ({"input_ids": IDS[0]}, ValueError, r"input_ids: got shape \(9,\), expected \(batch, seq_len\)"),
    "no_tokens": ({"input_ids": IDS[:, :0]}, ValueError, r"input_ids: got shape \(2, 0\).*seq_len >= 1"),
    "narrow_embeddings": ({"inputs_embeds": EMBEDDED[..., :6]}, ValueError, r"inputs_embeds: .*\(2, 9, 6\).*12"),
    "flat_embeddings": ({"inputs_embeds": EMBEDDED[0]}, ValueError, r"inputs_embeds: got shape \(9, 12\)"),
    "short_mask": ({"attention_mask": IDS[:, :8]}, ValueError, r"attention_mask: got shape \(2, 8\), expected .*\(2, 9\)"),
    "flat_mask": ({"attention_mask": IDS[0]}, ValueError, r"attention_mask: got shape \(9,\), expected \(batch, seq_len\)"),
    "extended_mask": ({"attention_mask": IDS[:, None]}, ValueError, r"attention_mask: got shape \(2, 1, 9\)"),
    "additive_mask": ({"attention_mask": torch.full((2, 9), -1e4)}, ValueError, "attention_mask: .*-10000"),
    "short_globals": ({"global_attention_mask": IDS[:1]}, ValueError, r"global_attention_mask: got shape \(1, 9\)"),
    "two_in_globals": ({"global_attention_mask": IDS - 3}, ValueError, "global_attention_mask: got the value 2"),
    "mask_of_lists": ({"attention_mask": [[1] * 9] * 2}, TypeError, "attention_mask: got list, expected a tensor"),
    "few_heads": ({"head_mask": torch.ones(2)}, ValueError, r"head_mask: got shape \(2,\).*num_attention_heads.*\(3,\)"),
    "few_layers": ({"head_mask": torch.ones(1, 3)}, ValueError, r"head_mask: got shape \(1, 3\).*\(2, 3\)"),
    "extended_heads": ({"head_mask": torch.ones(2, 1, 3, 1, 1)}, ValueError, "head_mask: got shape"),
}


@pytest.mark.parametrize(("arguments", "error", "words"), REFUSED.values(), ids=REFUSED)
def test_what_does_not_fit_is_refused_by_name(arguments, error, words):
    is_input = "input_ids" in arguments or "inputs_embeds" in arguments or not arguments
    with pytest.raises(error, match=words):
        ours("LongformerModel")(**(arguments if is_input else {"input_ids": IDS, **arguments}))


@settings(max_examples=6)
@given(seq_len=st.integers(1, 30), extra=st.integers(1, 9))
def test_appended_padding_changes_nothing(seq_len, extra):
    """On either side: positions come from the ids, and padding has none."""
    model, ids = ours("LongformerModel").double(), ids_of(1, seq_len)
    filler = torch.full((1, extra), PADDING)
    expected = model(ids).last_hidden_state
    for padded, place in ((torch.cat((ids, filler), 1), 0), (torch.cat((filler, ids), 1), extra)):
        got = model(padded, attention_mask=(padded != PADDING).long()).last_hidden_state
        close(got.narrow(1, place, seq_len), expected)
