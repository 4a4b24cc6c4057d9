"""Every shipped configuration compiles without spills, uses the matrix units, and keeps to its recorded budget."""

import dataclasses
import logging
import re

import pytest
import torch
import triton

from longformer_triton.bench.architectures import ARCHITECTURES, TESTED
from longformer_triton.bench.compiled import Variant, compile_launch
from longformer_triton.bench.tune import launch_of, problems_served
from longformer_triton.kernels import AttentionPattern, backends, longformer_attention, ops
from longformer_triton.kernels.triton_impl import problem, steps, tuning
from longformer_triton.kernels.triton_impl.tuning import (
    COLUMNS,
    SHIPPED,
    SHIPPED_FOR_3_6,
    STANDS_IN,
    WINDOW_KERNELS,
    Target,
    configurations,
    how_loaded,
    read_rows,
)

ROWS = list(configurations().values())
# The compiler's version decides registers; budgets were recorded with this one.
RECORDED_WITH = "3.7"


def is_fast(key) -> bool:
    """The default subset: half precision at head_dim 64, every kernel and architecture once, and all of sm_90."""
    is_usual = key.loads == how_loaded(key.kernel, descriptors=Target.named(key.architecture).descriptors)
    is_one = key.masks and not key.dropout and is_usual
    return key.precision == "half" and key.head_dim == 64 and (key.architecture == "sm_90" or is_one)


def as_param(row, architecture):
    marks = [] if is_fast(row.key) else [pytest.mark.extended]
    name = "-".join(
        str(part) for part in (architecture, *row.key[1:5], *(["dropout"] * row.key.dropout), *(["masks"] * row.key.masks))
    )
    return pytest.param(row, architecture, id=name, marks=marks)


def variant_of(key) -> Variant:
    could_load_by_descriptors = key.kernel in WINDOW_KERNELS and Target.named(key.architecture).descriptors
    # "half" is both. By default it is the one that test_execution.py runs, so that Triton compiles a program once for both.
    half = torch.bfloat16 if is_fast(key) and ARCHITECTURES[key.architecture].is_nvidia else torch.float16
    return Variant(
        head_dim=key.head_dim,
        dtype=half if key.precision == "half" else torch.float32,
        tf32=key.precision == "tf32",
        masks=key.masks,
        dropout=key.dropout,
        dilation=3 if could_load_by_descriptors and key.loads == "pointers" else 1,
    )


def served_by(row) -> list[str]:
    """The architectures that run a row: its own, and those without one that it stands in for."""
    guests = (name for name in TESTED if STANDS_IN.get(name) == row.key.architecture)
    return [row.key.architecture, *(name for name in guests if (name, *row.key[1:]) not in configurations())]


@pytest.mark.parametrize(("row", "architecture"), [as_param(row, name) for row in ROWS for name in served_by(row)])
def test_shipped_configuration(row, architecture):
    compiled = compile_launch(launch_of(row.key.kernel, variant_of(row.key), architecture, row.config), architecture)
    assert_fits(compiled)
    if triton.__version__.startswith(RECORDED_WITH) and architecture == row.key.architecture:
        # A few registers come and go with the compiler's mood; what they must not cost is a program on each multiprocessor.
        assert compiled.registers <= row.registers + 7, f"{compiled.registers} registers, recorded were {row.registers}"
        assert compiled.shared_bytes <= row.shared_bytes, f"{compiled.shared_bytes} bytes, recorded were {row.shared_bytes}"
        recorded = dataclasses.replace(compiled, registers=row.registers, shared_bytes=row.shared_bytes).programs_at_once
        assert compiled.programs_at_once >= recorded, (
            f"{compiled.programs_at_once} programs at once on a multiprocessor with {compiled.registers} registers and "
            f"{compiled.shared_bytes} bytes, recorded were {recorded} with {row.registers} and {row.shared_bytes}"
        )
    if compiled.wants_matrix_units:
        instructions = [name for name in compiled.main_loop if name.startswith(_matrix_instructions(row, architecture))]
        assert instructions, f"no matrix instruction in the main loop, {compiled.main_loop}"
    else:
        assert not compiled.uses_matrix_units, "TF32 where exact products are wanted"
        assert compiled.main_loop["FFMA"] >= compiled.tile * row.key.head_dim / (32 * row.config.num_warps)


