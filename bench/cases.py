"""One cell of a benchmark: its axes, its inputs, and how many useful operations it takes."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from longformer_triton.kernels import AttentionPattern

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}
FORWARD, TRAINING = "forward", "forward+backward"
DIRECTIONS = (FORWARD, TRAINING)


@dataclasses.dataclass(frozen=True)
class Case:
    """The axes of one cell.

    ``window`` is the total of both sides, Hugging Face's attention_window; None for providers that compute full attention.
    ``num_globals`` tokens at the start are global. Lengths are in tokens.
    """

    provider: str
    direction: str
    seq_len: int
    window: int | None
    batch: int = 1
    heads: int = 12
    head_dim: int = 64
    dtype: str = "float32"
    num_globals: int = 0

    @property
    def key(self) -> tuple[object, ...]:
        """What identifies the cell in a file of results."""
        return dataclasses.astuple(self)

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype of the inputs."""
        return DTYPES[self.dtype]

    @property
    def side(self) -> int:
        """Keys on each side of a query."""
        return self.seq_len if self.window is None else self.window // 2


def visible_pairs(case: Case) -> int:
    """Pairs (query, key) of one sequence and head that the softmaxes run over.

    A window of s keys each side has N (2 s + 1) - s (s + 1) pairs for s < N; each of G global tokens at the start adds a column
    for the queries that do not see it in their window, and its row attends to all N keys in place of its window.
    """
    n, g = case.seq_len, case.num_globals
    side = min(case.side, n - 1)
    window = n * (2 * side + 1) - side * (side + 1)
    seen_anyway = sum(min(n, position + side + 1) - max(0, position - side) for position in range(g))
    rows_replaced = seen_anyway + g * g - _pairs_within(g, side)
    return window + (g * n - seen_anyway) + (g * n - rows_replaced)


def _pairs_within(count: int, side: int) -> int:
    """Pairs of the first ``count`` tokens that are at most ``side`` apart."""
    return sum(min(count, position + side + 1) - max(0, position - side) for position in range(count))


def useful_flops(case: Case) -> int:
    """Floating-point operations that cannot be avoided: 4 head_dim a visible pair forward, 2.5 times that backward.

    Forward has two matrix products (q k^T, p v) of 2 head_dim operations a pair; backward five (the scores again, dp, dq, dk,
    dv). Softmax, masks and recomputation beyond that are not counted.
    """
    forward = 4 * case.head_dim * case.batch * case.heads * visible_pairs(case)
    return forward if case.direction == FORWARD else forward + forward * 5 // 2


@dataclasses.dataclass(frozen=True)
class Inputs:
    """Random inputs of a cell.

    ``packed`` holds the leaves as a model's projections give them, (batch, seq_len, heads * head_dim); ``heads_of`` views them
    as (batch, heads, seq_len, head_dim). Random, never zeros: zeros run faster than data.
    """

    case: Case
    packed: dict[str, Tensor]
    grad_out: Tensor

    @classmethod
    def random(cls, case: Case, device: torch.device, seed: int = 0) -> Inputs:
        """The same numbers for every provider of a cell."""
        generator = torch.Generator(device=device).manual_seed(seed)
        names = ["query", "key", "value"] + (["query_global", "key_global", "value_global"] if case.num_globals else [])
        shape = (case.batch, case.seq_len, case.heads * case.head_dim)
        training = case.direction == TRAINING
        packed = {
            name: torch.randn(shape, generator=generator, device=device).to(case.torch_dtype).requires_grad_(training)
            for name in names
        }
        grad_out = torch.randn(shape, generator=generator, device=device).to(case.torch_dtype)
        return cls(case, packed, cls._split(grad_out, case))

    @staticmethod
    def _split(states: Tensor, case: Case) -> Tensor:
        return states.view(*states.shape[:2], case.heads, case.head_dim).transpose(1, 2)

    def heads_of(self, name: str) -> Tensor:
        """(batch, heads, seq_len, head_dim), a view of the leaf."""
        return self._split(self.packed[name], self.case)

    @property
    def attention_mask(self) -> Tensor:
        """(batch, seq_len) of ones: no padding."""
        return torch.ones((self.case.batch, self.case.seq_len), dtype=torch.int64, device=self.grad_out.device)

    @property
    def global_attention_mask(self) -> Tensor:
        """(batch, seq_len), 1 at the first ``num_globals`` tokens."""
        mask = torch.zeros((self.case.batch, self.case.seq_len), dtype=torch.int64, device=self.grad_out.device)
        mask[:, : self.case.num_globals] = 1
        return mask

    def pattern(self) -> AttentionPattern:
        """The cell's pattern, built from masks as a model would."""
        masks = (self.attention_mask, self.global_attention_mask) if self.case.num_globals else (self.attention_mask, None)
        return AttentionPattern.from_masks(*masks, window=self.case.side)
