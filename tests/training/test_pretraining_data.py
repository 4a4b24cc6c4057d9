"""The order of rows and what is hidden in them: functions of the seed and the place in the run, and of nothing else."""

import numpy
import pytest
import text_cases
import torch
from hypothesis import given
from hypothesis import strategies as st

from longformer_triton.heads.packing import PackedRows
from longformer_triton.heads.pretraining_data import TokenMasker, TrainingRows, ValidationRows, held_out
from longformer_triton.heads.pretraining_options import PretrainingOptions

SEQ_LEN = 12


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return text_cases.tokenizer_of(["river", "fox"], tmp_path_factory.mktemp("data"))


def packed(count):
    """Rows of which each has ids of its own, the last one shorter."""
    tokens = numpy.arange(count * (SEQ_LEN - 2) - 3, dtype="<u2") % 200 + 5
    return PackedRows(tokens, SEQ_LEN, 0, 2)


def training(tokenizer, count, seed=0):
    return TrainingRows(packed(count), torch.arange(count), TokenMasker(tokenizer, 0.4, seed))


@given(count=st.integers(1, 9), seed=st.integers(0, 5))
def test_every_row_comes_once_in_each_epoch_in_another_order(tokenizer, count, seed):
    rows = training(tokenizer, count, seed)
    epochs = [[rows.row_at(epoch * count + place) for place in range(count)] for epoch in range(6)]
    assert all(sorted(epoch) == list(range(count)) for epoch in epochs)
    assert count < 5 or len(set(map(tuple, epochs))) > 1
    # Whatever was asked for before, a position has its row.
    assert rows.row_at(0) == epochs[0][0]


@given(count=st.integers(1, 7), start=st.integers(0, 20), size=st.integers(1, 6), cut=st.integers(0, 6))
def test_batches_are_the_same_rows_however_they_are_cut(tokenizer, count, start, size, cut):
    rows = training(tokenizer, count)
    whole = rows.batch(start, size)
    cut = min(cut, size)
    parts = [rows.batch(first, many) for first, many in ((start, cut), (start + cut, size - cut)) if many]
    assert torch.equal(torch.cat([part.targets for part in parts]), whole.targets)
    assert sum(part.tokens for part in parts) == whole.tokens
    width = whole.input_ids.shape[1]
    assert all(torch.equal(row[: len(part)], part) for row, part in zip(whole.input_ids, rows_of(parts), strict=True))
    assert width == max(part.input_ids.shape[1] for part in parts)


def rows_of(batches):
    return [row for batch in batches for row in batch.input_ids]


def test_a_row_masks_other_tokens_in_the_next_epoch(tokenizer):
    rows = training(tokenizer, 1)
    first, second = rows.batch(0, 1), rows.batch(1, 1)
    assert not torch.equal(first.places, second.places)


def test_places_and_targets_speak_of_the_rows(tokenizer):
    batch = training(tokenizer, 3).batch(0, 3)
    originals = [packed(3)[training(tokenizer, 3).row_at(position)] for position in range(3)]
    padded = torch.full((3, SEQ_LEN), tokenizer.pad_token_id)
    for row, original in zip(padded, originals, strict=True):
        row[: len(original)] = torch.from_numpy(original)
    assert torch.equal(padded.flatten()[batch.places], batch.targets)
    assert batch.attention_mask.tolist() == (padded != tokenizer.pad_token_id).long().tolist()
    unchanged = torch.ones(padded.numel(), dtype=torch.bool).index_fill(0, batch.places, False)
    assert torch.equal(batch.input_ids.flatten()[unchanged], padded.flatten()[unchanged])
    assert not torch.isin(batch.targets, torch.tensor(tokenizer.all_special_ids)).any()


@given(count=st.integers(1, 12), size=st.integers(1, 4), processes=st.integers(1, 4))
def test_processes_share_held_out_rows(tokenizer, count, size, processes):
    """Each token once, and as many batches for each process."""
    rows = ValidationRows(packed(count), torch.arange(count), TokenMasker(tokenizer, 0.4, 1))
    (whole,) = rows.batches(count, 0, 1)
    shares = [rows.batches(size, process, processes) for process in range(processes)]
    assert len({len(share) for share in shares}) == 1
    in_order = [batch.targets for step in zip(*shares, strict=True) for batch in step]
    assert torch.equal(torch.cat(in_order), whole.targets)


@given(count=st.integers(2, 200), share=st.floats(0, 0.9), seed=st.integers(0, 3))
def test_rows_are_learned_from_or_held_out(count, share, seed):
    if share and max(1, round(count * share)) >= count:
        with pytest.raises(ValueError, match="leaves none to learn from"):
            held_out(count, share, seed)
        return
    learned, kept_back = held_out(count, share, seed)
    assert sorted([*learned.tolist(), *kept_back.tolist()]) == list(range(count))
    assert len(kept_back) == (max(1, round(count * share)) if share else 0)


@pytest.mark.parametrize(("max_steps", "warm_up", "top"), [(12, None, 1), (100, 0, 0), (9000, None, 500), (40, 20, 20)])
def test_the_learning_rate_rises_then_falls_to_zero(tmp_path, max_steps, warm_up, top):
    options = PretrainingOptions("model", [tmp_path], tmp_path, max_steps=max_steps, warm_up=warm_up)
    factors = [options.learning_rate_factor(step) for step in range(max_steps + 1)]
    assert options.warm_up_steps == top
    assert max(factors) == factors[top] == 1
    assert factors[:top] == pytest.approx([(step + 1) / top for step in range(top)])
    assert factors[top:] == pytest.approx([(max_steps - step) / (max_steps - top) for step in range(top, max_steps + 1)])
    assert factors[0] > 0
    assert factors[-1] == 0
