"""``bench inspect`` and ``doctor`` print what they promise, without a GPU."""

import types

import pytest
import torch
from typer.testing import CliRunner

from longformer_triton.bench import compiled as compiled_module
from longformer_triton.bench import doctor, inspect
from longformer_triton.bench.architectures import ARCHITECTURES, TESTED
from longformer_triton.bench.compiled import Variant, bound_of, compile_launch
from longformer_triton.bench.inspect import compiled_kernels, row_of
from longformer_triton.bench.tune import compiles, fault_of, launch_of
from longformer_triton.cli import app
from longformer_triton.kernels.triton_impl.tuning import STANDS_IN, Config, configurations, read_rows


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
    """With two stages, the compiler leaves out a fence between what threads store and the product that reads it."""
    variant = Variant(masks=True, dropout=True)
    fault = fault_of("global_rows_grad_key_value", variant, "sm_100", Config(64, 64, 4, 2))
    assert "a matrix product reads what threads stored, with no fence.proxy.async between them" in fault
    assert fault_of("global_rows_grad_key_value", variant, "sm_100", Config(64, 64, 4, 1)) is None


def test_tuning_keeps_what_it_found_and_goes_on_after_it(tmp_path):
    table = tmp_path / "folder" / "table.csv"
    command = ["bench", "tune", "--architecture", "gfx942", "--kernel", "global_columns_grad_key_value", "--save", str(table)]
    first = CliRunner().invoke(app, command)
    assert first.exit_code == 0, first.output
    rows = read_rows(table)
    assert [row.key for row in rows] == [
        ("gfx942", "half", "global_columns_grad_key_value", "pointers", 64, dropout, True) for dropout in (False, True)
    ]
    assert all(row.reason.endswith("at once on a multiprocessor") for row in rows)
    assert CliRunner().invoke(app, command).output == ""
    assert read_rows(table) == rows


@pytest.mark.parametrize("options", [["--head-dim", "80"], ["--kernel", "forwards"], ["--architecture", "sm_42"]], ids=" ".join)
def test_tuning_refuses_what_is_not_there_to_be_tuned(options):
    refused = CliRunner().invoke(app, ["bench", "tune", "--architecture", "sm_90", *options])
    assert refused.exit_code == 2
    assert "expected" in refused.output


def test_tuning_takes_no_tf32_for_exact_products():
    variant = Variant(dtype=torch.float32, masks=True, dropout=True)
    assert compiles("global_rows_grad_key_value", variant, "sm_100", Config(64, 64, 8, 1)) is None


def test_the_clean_loop_masks_nothing():
    """One exponential a score, two wgmma groups, and no selection: the mask belongs to the edges."""
    config = Config(128, 64, 8, 2)
    compiled = compile_launch(launch_of("window_forward", Variant(), "sm_90", config), "sm_90")
    loop = compiled.main_loop
    scores = config.block_m * config.block_n // (config.num_warps * 32)
    assert loop["HGMMA"] > 0
    assert loop["FSEL"] <= 2
    assert scores <= loop["MUFU"] <= scores + 8
    bound = bound_of(compiled, 64)
    assert 0.5 < bound.share <= 1
    assert bound.by == "issue"


