"""Peak memory of the PyTorch backend grows with the length, not with its square.

Resident size cannot tell, because the allocator reuses what was freed; the running sum of the profiler's memory events is
exact. Its peaks at four lengths are fitted by a + b N + c N**2, and c N**2 has to be next to nothing at the largest.
"""

import numpy as np
import pytest
import torch

from longformer_triton.kernels import (
    AttentionPattern,
    absorbed_global_attention,
    longformer_attention,
    sliding_window_attention,
)

# Long enough, with 64 channels, for what grows to outweigh the scratch space of one block: a peak is the highest of several.
LENGTHS = (2048, 4096, 6144, 8192)
HEADS, CHANNELS, WINDOW, HIDDEN = 2, 64, 32, 128


def peak_bytes(function) -> int:
    """The highest running sum of what was allocated and freed while ``function`` ran."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        function()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    assert events
    running = np.cumsum([event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())])
    return int(running.max())


def quadratic_share(peaks: list[int]) -> float:
    """c N**2 over the whole, at the largest length, in the fit a + b N + c N**2."""
    lengths = np.array(LENGTHS, dtype=float)
    coefficients = np.linalg.lstsq(np.stack([lengths**0, lengths, lengths**2], 1), np.array(peaks, dtype=float), rcond=None)[0]
    return coefficients[2] * lengths[-1] ** 2 / peaks[-1]


def make(kind: str, seq_len: int, requires_grad: bool):
    """A function of no arguments that runs attention once; its inputs exist before the measurement."""

    def states(*shape: int) -> torch.Tensor:
        return torch.randn(shape, requires_grad=requires_grad)

    query, key, value, key_global, value_global = (states(1, HEADS, seq_len, CHANNELS) for _ in range(5))
    options = {"dropout_p": 0.1, "dropout_seed": torch.tensor(1)} if "dropout" in kind else {}
    marks = torch.zeros(1, seq_len, dtype=torch.long)
    marks[:, [0, 5, seq_len // 2]] = 1
    mask = torch.ones(1, seq_len, dtype=torch.long)
    mask[:, seq_len - 7 :] = 0
    mask[:, 3] = 0
    pattern = AttentionPattern.from_masks(mask, marks, window=WINDOW, dilation=(1, 3) if "dilated" in kind else 1)
    query_global = states(1, HEADS, 3, CHANNELS)
    if kind.startswith("straight"):
        return lambda: sliding_window_attention(query, key, value, window=WINDOW, **options)
    if kind.startswith("absorbed"):
        hidden, weights = states(1, seq_len, HIDDEN), [states(HEADS * CHANNELS, HIDDEN) for _ in range(2)]
        return lambda: absorbed_global_attention(hidden, query_global, *weights, None, pattern, **options)
    return lambda: longformer_attention(query, key, value, query_global, key_global, value_global, pattern, **options)


@pytest.mark.parametrize("direction", ["forward", "forward_and_backward"])
@pytest.mark.parametrize("kind", ["straight", "globals_and_rows", "globals_dilated", "globals_dropout", "absorbed"])
def test_no_quadratic_term(kind, direction):
    backward = direction == "forward_and_backward"
    peaks = []
    for seq_len in LENGTHS:
        function = make(kind, seq_len, backward)

        def run(function=function):
            out = function()
            if backward:
                out.sum().backward()

        peaks.append(peak_bytes(run))
    assert quadratic_share(peaks) <= 0.03, peaks
    # Ten times the input, at most: nothing that grows with window * length per head stays alive.
    inputs = 5 * HEADS * LENGTHS[-1] * CHANNELS * 4
    assert peaks[-1] <= 10 * inputs, peaks


def test_the_measurement_sees_a_quadratic_term():
    """Dense attention, by the same yardstick, at lengths that a test can bear."""
    peaks = []
    for seq_len in LENGTHS:
        states = torch.randn(1, 1, seq_len // 4, 4)
        peaks.append(peak_bytes(lambda states=states: torch.softmax(states @ states.transpose(-1, -2), -1) @ states))
    assert quadratic_share(peaks) > 0.5


def test_pattern_is_linear():
    """A pattern holds masks and positions, no block mask."""
    peaks = []
    for seq_len in LENGTHS:
        mask, marks = torch.ones(2, seq_len), torch.zeros(2, seq_len)
        marks[:, 0] = 1
        peaks.append(peak_bytes(lambda mask=mask, marks=marks: AttentionPattern.from_masks(mask, marks, window=WINDOW)))
    assert quadratic_share(peaks) <= 0.03, peaks
    assert peaks[-1] <= 200 * LENGTHS[-1]


@pytest.mark.parametrize("wanted", ["query", "key", "value"])
def test_gradients_that_nobody_needs_take_no_memory(wanted):
    """One gradient of three costs at most one input's bytes more than the scratch space that all share."""
    seq_len, size = LENGTHS[-1], HEADS * LENGTHS[-1] * CHANNELS * 4

    def peak(needed: tuple[str, ...]) -> int:
        inputs = {name: torch.randn(1, HEADS, seq_len, CHANNELS) for name in ("query", "key", "value")}
        for name in needed:
            inputs[name].requires_grad_()
        out = sliding_window_attention(**inputs, window=WINDOW)
        cotangent = torch.ones_like(out)
        return peak_bytes(lambda: out.backward(cotangent))

    assert peak(("query", "key", "value")) - peak((wanted,)) >= 1.9 * size
