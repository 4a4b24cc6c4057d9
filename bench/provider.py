"""What a contestant of the benchmarks is: the base class of every provider."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from longformer_triton.bench.cases import TRAINING, Case, Inputs

Run = Callable[[], Tensor]


class Provider:
    """One implementation of attention.

    Attributes:
        name: what results and command lines call it.
        title: what legends call it.
        is_windowed: whether it computes the window of a cell; False for full attention, which is there for contrast.
    """

    name: str
    title: str
    is_windowed = True

    def why_not(self, case: Case, device: torch.device) -> str | None:
        """None when the cell can run here, else the reason."""
        raise NotImplementedError(f"{type(self).__name__}.why_not: a provider says when it cannot run")

    def prepare(self, inputs: Inputs) -> Run:
        """Set-up outside the timing; the closure returns (batch, heads, seq_len, head_dim)."""
        raise NotImplementedError(f"{type(self).__name__}.prepare: a provider returns a closure")

    def peak_bytes(self, case: Case) -> int:
        """An upper estimate of the extra memory of one call; the default fits implementations that are linear in length."""
        item = case.torch_dtype.itemsize
        states = case.batch * case.seq_len * case.heads * case.head_dim * item
        return states * (16 if case.direction == TRAINING else 6)