SERVES_MORE = [
    row
    for row in ROWS
    if row.key.kernel in WINDOW_KERNELS and row.key.masks and row.key._replace(masks=False) not in configurations()
]


@pytest.mark.parametrize(("row", "architecture"), [as_param(row, name) for row in SERVES_MORE for name in served_by(row)])
def test_a_row_serves_problems_without_padding_and_globals_too(row, architecture):
    _, without = problems_served(row.key.kernel, variant_of(row.key))
    assert_fits(compile_launch(launch_of(row.key.kernel, without, architecture, row.config), architecture))


def assert_fits(compiled):
    assert compiled.spill_bytes == 0
    assert not compiled.serialized
    assert compiled.shared_bytes <= ARCHITECTURES[compiled.architecture].shared_bytes


def _matrix_instructions(row, architecture) -> tuple[str, ...]:
    """What computes the products: wgmma needs 64 rows, so tiles of sixteen global tokens run on the older instruction."""
    newest = {"sm_90": "HGMMA", "sm_100": "UTCHMMA", "gfx942": "v_mfma"}.get(architecture, "HMMA")
    narrow = architecture in ("sm_90", "sm_100") and (row.key.kernel not in WINDOW_KERNELS or min(own_rows(row)) < 64)
    return (newest, "HMMA") if narrow else (newest,)


def own_rows(row) -> tuple[int, ...]:
    """The rows of the kernel's products."""
    if row.key.kernel == "window_grad_key_value":
        return (row.config.block_n, row.config.block_m) if row.key.dropout else (row.config.block_n,)
    return (row.config.block_m,)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kernel", WINDOW_KERNELS)
def test_both_half_precisions_compile_alike(kernel, dtype):
    row = configurations()["sm_90", "half", kernel, "descriptors", 64, False, True]
    compiled = compile_launch(launch_of(kernel, Variant(dtype=dtype, masks=True), "sm_90", row.config), "sm_90")
    assert compiled.fits
    assert "HGMMA" in compiled.assembly


@pytest.mark.parametrize("table", [SHIPPED, SHIPPED_FOR_3_6], ids=lambda table: table.stem)
def test_the_tables_read_back_what_they_write(table):
    rows = read_rows(table)
    assert table.read_text().splitlines() == [",".join(COLUMNS), *(row.as_text() for row in rows)]
    assert len({row.key for row in rows}) == len(rows)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "architecture,kernel\nsm_90,window_forward\n",
            "tuned.csv: got the columns architecture, kernel, expected architecture,",
        ),
        (",".join(COLUMNS) + "\nsm_90,half,window_f", "tuned.csv, line 2: got 3 fields, expected 15: remove the line"),
    ],
    ids=["other_columns", "a_line_cut_short"],
)
def test_a_damaged_table_is_refused(tmp_path, text, message):
    table = tmp_path / "tuned.csv"
    table.write_text(text)
    with pytest.raises(ValueError, match=re.escape(message)):
        read_rows(table)


@pytest.fixture
def read_again():
    """A function that makes the next call read the tables again, as a new process would."""

    def forget():
        configurations.cache_clear()
        tuning._known.cache_clear()

    yield forget
    forget()


@pytest.fixture
def with_triton(monkeypatch, read_again):
    """A function that makes the tables those of Triton 3.6, or of a newer one."""

    def use(*, is_3_6: bool):
        monkeypatch.setattr(tuning, "IS_3_6", is_3_6)
        read_again()

    return use


def test_triton_3_6_has_lines_of_its_own(with_triton):
    """They take the place of others, or of an architecture's that stands in."""
    own = read_rows(SHIPPED_FOR_3_6)
    with_triton(is_3_6=False)
    shipped = configurations().copy()
    with_triton(is_3_6=True)
    assert own
    for row in own:
        assert configurations()[row.key] == row
        served = row.key if row.key in shipped else (STANDS_IN[row.key.architecture], *row.key[1:])
        assert shipped[served].config != row.config


def test_every_row_has_a_reason():
    assert all(row.reason for row in ROWS)


