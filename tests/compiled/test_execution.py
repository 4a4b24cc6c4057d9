"""The compiled kernels, run without a GPU: right in every precision, in bounds, and free of races.

``ptx_machine`` executes the PTX that Triton emits for each architecture. What the interpreter cannot see is seen here: bfloat16
and TF32, the copy engine and its swizzles, fragments of matrix instructions, contractions to fused products, barriers.
"""

import contextlib
import dataclasses

import pytest
import torch
from attention_cases import Case, Tf32Products, assert_close_to_float64, assert_same, naive_results, poisoned_allocations

from longformer_triton.bench.compiled import shipped_problems
from longformer_triton.bench.inspect import title_of
from longformer_triton.kernels import AttentionPattern, absorbed_global_attention

# Tiles have 128 rows and 64 columns on most architectures: these lengths have several, and a cut one.
PLAIN = Case(batch=1, heads=2, seq_len=200, head_dim=64, window=(70, 50))
CASES = {
    "window": PLAIN,
    "window_of_one_head": dataclasses.replace(PLAIN, heads=1, key_heads=1),
    "causal_with_sinks": dataclasses.replace(PLAIN, window=(90, 0), is_causal=True, globals_="some", scale=-0.2),
    "everything": Case(
        batch=2, heads=2, key_heads=1, seq_len=150, head_dim=64, window=(30, 80), padding="holes", globals_="some",
        global_rows=True, tokens_first=True,
    ),
    "dilated_head_dim_80": Case(batch=1, heads=2, seq_len=150, head_dim=80, window=20, dilation=(1, 3), padding="right"),
    "dilated_head_dim_80_and_globals": Case(
        batch=1, heads=2, seq_len=150, head_dim=80, window=20, dilation=(1, 3), padding="right", globals_="some",
        global_rows=True,
    ),
}  # fmt: skip
CASES["everything_and_dropout"] = dataclasses.replace(CASES["everything"], dropout_p=0.3)
ARCHITECTURES = ("sm_80", "sm_86", "sm_90", "sm_100", "sm_120")
EXAMPLES = [
    *((name, architecture, "bfloat16") for name in ("window", "everything") for architecture in ARCHITECTURES),
    ("causal_with_sinks", "sm_80", "float16"),
    ("dilated_head_dim_80", "sm_90", "bfloat16"),
    # More than sixteen global tokens: with a mask of bytes their gradients were wrong here (bench/LOG.md, "a mask of bytes").
    *(("everything_and_dropout", architecture, "bfloat16") for architecture in ("sm_90", "sm_120")),
    ("window_of_one_head", "sm_80", "float32"),
    ("window_of_one_head", "sm_90", "tf32"),
]
# What resembles others, and takes long.
MORE_EXAMPLES = [
    ("dilated_head_dim_80_and_globals", "sm_90", "bfloat16"),
    ("everything_and_dropout", "sm_80", "bfloat16"),
    ("window", "sm_80", "float32"),
    ("window", "sm_90", "tf32"),
]


@pytest.fixture
def use_products():
    """A function that sets what becomes of float32 products, and returns the dtype of a precision."""
    before = torch.get_float32_matmul_precision()

    def use(precision: str) -> torch.dtype:
        torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
        return torch.float32 if precision == "tf32" else getattr(torch, precision)

    yield use
    torch.set_float32_matmul_precision(before)


def assert_errors_of_the_same_precision(case, precision, dtype):
    inputs = case.inputs(dtype)
    with poisoned_allocations():
        got = case.results(inputs, "triton")
    exact = case.results([tensor.detach().double().requires_grad_() for tensor in inputs], "reference")
    with Tf32Products() if precision == "tf32" else contextlib.nullcontext():
        same = naive_results(case, inputs)
    for name in got:
        assert_close_to_float64(got[name], same[name], exact[name], name)


@pytest.mark.parametrize(
    "example",
    [*EXAMPLES, *(pytest.param(example, marks=pytest.mark.extended) for example in MORE_EXAMPLES)],
    ids="-".join,
)
def test_errors_are_those_of_the_same_precision(example, on_machine, use_products):
    name, architecture, precision = example
    on_machine(architecture)
    assert_errors_of_the_same_precision(CASES[name], precision, use_products(precision))


PROBLEMS = [
    pytest.param(architecture, variant, id=title_of(variant, architecture).replace(", ", "-").replace(" ", "_"))
    for architecture, variant in shipped_problems()
    if architecture in ARCHITECTURES
]


@pytest.mark.extended
@pytest.mark.parametrize(("architecture", "variant"), PROBLEMS)
def test_every_shipped_configuration(architecture, variant, on_machine, use_products):
    masks, dilation = variant.masks, variant.dilation
    # Long enough for several tiles in each of the loops: at both edges of the window, and between them.
    case = Case(
        batch=1, heads=1, key_heads=1, seq_len=400 * dilation, head_dim=variant.head_dim, window=(190, 180), dilation=dilation,
        padding="left" if masks else "none", globals_="some" if masks else "none", global_rows=masks,
        dropout_p=0.1 if variant.dropout else 0.0,
    )  # fmt: skip
    half = "float16" if dilation > 1 else "bfloat16"
    precision = {"half": half, "ieee": "float32", "tf32": "tf32"}[variant.precision]
    on_machine(architecture)
    assert_errors_of_the_same_precision(case, precision, use_products(precision))


def test_two_runs_are_equal_to_the_bit(on_machine):
    case = CASES["everything_and_dropout"]
    on_machine("sm_90", find_races=False)
    inputs = case.inputs(torch.bfloat16)
    assert_same(case.results(inputs, "triton"), case.results(inputs, "triton"), 0)


def test_dropout_masks_are_those_of_the_pytorch_backend(on_machine):
    """Scores of zero and values of one make each output the number of keys that were kept, of some eighty."""
    on_machine("sm_80", find_races=False)
    case = dataclasses.replace(CASES["everything_and_dropout"], padding="none")
    inputs = [torch.full_like(tensor, slot % 3 == 2) for slot, tensor in enumerate(case.inputs(torch.float16))]
    got, expected = (case.run(inputs, backend)[0] for backend in ("triton", "torch"))
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=0)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_absorbed_rows_drop_what_the_pytorch_backend_drops(architecture, on_machine):
    """Their products are cuBLAS's; what dropout keeps is a kernel of ours. Places in the list past a sample's count hold -1."""
    on_machine(architecture)
    marks = torch.zeros(2, 300)
    marks[0, [0, 70, 299]] = marks[1, [5]] = 1
    pattern = AttentionPattern.from_masks(torch.ones(2, 300), marks, window=4)
    generator = torch.Generator().manual_seed(1)
    sizes = ((2, 300, 16), (2, 3, pattern.global_index.shape[1], 8), (24, 16), (24, 16), (24,))
    inputs = [torch.randn(size, generator=generator).requires_grad_() for size in sizes]
    results = []
    for backend in ("triton", "torch"):
        out = absorbed_global_attention(*inputs, pattern, dropout_p=0.3, dropout_seed=torch.tensor(7), backend=backend)
        results.append((out, *torch.autograd.grad(out.sin().sum(), inputs)))
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-4)  # sums in another order
