import math

import pytest
import torch

from longformer_triton.bench import measure as measure_module
from longformer_triton.bench.cases import FORWARD, TRAINING, Case
from longformer_triton.bench.check import WrongAnswerError, relative_error
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


@pytest.mark.parametrize("axes", [{"dilation": 100}, {"padding": 99}], ids=["dilated_beyond_the_text", "one_real_token"])
def test_gradients_that_are_zero_are_right_up_to_rounding(axes):
    """A query that sees itself alone has a probability of one, whatever its score."""
    case = small_case("ours-torch", TRAINING, **axes)
    assert measure(case, CPU, cell_seconds=0.0).relative_error < 1e-5


def test_a_gradient_that_should_be_zero_and_is_not_is_wrong():
    want, terms = torch.tensor([1e-17, 0.0], dtype=torch.float64), torch.tensor([3.0, 4.0], dtype=torch.float64)
    assert relative_error(torch.tensor([0.0, 5.0]), want, terms) == pytest.approx(1)
    assert relative_error(torch.tensor([0.0, 5e-7]), want, terms) == pytest.approx(1e-7)
    assert relative_error(torch.tensor([2e-3, 0.0]), torch.tensor([1e-3, 0.0]), terms) == pytest.approx(1)


def test_a_graph_has_no_peak_of_memory(monkeypatch):
    """It has its memory before it is called: nothing would be measured, and no memory is not nothing."""
    monkeypatch.setattr(measure_module, "captured", lambda call, device: call)
    assert measure(small_case("ours-torch", graph=1), CPU, cell_seconds=0.0).peak_extra_mib is None


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


def test_a_gpu_spins_for_as_long_as_python_asks(monkeypatch):
    """Its time is then that of the work, whatever the host's; a call that waits for the GPU is not given more and more."""
    cell, spun, clock = Cell(small_case("ours-torch"), CPU), [], [0.0]

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            pass

        def elapsed_time(self, end):
            return 7.0

    def call():
        clock[0] += asked.pop(0)

    asked = [1e-3, 4e-3, 1.0, 1e-3]
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "_sleep", spun.append)
    monkeypatch.setattr(torch, "empty", lambda *_, **__: torch.zeros(1))
    monkeypatch.setattr(measure_module.time, "perf_counter", lambda: clock[0])
    cell.device, cell.call, cell.synchronize = torch.device("cuda"), call, lambda: None
    assert [cell.time_once() for _ in range(4)] == [7.0] * 4
    seconds = [clocks / measure_module._CLOCKS_A_SECOND for clocks in spun]
    assert seconds == pytest.approx([2e-3, 2e-3, 6e-3, 2e-2])