@pytest.mark.parametrize(
    ("architecture", "kernel", "dtype", "products"),
    [
        ("gfx942", "window_forward", torch.float16, "v_mfma"),
        ("gfx942", "window_forward", torch.float32, "v_mfma"),
        ("sm_90", "global_rows_forward", torch.float16, "HMMA"),
        ("sm_80", "window_forward", torch.float32, "FFMA"),
    ],
    ids=lambda value: str(value).removeprefix("torch."),
)
def test_every_main_loop_is_found(architecture, kernel, dtype, products):
    """It holds the products and the exponentials of a step; what is masked stands elsewhere."""
    variant = Variant(dtype=dtype, masks=kernel == "global_rows_forward")
    compiled = next(one for one in compiled_kernels(variant, architecture) if one.kernel == kernel)
    assert any(name.startswith(products) for name in compiled.main_loop)
    assert compiled.mix["exp2"] >= 1
    if kernel == "window_forward":
        # Less than one for 16 scores, besides that by which NVIDIA's loops count; AMD's count scalars. AMD's assembly selects
        # without a comparison where it moves numbers between lanes.
        comparisons = sum(number for name, number in compiled.main_loop.items() if name.startswith(("ISETP", "FSETP", "v_cmp")))
        threads = compiled.config.num_warps * ARCHITECTURES[architecture].target.warp_size
        own = int(ARCHITECTURES[architecture].is_nvidia)
        assert (comparisons - own) * threads / compiled.tile < 1 / 16
    bound = bound_of(compiled, 64)
    assert 0 < bound.share <= 1
    assert row_of(compiled, 64)[6].split()[1].startswith(products)


def test_kinds_of_instructions_add_up():
    compiled = compile_launch(launch_of("window_forward", Variant(), "sm_90", Config(128, 64, 8, 2)), "sm_90")
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
    compiled = compile_launch(launch_of("window_forward", Variant(), "sm_90", Config(128, 64, 8, 2)), "sm_90")
    assert compiled.assembly.count("FSEL") + compiled.assembly.count(" SEL ") >= 32


@pytest.fixture
def no_gpu(monkeypatch):
    """A doctor that finds no GPU, one problem to compile, and another with --thorough."""
    monkeypatch.setattr(doctor.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(compiled_module, "shipped_problems", lambda: [("sm_90", Variant()), ("sm_90", Variant(128))])


def test_doctor_reports_and_compiles(no_gpu):
    result = CliRunner().invoke(app, ["doctor"])
    assert result.exit_code == 0, result.output
    for word in ("python", "torch", "triton", "ptxas", "cpu", "does not run: Triton drives GPUs", "ok sm_90", "all is well"):
        assert word in result.output
    assert "head_dim 128" not in result.output


@pytest.mark.parametrize("fits", [True, False])
def test_doctor_says_when_something_is_wrong(fits, no_gpu, monkeypatch):
    fake = types.SimpleNamespace(kernel="window_forward", fits=fits)
    monkeypatch.setattr(inspect, "compiled_kernels", lambda variant, architecture: [fake])
    result = CliRunner().invoke(app, ["doctor", "--thorough"])
    assert result.exit_code == (0 if fits else 1)
    assert ("SPILLS window_forward: sm_90, head_dim 128" in result.output) is not fits


def test_every_architecture_has_problems_of_every_precision():
    """Those that doctor --thorough compiles: what the table refuses is not among them."""
    found = {(architecture, variant.precision) for architecture, variant in compiled_module.shipped_problems()}
    assert found == {(name, precision) for name in TESTED for precision in ("half", "tf32", "ieee")}


def test_tf32_is_exact_where_there_is_none():
    """gfx950 runs gfx942's configurations, whose matrix units have it."""
    variant = Variant(dtype=torch.float32, tf32=True)
    loops = {name: next(iter(compiled_kernels(variant, name))).main_loop for name in ("gfx942", "gfx950")}
    products = {name: {key for key in loop if key.startswith("v_mfma")} for name, loop in loops.items()}
    assert all(name.endswith("xf32") for name in products["gfx942"])
    assert all(name.endswith("_f32") for name in products["gfx950"])


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_architectures_are_named_as_triton_names_them(architecture):
    """A device of theirs finds them, and all that is counted in clocks is there."""
    about = ARCHITECTURES[architecture]
    assert architecture == (f"sm_{about.target.arch}" if about.is_nvidia else about.target.arch)
    assert set(about.multiply_adds) == {"half", "tf32", "ieee"}
    assert about.shared_bytes + about.reserved_bytes <= about.all_shared_bytes
    assert architecture in TESTED or STANDS_IN[architecture] in {key.architecture for key in configurations()}
