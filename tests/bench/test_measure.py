import math

import pytest
import torch

from longformer_triton.bench import measure as measure_module
from longformer_triton.bench.cases import FORWARD, TRAINING, Case
from longformer_triton.bench.check import WrongAnswerError
from longformer_triton.bench.measure import Cell, measure, peak_extra_bytes
from longformer_triton.bench.providers import PROVIDERS, Ours
from longformer_triton.kernels import sliding_window_attention

CPU = torch.device("cpu")
ON_CPU = ["ours-torch", "sdpa", "transformers", "reference"]


def small_case(provider, direction=FORWARD, **axes):
    window = 16 if PROVIDERS[provider].is_windowed else None
    return Case(provider, direction, 50, window, heads=2, head_dim=8, **axes)


@pytest.mark.parametrize("direction", [FORWARD, TRAINING])
@pytest.mark.parametrize("num_globals", [0, 3], ids=["no_globals", "three_globals"])
@pytest.mark.parametrize("provider", ON_CPU)
def test_every_provider_agrees_with_the_reference(provider, num_globals, direction):
    result = measure(small_case(provider, direction, num_globals=num_globals), CPU, cell_seconds=0.0)
    assert result.relative_error < 1e-5
    assert result.repeats == 3
    assert 0 < result.p20_ms <= result.p50_ms <= result.p80_ms
    assert result.peak_extra_mib > 0


class OffByOne(Ours):
    """The most common mistake: a window that is one key short on the right."""

    def prepare(self, inputs):
        query, key, value = (inputs.heads_of(name) for name in ("query", "key", "value"))
        side = inputs.case.side
        return lambda: sliding_window_attention(query, key, value, window=(side, side - 1), backend="torch")


class WrongValueGradient(Ours):
    """A right output whose gradient is wrong."""

    def prepare(self, inputs):
        run = super().prepare(inputs)
        return lambda: run() + inputs.heads_of("value") - inputs.heads_of("value").detach()


@pytest.mark.parametrize(
    ("broken", "direction", "what"),
    [(OffByOne, FORWARD, "output"), (WrongValueGradient, TRAINING, "value gradient")],
    ids=["off_by_one_window", "wrong_gradient"],
)
def test_a_wrong_provider_is_refused(monkeypatch, broken, direction, what):
    monkeypatch.setitem(measure_module.PROVIDERS, "ours-torch", broken("torch"))
    with pytest.raises(WrongAnswerError, match=what):
        measure(small_case("ours-torch", direction), CPU, cell_seconds=0.0)


def test_nan_is_wrong(monkeypatch):
    class Poisoned(Ours):
        def prepare(self, inputs):
            return lambda: torch.full(inputs.grad_out.shape, math.nan)

    monkeypatch.setitem(measure_module.PROVIDERS, "ours-torch", Poisoned("torch"))
    with pytest.raises(WrongAnswerError, match="inf"):
        Cell(small_case("ours-torch"), CPU)


def test_peak_memory_is_exact():
    def hold_one_and_a_half_mib():
        first = torch.empty(2**20, dtype=torch.int8)
        second = torch.empty(2**19, dtype=torch.int8)
        del first, second
        torch.empty(2**18, dtype=torch.int8)

    assert peak_extra_bytes(hold_one_and_a_half_mib, CPU) == 2**20 + 2**19
