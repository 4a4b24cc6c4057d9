"""Texts longer than the position table: refused in every model before anything runs, with numbers and remedy; tables tiled."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from model_cases import MODELS, PADDING, SEPARATOR, TINY, ours
from torch.utils._python_dispatch import TorchDispatchMode

pytestmark = pytest.mark.usefixtures("one_thread")

each_model = pytest.mark.parametrize("name", MODELS)
FIRST = PADDING + 1
LONGEST = TINY["max_position_embeddings"] - FIRST


class Launches(TorchDispatchMode):
    """The names of all operations that run."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func._opname)
        return func(*args, **(kwargs or {}))


def shaped(name, arguments):
    """The same texts, for multiple choice as the only choices of their questions."""
    return {key: value[:, None] for key, value in arguments.items()} if name.endswith("Choice") else arguments


def ids_of(seq_len, batch=1):
    ids = torch.randint(3, 40, (batch, seq_len))
    ids[:, [1, 2, seq_len // 2]] = SEPARATOR
    return ids


def embedded(seq_len):
    return {"inputs_embeds": torch.zeros(1, seq_len, TINY["hidden_size"]), "global_attention_mask": torch.zeros(1, seq_len)}


@each_model
@pytest.mark.parametrize("kind", ["input_ids", "inputs_embeds"])
def test_every_model_refuses_longer_texts_before_it_computes(name, kind):
    model = ours(name)
    for tokens in (LONGEST + 1, 3 * LONGEST):
        given_ = {"input_ids": ids_of(tokens)} if kind == "input_ids" else embedded(tokens)
        words = (
            rf"{kind}: got {tokens} tokens, expected at most {LONGEST}: .*has 120 rows, of which 2 .*resize_position_embeddings"
        )
        with Launches() as launches, pytest.raises(ValueError, match=words):
            model(**shaped(name, given_))
        assert not {"embedding", "global_index", "attention", "addmm", "native_layer_norm"} & {*launches.names}
    # The premise: a text that fits runs all of them.
    longest = {"input_ids": ids_of(LONGEST)} if kind == "input_ids" else embedded(LONGEST)
    with Launches() as launches:
        assert model(**shaped(name, longest))[0].isfinite().all()
    assert {"embedding", "attention", "addmm", "native_layer_norm"} <= {*launches.names}


def test_the_encoder_launches_nothing_at_all_for_embeddings_that_are_too_long():
    model, arguments = ours("LongformerModel"), embedded(LONGEST + 1)
    with Launches() as launches, pytest.raises(ValueError, match="resize_position_embeddings"):
        model(**arguments)
    assert launches.names == []


@each_model
def test_padding_has_no_position_and_real_tokens_count(name):
    model, ids = ours(name), ids_of(LONGEST + 9, batch=2)
    ids[0, LONGEST:], ids[1, :9] = PADDING, PADDING
    ids[1, [9, 10]] = SEPARATOR
    real = (ids != PADDING).long()
    assert model(**shaped(name, {"input_ids": ids, "attention_mask": real}))[0].isfinite().all()
    ids[1, 8], real[1, 8] = 5, 1
    with pytest.raises(ValueError, match=rf"input_ids: got {LONGEST + 1} tokens, expected at most {LONGEST}"):
        model(**shaped(name, {"input_ids": ids, "attention_mask": real}))


@each_model
@pytest.mark.parametrize("wrong", [-1, LONGEST + FIRST, 10**6])
def test_positions_that_the_table_has_not_are_refused_with_the_remedy(name, wrong):
    model, ids = ours(name), ids_of(9, batch=2)
    positions = torch.arange(FIRST, 9 + FIRST).expand(2, -1).clone()
    positions[1, 4] = wrong
    words = rf"position_ids: got {wrong}, expected 0 to 119: max_position_embeddings is 120; .*resize_position_embeddings"
    with Launches() as launches, pytest.raises(ValueError, match=words):
        model(**shaped(name, {"input_ids": ids, "position_ids": positions}))
    assert "embedding" not in launches.names
    positions[1, 4] = LONGEST + FIRST - 1
    assert model(**shaped(name, {"input_ids": ids, "position_ids": positions}))[0].isfinite().all()


@each_model
def test_positions_of_ones_own_admit_longer_texts(name):
    """A text that counts its positions again and again is as long as it likes."""
    model, ids = ours(name), ids_of(3 * LONGEST)
    positions = FIRST + torch.arange(3 * LONGEST)[None] % LONGEST
    got = model(**shaped(name, {"input_ids": ids, "position_ids": positions}))[0]
    model.resize_position_embeddings(3 * LONGEST + FIRST)
    assert torch.equal(model(**shaped(name, {"input_ids": ids}))[0], got), "which is what tiling the table does"


@given(
    padding=st.integers(0, 4),
    learned=st.integers(1, 30),
    sizes=st.lists(st.integers(1, 200), min_size=1, max_size=3),
)
def test_tables_are_tiled_and_cut(padding, learned, sizes):
    """Each time from what is there; the rows of padding stay, and so does what a table is."""
    model = ours(
        "LongformerModel",
        pad_token_id=padding,
        max_position_embeddings=padding + 1 + learned,
        num_hidden_layers=1,
        attention_window=4,
    )
    table, first = model.embeddings.position_embeddings, padding + 1
    for size in sizes:
        old = table.weight.detach().clone()
        model.resize_position_embeddings(first + size)
        rows = [*range(first), *(first + place % (len(old) - first) for place in range(size))]
        assert torch.equal(table.weight, old[rows])
        assert (table.num_embeddings, model.config.max_position_embeddings, model.embeddings.longest) == (
            len(rows),
            len(rows),
            size,
        )
        assert table.padding_idx == padding


def test_resizing_shares_nothing_with_the_old_table_and_trains():
    model = ours("LongformerModel")
    table = model.embeddings.position_embeddings
    old = table.weight
    model.resize_position_embeddings(240)
    with torch.no_grad():
        old.zero_()
    assert table.weight.abs().sum() > 0
    model(ids_of(200)).last_hidden_state.square().sum().backward()
    grads = table.weight.grad.abs().sum(1)
    assert (grads[FIRST:202] > 0).all()
    assert (grads[202:] == 0).all()


@pytest.mark.parametrize("wrong", [0, -3, 2])
def test_no_table_without_a_position(wrong):
    model = ours("LongformerModel")
    with pytest.raises(ValueError, match=f"new_num_position_embeddings: got {wrong}, expected more than 2"):
        model.resize_position_embeddings(wrong)


@pytest.mark.parametrize("wrong", [4098.0, "4098", None, True])
def test_a_size_is_a_whole_number(wrong):
    model = ours("LongformerModel")
    with pytest.raises(TypeError, match=f"new_num_position_embeddings: got {wrong!r}, expected an int"):
        model.resize_position_embeddings(wrong)
    assert model.embeddings.position_embeddings.num_embeddings == 120


@each_model
def test_a_longer_table_survives_saving(tmp_path, name):
    model = ours(name)
    model.resize_position_embeddings(400)
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    arguments = shaped(name, {"input_ids": ids_of(398)})
    assert torch.equal(again(**arguments)[0], model(**arguments)[0])
    assert again.config.max_position_embeddings == 400


def test_embeddings_of_a_wider_dtype_are_refused():
    model = ours("LongformerModel")
    given = {name: value.double() if name == "inputs_embeds" else value for name, value in embedded(9).items()}
    with pytest.raises(TypeError, match=r"^inputs_embeds: got dtype torch.float64, expected the model's torch.float32"):
        model(**given)
    assert model(**{**given, "inputs_embeds": given["inputs_embeds"].bfloat16()}).last_hidden_state.dtype == torch.float32
