"""``bench tune`` on a GPU, which Triton's interpreter stands for: the fastest configuration whose results are right."""

import functools
import types

import pytest
import torch

from longformer_triton.bench import tune
from longformer_triton.bench.compiled import Variant, launches_of
from longformer_triton.kernels.triton_impl.tuning import INTERPRETER, Config

CANDIDATES = [Config(32, 64), Config(64, 64, num_stages=2), Config(16, 64, num_warps=8)]
MILLISECONDS = dict(zip(CANDIDATES, (3.0, 1.0, 2.0), strict=True))


@pytest.fixture
def said(monkeypatch):
    """What is said while tuning, in which compiling and timing are made up and problems are small."""
    small = lambda *arguments, seq_len, heads, **options: launches_of(*arguments, seq_len=70, heads=1, **options)  # noqa: E731
    monkeypatch.setattr(tune, "launches_of", small)
    monkeypatch.setattr(tune, "candidates", lambda *_: CANDIDATES)
    usage = {"registers": 100, "shared_bytes": 1000}
    monkeypatch.setattr(tune, "compiles", lambda *arguments: types.SimpleNamespace(config=arguments[-1], **usage))
    monkeypatch.setattr(tune.triton.testing, "do_bench", lambda run, return_mode: MILLISECONDS[run.__self__.config])
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Somebody's GPU")
    return []


find = functools.partial(tune.fastest, architecture=INTERPRETER, variant=Variant(dtype=torch.float32, masks=True), device="cpu")


@pytest.mark.parametrize("kernel", ["window_forward", "global_columns_grad_key_value"])
def test_the_fastest_is_taken(said, kernel):
    row = find(kernel, say=said.append)
    assert row.config == CANDIDATES[1]
    assert row.reason == "fastest of 3 on Somebody's GPU, 1000.0 us"
    assert len(said) == 3


@pytest.mark.parametrize("wrong", [None, 1], ids=["wrong_by_itself", "wrong_when_pipelined"])
def test_wrong_results_are_not_taken_however_fast(said, monkeypatch, wrong):
    run_all = tune._run_all

    def spoil(kernel, variant, architecture, config, device):
        launch, results = run_all(kernel, variant, architecture, config, device)
        if (config.block_m, config.block_n) == (64, 64) and config.num_stages != wrong:
            results[0][..., 5] += 1
        return launch, results

    monkeypatch.setattr(tune, "_run_all", spoil)
    assert find("window_forward", say=said.append).config == CANDIDATES[2]
    assert said[-1] == f"window_forward {CANDIDATES[1]}: wrong results"


@pytest.mark.parametrize(("programs_of_three", "stages"), [(1, 2), (2, 3), (3, 3)])
def test_a_third_stage_is_taken_unless_it_costs_a_program(programs_of_three, stages, monkeypatch):
    def compiles(kernel, variant, architecture, config):
        programs = programs_of_three if config.num_stages == 3 else 2
        return types.SimpleNamespace(
            config=config, registers=100, shared_bytes=1000, programs_at_once=programs, main_loop={"HGMMA": 1}
        )

    monkeypatch.setattr(tune, "compiles", compiles)
    monkeypatch.setattr(tune, "bound_of", lambda compiled, head_dim: types.SimpleNamespace(share=0.8))
    monkeypatch.setattr(tune, "fault_of", lambda *arguments: None)
    row = tune.best_by_issue_rates("window_grad_query", "sm_90", Variant(), print)
    assert row.config.num_stages == stages


def test_amds_tiles_have_no_third_stage():
    stages = {
        architecture: {config.num_stages for config in tune.candidates("window_forward", architecture, "half", 64, False)}
        for architecture in ("sm_80", "gfx942")
    }
    assert stages == {"sm_80": {1, 2, 3}, "gfx942": {1}}
