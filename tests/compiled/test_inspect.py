"""``bench inspect`` and ``doctor`` print what they promise, without a GPU."""

import pytest
import torch
from typer.testing import CliRunner

from longformer_triton.bench.compiled import Variant, compile_launch, matrix_share
from longformer_triton.bench.inspect import PRODUCTS
from longformer_triton.bench.tune import compiles, fault_of, launch_of
from longformer_triton.cli import app
from longformer_triton.kernels.triton_impl.tuning import Config


def test_inspect_prints_the_main_loops():
    result = CliRunner().invoke(app, ["bench", "inspect", "--architecture", "sm_90"], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    for word in (
        "window_forward",
        "window_grad_query",
        "window_grad_key_value",
        "HGMMA",
        "registers",
        "spills",
        "exp2",
        "bound",
        "%",
    ):
        assert word in result.output


def test_unknown_architecture():
    result = CliRunner().invoke(app, ["bench", "inspect", "--architecture", "sm_42"])
    assert result.exit_code == 2
    assert "sm_42" in result.output


def test_what_is_refused_is_said():
    result = CliRunner().invoke(app, ["bench", "inspect", "--architecture", "sm_100", "--head-dim", "256"])
    assert result.exit_code == 0, result.output
    assert "refused" in result.output
    assert "head_dim 256" in result.output


def test_tuning_refuses_what_races():
    """With two stages, the compiler copies queries into the buffer that a product under way still reads."""
    variant = Variant(checks=True, dropout=True)
    fault = fault_of("rows_backward_key_value", variant, "sm_90", Config(64, 64, 4, 2))
    assert "shared memory is written where a matrix product may still read" in fault
    assert fault_of("rows_backward_key_value", variant, "sm_90", Config(64, 64, 4, 1)) is None


def test_tuning_takes_no_tf32_for_exact_products():
    variant = Variant(dtype=torch.float32, checks=True, dropout=True)
    assert compiles("rows_backward_key_value", variant, "sm_100", Config(64, 64, 8, 1)) is None


def test_the_clean_loop_masks_nothing():
    """One exponential a score, two wgmma groups, and no selection: the mask belongs to the edges."""
    config = Config(128, 64, 8, 2)
    compiled = compile_launch(launch_of("forward", Variant(), "sm_90", config), "sm_90")
    loop = compiled.main_loop
    scores = config.block_m * config.block_n // (config.num_warps * 32)
    assert loop["HGMMA"] > 0
    assert loop["FSEL"] <= 2
    assert scores <= loop["MUFU"] <= scores + 8
    assert 0 < matrix_share(compiled, PRODUCTS["window_forward"], 64) <= 1


def test_a_mask_on_every_tile_would_show():
    """The measure sees what it is for: the loop at the edges selects once a score."""
    compiled = compile_launch(launch_of("forward", Variant(), "sm_90", Config(128, 64, 8, 2)), "sm_90")
    assert compiled.assembly.count("FSEL") + compiled.assembly.count(" SEL ") >= 32


def test_doctor_reports_and_compiles(monkeypatch):
    from longformer_triton.bench import doctor

    monkeypatch.setattr(doctor.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(doctor, "_architectures_to_compile", lambda thorough: [("sm_90", 64)])
    result = CliRunner().invoke(app, ["doctor"])
    assert result.exit_code == 0, result.output
    for word in ("python", "torch", "triton", "ptxas", "cpu", "does not run: Triton drives GPUs", "sm_90", "all is well"):
        assert word in result.output


@pytest.mark.parametrize("spills", [0, 8])
def test_doctor_says_when_something_is_wrong(spills, monkeypatch):
    from longformer_triton.bench import doctor
    from longformer_triton.bench import inspect as inspection

    class Fake:
        fits = spills == 0

    monkeypatch.setattr(doctor.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(doctor, "_architectures_to_compile", lambda thorough: [("sm_90", 64)])
    monkeypatch.setattr(inspection, "compiled_kernels", lambda variant, architecture: [Fake()])
    result = CliRunner().invoke(app, ["doctor"])
    assert result.exit_code == (0 if spills == 0 else 1)
