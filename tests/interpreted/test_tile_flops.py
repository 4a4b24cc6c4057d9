"""The count of what tiles compute, against the matrix products that the interpreter runs."""

import pytest
import torch
from triton.runtime.interpreter import InterpreterBuilder

from longformer_triton.bench.cases import FORWARD, SCATTERED, TRAINING, Case, Inputs
from longformer_triton.bench.providers import PROVIDERS, Ours
from longformer_triton.bench.tile_flops import tile_flops
from longformer_triton.kernels.triton_impl.tuning import INTERPRETER, Target

PLAIN = {"heads": 1, "head_dim": 16}
CASES = {
    "window": Case("ours-triton", FORWARD, 150, 40, heads=2, head_dim=16),
    "training": Case("ours-triton", TRAINING, 90, 20, batch=2, **PLAIN),
    "causal_with_sinks": Case("ours-triton", TRAINING, 70, 20, num_globals=3, is_causal=1, **PLAIN),
    "globals": Case("ours-triton", TRAINING, 70, 20, num_globals=18, globals_at=SCATTERED, **PLAIN),
    "padding_and_dropout": Case("ours-triton", TRAINING, 160, 20, num_globals=1, padding=30, dropout=10, **PLAIN),
    "dilated": Case("ours-triton", TRAINING, 110, 10, dilation=3, padding=15, **PLAIN),
    "dilated_beyond_the_text": Case("ours-triton", FORWARD, 7, 4, dilation=9, **PLAIN),
    "grouped_head_dim_24": Case("ours-triton", TRAINING, 50, 16, num_globals=2, heads=2, key_heads=1, head_dim=24),
}


@pytest.fixture
def computed(monkeypatch):
    """Operations of each matrix product, as they run."""
    operations = []
    create_dot = InterpreterBuilder.create_dot

    def count(self, a, b, *rest):
        operations.append(2 * a.data.shape[0] * a.data.shape[1] * b.data.shape[1])
        return create_dot(self, a, b, *rest)

    monkeypatch.setattr(InterpreterBuilder, "create_dot", count)
    return operations


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_what_tiles_compute_is_counted(case, computed):
    inputs = Inputs.random(case, torch.device("cpu"))
    out = PROVIDERS["ours-triton"].prepare(inputs)()
    if case.direction == TRAINING:
        torch.autograd.grad(out, list(inputs.packed.values()), inputs.grad_out)
    assert PROVIDERS["ours-triton"].tile_flops(inputs) == sum(computed)


def test_covering_windows_are_not_counted():
    inputs = Inputs.random(Case("ours-triton", FORWARD, 64, 256, **PLAIN), torch.device("cpu"))
    assert tile_flops(inputs, Target(INTERPRETER, descriptors=False)) is None


def test_the_torch_backend_is_not_counted():
    inputs = Inputs.random(CASES["window"], torch.device("cpu"))
    assert Ours("torch").tile_flops(inputs) is None
