"""The checks that ``doctor`` runs on a GPU, run in the interpreter: they pass for right kernels and see a wrong one."""

import dataclasses

import pytest
import torch

from longformer_triton.bench import doctor
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
    for check in doctor.CHECKS
]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("check", SMALL, ids=lambda check: check.name.replace(", ", "_").replace(" ", "_"))
def test_checks_pass(check, dtype):
    outcome = doctor.run_check(check, dtype, 16, CPU)
    assert outcome.is_well, outcome


def test_a_wrong_kernel_is_seen(monkeypatch):
    """A key range that is one key too narrow."""
    right = launch.Launch.run

    def wrong(self):
        if "left" in self.arguments:
            self.arguments["left"] -= 1
        right(self)

    monkeypatch.setattr(launch.Launch, "run", wrong)
    assert not doctor.run_check(SMALL[0], torch.float32, 16, CPU).is_well


def test_what_is_refused_is_no_failure(monkeypatch):
    def refuse(*arguments):
        raise NotImplementedError("no configuration fits")

    monkeypatch.setattr(doctor, "run_check", refuse)
    outcomes = list(doctor.run_checks(CPU, (torch.float16,), (32,)))
    assert len(outcomes) == len(doctor.CHECKS)
    assert all(outcome.is_well and "no configuration" in outcome.refusal for outcome in outcomes)
