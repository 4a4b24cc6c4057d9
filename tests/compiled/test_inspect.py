"""``bench inspect`` and ``doctor`` print what they promise, without a GPU."""

import pytest
import torch
from typer.testing import CliRunner

from longformer_triton.bench.architectures import ARCHITECTURES
from longformer_triton.bench.compiled import Variant, bound_of, compile_launch
from longformer_triton.bench.inspect import PRODUCTS, compiled_kernels, row_of
from longformer_triton.bench.tune import compiles, fault_of, launch_of
from longformer_triton.cli import app
from longformer_triton.kernels.triton_impl.tuning import KERNEL_OF, Config


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
    bound = bound_of(compiled, PRODUCTS["window_forward"], 64)
    assert 0.5 < bound.share <= 1
    assert bound.by == "issue"


@pytest.mark.parametrize(
    ("architecture", "kernel", "dtype", "products"),
    [
        ("gfx942", "forward", torch.float16, "v_mfma"),
        ("gfx942", "forward", torch.float32, "v_mfma"),
        ("sm_90", "rows_forward", torch.float16, "HMMA"),
        ("sm_80", "forward", torch.float32, "FFMA"),
    ],
    ids=lambda value: str(value).removeprefix("torch."),
)
def test_every_main_loop_is_found(architecture, kernel, dtype, products):
    """The products of one step are those of its scores, twice; what is masked stands elsewhere."""
    variant = Variant(dtype=dtype, checks=kernel == "rows_forward")
    compiled = next(one for one in compiled_kernels(variant, architecture) if KERNEL_OF.get(one.kernel) == kernel)
    assert any(name.startswith(products) for name in compiled.main_loop)
    assert compiled.mix["exp2"] >= 1
    if kernel == "forward":
        assert compiled.mix["mask"] < 0.5
    bound = bound_of(compiled, PRODUCTS[compiled.kernel], 64)
    assert 0 < bound.share <= 1
    assert row_of(compiled, 64)[6].split()[1].startswith(products)


def test_kinds_of_instructions_add_up():
    compiled = compile_launch(launch_of("forward", Variant(), "sm_90", Config(128, 64, 8, 2)), "sm_90")
    assert sum(number for kind, number in compiled.mix.items() if kind != "all") == pytest.approx(compiled.mix["all"])


@pytest.mark.parametrize(
    ("architecture", "registers", "shared_bytes", "num_warps", "tensor_columns", "expected"),
    [
        ("sm_90", 128, 49_152, 8, 0, 2),
        ("sm_90", 129, 49_152, 8, 0, 1),  # registers come by eights
        ("sm_90", 168, 0, 4, 0, 3),
        ("sm_90", 32, 0, 1, 0, 32),  # no more programs than that
        ("sm_90", 32, 0, 8, 0, 8),  # 64 warps
        ("sm_86", 32, 0, 8, 0, 6),  # 48
        ("sm_90", 32, 113_664, 4, 0, 2),
        ("sm_90", 32, 116_736, 4, 0, 1),  # a kilobyte of each program is the system's
        ("sm_100", 64, 0, 4, 256, 2),
        ("gfx942", 244, 0, 8, 0, 1),
        ("gfx942", 244, 0, 4, 0, 2),
    ],
)
def test_programs_at_once(architecture, registers, shared_bytes, num_warps, tensor_columns, expected):
    about = ARCHITECTURES[architecture]
    assert about.programs_at_once(registers, shared_bytes, num_warps, tensor_columns) == expected


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
