"""Lengths, windows, strides and counts are run-time arguments: fifty lengths, one compilation a kernel.

The launches go through Triton's own cache of compiled kernels, keyed as on a GPU; a stand-in for its driver names the
architecture, and the compiler is replaced by a counter.
"""

import collections

import pytest
import torch
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from longformer_triton.bench.compiled import standing_in
from longformer_triton.kernels import AttentionPattern
from longformer_triton.kernels.dropout import Dropout
from longformer_triton.kernels.triton_impl.launch import backward_steps, forward_steps
from longformer_triton.kernels.triton_impl.problem import BackwardInputs
from longformer_triton.kernels.triton_impl.tuning import KERNELS, Config, Target

# One, powers of two and their neighbours, multiples of 16, odd numbers, primes.
LENGTHS = [
    1, 2, 3, 5, 7, 13, 16, 17, 31, 32, 48, 61, 64, 65, 80, 97, 100, 127, 128, 129, 160, 191, 192, 211, 255, 256, 257, 301, 320,
    333, 384, 401, 500, 512, 513, 600, 640, 719, 768, 800, 896, 997, 1000, 1023, 1024, 1025, 1111, 1200, 1280, 1301,
]  # fmt: skip
TRIAL = dict.fromkeys(KERNELS, Config(64, 64, 4, 1))
TARGET = Target("sm_90", False, TRIAL)
DEVICE = "counted"


@pytest.fixture
def compilations(monkeypatch):
    """{kernel: how many times it was compiled}."""
    counts = collections.Counter()

    def compile_nothing(self, key, *args, **kwargs):
        counts[self.__name__] += 1
        compiled = object()
        self.device_caches[DEVICE][0][key] = compiled
        return compiled

    monkeypatch.setattr(JITFunction, "_do_compile", compile_nothing)
    yield counts
    for launch in launches(1, (1, 1), 1, 0.0, False, TARGET):
        launch.kernel.device_caches.pop(DEVICE, None)


def launches(seq_len: int, window: tuple[int, int], num_globals: int, dropout_p: float, tokens_first: bool, target: Target):
    """A forward and a backward pass of one length; globals as far as the text goes."""
    heads, head_dim = 2, 64

    def states(tokens: int) -> torch.Tensor:
        if tokens_first:
            return torch.zeros(1, tokens, heads, head_dim, dtype=torch.float16).transpose(1, 2)
        return torch.zeros(1, heads, tokens, head_dim, dtype=torch.float16)

    marks = torch.arange(seq_len)[None] < num_globals
    pattern = AttentionPattern.from_masks(torch.ones(1, seq_len), marks, window=window, max_globals=num_globals)
    inputs = (states(seq_len), states(seq_len), states(seq_len))
    rows = (states(num_globals), states(seq_len), states(seq_len))
    dropout = Dropout(torch.tensor(1), round(256 * dropout_p)) if dropout_p else None
    out, lse = states(seq_len), torch.zeros(1, heads, seq_len)
    grads = [torch.zeros_like(tensor) for tensor in (*inputs, *rows)]
    yield from forward_steps(inputs, rows, pattern, 0.125, dropout, out, lse, target)
    given = BackwardInputs(states(seq_len), None, out, lse)
    yield from backward_steps(given, inputs, rows, pattern, 0.125, dropout, [True] * 6, grads, target)


@pytest.mark.parametrize("descriptors", [False, True], ids=["pointers", "descriptors"])
@pytest.mark.parametrize("tokens_first", [False, True], ids=["heads_first", "tokens_first"])
def test_fifty_lengths(descriptors, tokens_first, compilations, monkeypatch):
    target = Target("sm_90", descriptors, TRIAL)
    assert len(LENGTHS) == 50
    with standing_in("sm_90"):
        # A device of its own has no kernels yet, whatever other tests compiled.
        monkeypatch.setattr(driver.active, "get_current_device", lambda: DEVICE)
        for number, seq_len in enumerate(LENGTHS):
            window, num_globals = (number, 1 + 3 * number % 40), 1 + number % 17
            for launch in launches(seq_len, window, num_globals, 0.1 if number % 2 else 0.2, tokens_first, target):
                launch.kernel.warmup(**launch.arguments, grid=(1,), **launch.config.options())
    for kernel in list(compilations):
        # prepare_rows serves windows and global rows, reduce_partials adds and writes: two programs each, by their constants.
        expected = 2 if kernel in ("prepare_rows", "reduce_partials") else 1
        assert compilations[kernel] == expected, f"{kernel}: {compilations[kernel]} compilations, expected {expected}"
    assert len(compilations) == 10
