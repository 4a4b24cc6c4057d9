"""DistributedDataParallel and FSDP2: two processes learn what one learns that sees the batches of both."""

import dataclasses

import pytest
import torch
from data_parallel import Case, train, train_together

import longformer_triton

pytestmark = pytest.mark.usefixtures("one_thread")

WAYS = ("ddp", "fsdp2")
BATCHES = {
    "nothing_global": {"globals_": "none"},
    "nothing_global_checkpointed": {"globals_": "none", "checkpointing": True},
    "some_global": {"globals_": "some"},
    "global_on_one_process": {"globals_": "first_process"},
    "global_on_one_process_projected": {"globals_": "first_process", "absorb": False},
    "global_on_one_process_absorbed": {"globals_": "first_process", "absorb": True},
    "global_on_one_process_checkpointed": {"globals_": "first_process", "checkpointing": True},
    "classes": {"name": "LongformerForSequenceClassification", "globals_": "by_task"},
    "tags": {"name": "LongformerForTokenClassification", "globals_": "first_process"},
}
SAME = {f"{way}-{batch}": Case(way, **options) for way in WAYS for batch, options in BATCHES.items()}
WITH_DROPOUT = {
    f"{way}-{kind}": Case(way, globals_="first_process", dropout=True, checkpointing=kind == "checkpointed")
    for way in (*WAYS, "fsdp2_bfloat16")
    for kind in ("kept", "checkpointed")
}
CASES = SAME | WITH_DROPOUT


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """{id: what each of the two processes has}; one pair of processes runs them all, since starting it costs the most."""
    folder = tmp_path_factory.mktemp("together")
    found = train_together(folder, list(CASES.values()))
    by_name = {name: [process[number] for process in found] for number, name in enumerate(CASES)}
    return {**by_name, "saved": [process[-1] for process in found], "folder": folder}


def checked(results, name):
    for process in results[name]:
        assert not isinstance(process, str), process
    return results[name]


@pytest.mark.parametrize("name", SAME)
def test_two_processes_learn_what_one_learns_from_both_batches(results, name):
    expected = train(SAME[name], None)
    first, second = checked(results, name)
    losses = [process.pop("losses") for process in (first, second)]
    torch.testing.assert_close(sum(losses) / 2, expected.pop("losses"), rtol=1e-10, atol=1e-12)
    for process in (first, second):
        torch.testing.assert_close(process, expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("name", WITH_DROPOUT)
def test_dropout_leaves_processes_in_step(results, name):
    first, second = checked(results, name)
    assert all(value.isfinite().all() for value in (*first.values(), *second.values()))
    assert not torch.equal(first.pop("losses"), second.pop("losses"))
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    without = train(dataclasses.replace(WITH_DROPOUT[name], dropout=False), None)
    assert not torch.allclose(first["lm_head.dense.weight"], without["lm_head.dense.weight"])


@pytest.mark.parametrize("way", WAYS)
def test_checkpointing_draws_the_same_dropout_again(results, way):
    kept, checkpointed = checked(results, f"{way}-kept"), checked(results, f"{way}-checkpointed")
    torch.testing.assert_close(checkpointed, kept, rtol=1e-12, atol=1e-14)


def test_sharded_parameters_are_saved_when_they_are_gathered(results):
    for message in results["saved"]:
        assert "expected whole ones: pass the result of torch.distributed.checkpoint" in message
    again = longformer_triton.LongformerForMaskedLM.from_pretrained(results["folder"] / "gathered", dtype="auto")
    torch.testing.assert_close(again.state_dict(), Case("alone").model().state_dict(), rtol=0, atol=0)
