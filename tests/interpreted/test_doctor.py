"""The checks that ``doctor`` runs on a GPU, run in the interpreter: they pass for right kernels and see a wrong one."""

import dataclasses

import pytest
import torch

from longformer_triton.bench import kernel_checks
from longformer_triton.kernels.triton_impl import launch

CPU = torch.device("cpu")
SMALL = [
    dataclasses.replace(
        check,
        seq_len=45,
        # A side that holds the whole text still does.
        window=tuple(side if side >= check.seq_len else min(side, 12) for side in check.window),
        num_globals=min(check.num_globals, 4),
    )
    for check in kernel_checks.CHECKS
]


@pytest.mark.parametrize("precision", ["float16", "float32"])
@pytest.mark.parametrize("check", SMALL, ids=lambda check: check.name.replace(", ", "_").replace(" ", "_"))
def test_checks_pass(check, precision):
    outcome = kernel_checks.run_check(check, precision, 16, CPU)
    assert outcome.is_well, outcome


def test_a_wrong_kernel_is_seen(monkeypatch):
    """A key range that is one key too narrow."""
    right = launch.Launch.run

    def wrong(self):
        if "left" in self.arguments:
            self.arguments["left"] -= 1
        right(self)

    monkeypatch.setattr(launch.Launch, "run", wrong)
    outcome = kernel_checks.run_check(SMALL[0], "float32", 16, CPU)
    assert not outcome.is_well
    assert "float32 head_dim 16, window: error" in str(outcome)


def test_what_is_refused_is_no_failure(monkeypatch):
    def refuse(*arguments):
        raise NotImplementedError("no configuration fits")

    monkeypatch.setattr(kernel_checks, "run_check", refuse)
    outcomes = list(kernel_checks.run_checks("float16", 32, CPU))
    assert [outcome.check for outcome in outcomes] == [check.name for check in kernel_checks.CHECKS]
    assert all(outcome.is_well and "no configuration" in outcome.refusal for outcome in outcomes)


def test_what_is_raised_does_not_end_the_others(monkeypatch):
    right = kernel_checks.run_check(SMALL[0], "float32", 16, CPU)

    def fail_once(check, *arguments):
        if check.name == "dilated":
            raise RuntimeError("an illegal memory access was encountered")
        return right

    monkeypatch.setattr(kernel_checks, "run_check", fail_once)
    outcomes = list(kernel_checks.run_checks("float32", 16, CPU))
    assert [outcome.check for outcome in outcomes if not outcome.is_well] == ["dilated"]
    assert "illegal memory access" in str(next(outcome for outcome in outcomes if not outcome.is_well))


def test_processes_report_and_what_they_did_not_come_to_has_failed(monkeypatch):
    """Started for a device that is not there, every check fails by name; killed at once, they do too."""
    monkeypatch.setattr(kernel_checks, "HEAD_DIMS", (64,))
    names = [check.name for check in kernel_checks.CHECKS]
    outcomes = list(kernel_checks.run_all("cuda:7", jobs=2, precisions=("float16", "tf32")))
    assert [outcome.check for outcome in outcomes] == names * 2
    assert [outcome.precision for outcome in outcomes] == ["float16"] * len(names) + ["tf32"] * len(names)
    assert all(outcome.failure and not outcome.is_well for outcome in outcomes)
    outcomes = list(kernel_checks.run_all("no device", jobs=1, precisions=("float16",)))
    assert [outcome.check for outcome in outcomes] == names
    assert all("the process ended with status 1" in outcome.failure for outcome in outcomes)
