"""What a contestant of the benchmarks is: the base class of every provider."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Callable

import torch
from torch import Tensor

from longformer_triton.bench.cases import TRAINING, Case, Inputs

Run = Callable[[], Tensor]

# Features that a cell may ask for, and what is said of a provider that lacks one.
GLOBALS, PADDING, DROPOUT, CAUSAL, DILATION, GROUPED, GRAPH = (
    "globals", "padding", "dropout", "causal", "dilation", "grouped", "graph",
)  # fmt: skip
LACKING = {
    GLOBALS: "no global tokens",
    PADDING: "no padding mask",
    DROPOUT: "no dropout in the kernel",
    CAUSAL: "no causal windows",
    DILATION: "no dilation",
    GROUPED: "as many key heads as query heads",
    GRAPH: "in a CUDA graph only our kernels are measured",
}


def features_of(case: Case) -> list[str]:
    """The features that a cell asks for."""
    asked = {
        GLOBALS: case.num_globals > 0 and case.window is not None,
        PADDING: case.padding > 0,
        DROPOUT: case.dropout > 0,
        CAUSAL: bool(case.is_causal),
        DILATION: case.step > 1,
        GROUPED: case.real_key_heads != case.heads,
        GRAPH: bool(case.graph),
    }
    return [feature for feature, wanted in asked.items() if wanted]


def installed_version(package: str, distribution: str | None = None) -> str | None:
    """The version of an installed package, None where there is none; the package is not imported."""
    if importlib.util.find_spec(package) is None:
        return None
    try:
        return importlib.metadata.version(distribution or package)
    except importlib.metadata.PackageNotFoundError:
        return "of unknown version"


class Provider:
    """One implementation of attention.

    Attributes:
        name: what results and command lines call it.
        title: what legends call it.
        note: where what it computes differs from the rest, for the foot of a table; empty where it does not.
        lacks: features that it does not have; cells that ask for one are skipped, in words.
        is_windowed: whether it computes the window of a cell; False for full attention, which is there for contrast.
        shares_projections: whether rows of global tokens come from the query, key and value of all tokens.
        edges_shift: whether queries near an end see as many keys as others, further away on the other side.
        dropout_is_ours: whether its dropout is this package's function of a seed, which a check can follow to the bit.
    """

    name: str
    title: str
    note = ""
    lacks: frozenset[str] = frozenset({GRAPH})
    is_windowed = True
    shares_projections = False
    edges_shift = False
    dropout_is_ours = False

    def why_not(self, case: Case, device: torch.device) -> str | None:
        """None when the cell can run here, else the reason."""
        missing = [LACKING[feature] for feature in features_of(case) if feature in self.lacks]
        return missing[0] if missing else self.why_not_here(case, device)

    def why_not_here(self, case: Case, device: torch.device) -> str | None:
        """What besides missing features speaks against a cell: the device, the dtype, a package that is not installed."""
        raise NotImplementedError(f"{type(self).__name__}.why_not_here: a provider says when it cannot run")

    def prepare(self, inputs: Inputs) -> Run:
        """Set-up outside the timing; the closure returns (batch, heads, seq_len, head_dim)."""
        raise NotImplementedError(f"{type(self).__name__}.prepare: a provider returns a closure")

    def tile_flops(self, inputs: Inputs) -> int | None:
        """Operations of all tiles that a call computes, visible or not; None where that is not known."""
        return None

    def peak_bytes(self, case: Case, device: torch.device) -> int:
        """An upper estimate of the extra memory of one call; the default fits implementations that are linear in length."""
        item = case.torch_dtype.itemsize
        states = case.batch * case.seq_len * case.heads * case.head_dim * item
        return states * (16 if case.direction == TRAINING else 6)


class FullAttention(Provider):
    """Attention over all pairs: it ignores the window, its dilation and global tokens."""

    is_windowed = False
    note = "full attention: ignores the window and global tokens"

    def dense_bytes(self, case: Case) -> int:
        """The memory of an implementation that holds the scores of all pairs."""
        scores = case.batch * case.heads * case.seq_len**2 * max(4, case.torch_dtype.itemsize)
        return scores * (8 if case.direction == TRAINING else 5)