@pytest.mark.parametrize("architecture", ["sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120", "gfx942"])
@pytest.mark.parametrize("head_dim", [16, 32, 64, 80, 128])
def test_half_precision_is_served_everywhere(architecture, head_dim):
    target = Target.named(architecture)
    kernels = {row.key.kernel for row in ROWS}
    assert len(kernels) == 7
    for kernel in kernels:
        for dropout in (False, True):
            for descriptors in {False, target.descriptors}:
                config = target.config(kernel, head_dim, "half", dropout=dropout, masks=True, descriptors=descriptors)
                assert not dropout or kernel == "global_columns_grad_key_value" or config.block_n % 64 == 0


def test_what_has_no_row_is_refused_by_name():
    target = Target.named("sm_90")
    with pytest.raises(NotImplementedError, match=r"head_dim 256, ieee products with dropout, on sm_90.*backend='torch'"):
        target.config("window_grad_key_value", 256, "ieee", dropout=True, masks=True, descriptors=True)


@pytest.fixture
def on_architecture(monkeypatch):
    """Makes the backend see a GPU of a named architecture, and the choice of a backend new to it."""

    def choose(architecture):
        monkeypatch.setattr(problem, "target_of", lambda device: Target.named(architecture))
        backends.tell_torch_is_used.cache_clear()

    return choose


def states_and_pattern(dtype, head_dim, num_globals):
    """Query, key and value of two heads and eight tokens, the first of them global."""
    marks = torch.arange(8)[None] < num_globals
    pattern = AttentionPattern.from_masks(None, marks if num_globals else None, shape=(1, 8), window=2)
    return tuple(torch.zeros(1, 2, 8, head_dim, dtype=dtype) for _ in range(3)), pattern


@pytest.mark.parametrize(
    ("architecture", "dtype", "head_dim", "dropout", "num_globals", "expected"),
    [
        ("sm_80", torch.bfloat16, 64, True, 1, "triton_impl.launch"),
        ("sm_90", torch.float16, 128, True, 1, "triton_impl.launch"),
        ("sm_90", torch.float32, 64, True, 1, "triton_impl.launch"),
        ("sm_90", torch.float16, 256, False, 1, "triton_impl.launch"),
        ("sm_90", torch.float16, 256, True, 1, "blockwise"),
        ("sm_86", torch.float16, 256, False, 0, "triton_impl.launch"),
        ("sm_86", torch.float16, 256, False, 1, "triton_impl.launch"),
        ("sm_86", torch.float32, 128, False, 1, "blockwise"),
        ("sm_120", torch.float32, 64, False, 1, "triton_impl.launch"),
        ("sm_120", torch.float32, 64, True, 1, "blockwise"),
        ("gfx942", torch.float16, 80, False, 1, "triton_impl.launch"),
    ],
)
def test_a_call_that_leaves_the_choice_gets_what_has_configurations(
    architecture, dtype, head_dim, dropout, num_globals, expected, on_architecture, caplog
):
    on_architecture(architecture)
    states, pattern = states_and_pattern(dtype, head_dim, num_globals)
    with caplog.at_level(logging.INFO):
        module = ops.backend_module(backends.AUTOMATIC, states, pattern, dropout=dropout)
    assert module.__name__.endswith(expected)
    said = [record.message for record in caplog.records]
    assert len(said) == (expected == "blockwise")
    assert all(f"head_dim {head_dim}" in message and architecture in message for message in said)


def test_what_the_copy_engine_cannot_address_goes_where_pointers_have_no_row(on_architecture):
    """float16 of head_dim 256 on sm_90 has rows for descriptors alone; these begin 2 bytes off the 16 that they need."""
    on_architecture("sm_90")
    (states, *_), pattern = states_and_pattern(torch.float16, 257, 0)
    states = states[..., 1:]
    assert ops.backend_module(backends.AUTOMATIC, (states,) * 3, pattern, dropout=False).__name__.endswith("blockwise")


@pytest.mark.parametrize("is_capturing", [False, True])
def test_a_cuda_graph_is_told_why_it_cannot_hold_the_call(is_capturing, on_architecture, monkeypatch):
    """Half precision of head_dim 256 with dropout has no rows on sm_90; what does have some is captured."""
    on_architecture("sm_90")
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: is_capturing)
    # On the CPU but by their pattern's word, since no GPU is here to hold them.
    monkeypatch.setattr(AttentionPattern, "device", torch.device("cuda"))
    for head_dim, expected in ((64, "launch"), (256, "blockwise")):
        states, pattern = states_and_pattern(torch.float16, head_dim, 1)
        if is_capturing and expected == "blockwise":
            with pytest.raises(NotImplementedError, match=r"head_dim 256.*reads values back.*leave the call out"):
                ops.backend_module(backends.AUTOMATIC, states, pattern, dropout=True)
        else:
            assert ops.backend_module(backends.AUTOMATIC, states, pattern, dropout=True).__name__.endswith(expected)


def test_every_dilation_of_a_pattern_needs_rows(on_architecture):
    """The heads without dilation have those for descriptors; of the others' pointers there are none at this width."""
    on_architecture("sm_90")
    states, _ = states_and_pattern(torch.float16, 256, 0)
    for dilation, expected in ((1, "triton_impl.launch"), ((1, 3), "blockwise"), ((3, 1), "blockwise"), (3, "blockwise")):
        pattern = AttentionPattern.from_masks(shape=(1, 8), window=4, dilation=dilation)
        assert ops.backend_module(backends.AUTOMATIC, states, pattern, dropout=False).__name__.endswith(expected)


def test_rows_alone_need_no_configuration(on_architecture):
    """They are those of absorbed projections, as wide as the model."""
    on_architecture("sm_100")
    pattern = states_and_pattern(torch.float32, 768, 1)[1]
    assert ops.backend_module(backends.AUTOMATIC, None, pattern, dropout=True).__name__.endswith("triton_impl.launch")


@pytest.mark.parametrize("wanted", range(6), ids=["query", "key", "value", "query_global", "key_global", "value_global"])
def test_asked_for_by_name_a_missing_backward_is_refused_before_the_forward_runs(wanted, on_machine, monkeypatch, read_again):
    on_machine("sm_86")
    read_again()
    # Forward alone: what a table looks like that `bench tune --kernel window_forward` has begun.
    rows = {key: row for key, row in configurations().items() if "grad" not in key.kernel}
    monkeypatch.setattr(tuning, "configurations", lambda: rows)
    ran = []
    monkeypatch.setattr(steps.Launch, "run", lambda self: ran.append(self.kernel.__name__))
    (states, *_), pattern = states_and_pattern(torch.float16, 64, 1)
    inputs = [states.clone() for _ in range(6)]
    inputs[3] = inputs[3][:, :, :1]
    longformer_attention(*inputs, pattern, backend="triton")
    assert ran.count("window_forward") == 1
    inputs[wanted].requires_grad_()
    with pytest.raises(NotImplementedError, match=r"head_dim 64, half products, on sm_86.*kernel is known to fit"):
        longformer_attention(*inputs, pattern, backend="triton")
    with torch.no_grad():
        longformer_attention(*inputs, pattern, backend="triton")
    assert ran.count("window_forward") == 2


def test_on_a_gpu_the_choice_is_left_to_the_table(monkeypatch):
    """Without a GPU, the probe is asked about one of its own."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    cuda = torch.device("cuda")
    assert backends.choose(None, cuda, torch.float16, 64) == backends.AUTOMATIC
    assert backends.choose("triton", cuda, torch.float16, 64) == "triton"
    assert backends.choose(None, cuda, torch.float64, 64) == "torch"
    assert backends.choose(None, cuda, torch.float16, 512) == "torch"


def test_stand_ins_are_in_the_table():
    assert set(STANDS_IN.values()) <= {row.key.architecture for row in ROWS}


@pytest.mark.parametrize(("shipped", "architecture"), [("sm_90", "sm_90"), ("sm_86", "sm_80"), ("sm_86", "sm_89")])
def test_a_tuned_table_comes_first(shipped, architecture, tmp_path, monkeypatch, read_again):
    """Also for an architecture that another one's rows stand in for."""
    row = next(row for row in ROWS if row.key.architecture == shipped and row.key.kernel == "window_forward")
    key = row.key._replace(architecture=architecture)
    tuned = dataclasses.replace(row, key=key, config=dataclasses.replace(row.config, num_stages=5))
    file = tmp_path / "tuned.csv"
    file.write_text(",".join(COLUMNS) + "\n" + tuned.as_text() + "\n")
    monkeypatch.setenv("LONGFORMER_TRITON_CONFIGURATIONS", str(file))
    read_again()
    config = Target.named(architecture).config(
        key.kernel, key.head_dim, key.precision, dropout=key.dropout, masks=key.masks, descriptors=shipped == "sm_90"
    )
    assert config.num_stages == 5
