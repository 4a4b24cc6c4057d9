"""What a cell should give, in float64, row by row: a dense reference at full length would not fit in memory; a row of it does.

The mask rule is written down here once more, apart from the package's ``AttentionPattern``, which is itself under test.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch
from torch import Tensor

from longformer_triton.bench.cases import Inputs
from longformer_triton.bench.provider import Provider
from longformer_triton.kernels.checks import dropout_threshold
from longformer_triton.kernels.dropout import Dropout

# Scores that are in memory at once.
_MOST_SCORES = 1 << 22


@dataclasses.dataclass(frozen=True)
class Rows:
    """Some rows of the softmax: ``probability`` before dropout and ``kept`` after it, [rows, seq_len]."""

    index: Tensor
    probability: Tensor
    factor: Tensor | float
    scale: float
    query: Tensor
    key: Tensor
    value: Tensor

    @property
    def kept(self) -> Tensor:
        """What multiplies the values."""
        return self.probability * self.factor

    def out(self) -> Tensor:
        """[rows, head_dim]."""
        return self.kept @ self.value

    def grad_scores(self, grad_out: Tensor) -> Tensor:
        """The gradient of scaled query times key, [rows, seq_len], for a gradient of the output, [rows, head_dim]."""
        grad_kept = grad_out @ self.value.T * self.factor
        mean = (self.probability * grad_kept).sum(-1, keepdim=True)
        return self.probability * (grad_kept - mean) * self.scale

    def grad_terms(self, grad_out: Tensor) -> Tensor:
        """How large the terms are that cancel in :meth:`grad_scores`: altogether where a row sees one key."""
        return self.probability * (grad_out @ self.value.T * self.factor).abs() * self.scale


@dataclasses.dataclass(frozen=True)
class Expected:
    """The expected rows of one text of a cell, for what ``provider`` says that it computes.

    Rows of the first kind, "", are those of query, key and value. Rows of the second kind, "_global", are those of global
    tokens whose projections are their own.
    """

    inputs: Inputs
    provider: Provider
    sample: int

    @property
    def has_own_rows(self) -> bool:
        """Whether rows of global tokens are of the second kind."""
        return self.provider.is_windowed and self.inputs.case.has_global_rows and not self.provider.shares_projections

    @property
    def global_tokens(self) -> Tensor:
        """Positions of the global tokens of this text; none for full attention, which sees everything anyway."""
        positions = self.inputs.case.global_positions(self.sample) if self.provider.is_windowed else []
        return torch.tensor(positions, dtype=torch.int64, device=self.inputs.grad_out.device)

    def is_global(self, rows: Tensor) -> Tensor:
        """Which of the rows are of global tokens."""
        return torch.isin(rows, self.global_tokens)

    def inside(self, rows: Tensor) -> Tensor:
        """[rows, seq_len]: keys in the window of each row."""
        case = self.inputs.case
        distance = torch.arange(case.seq_len, device=rows.device) - rows[:, None]
        left, right = case.band if self.provider.is_windowed else (case.seq_len, 0 if case.is_causal else case.seq_len)
        return (distance >= -left * case.step) & (distance <= right * case.step) & (distance % case.step == 0)

    def visible(self, rows: Tensor, kind: str) -> Tensor:
        """[rows, seq_len]: keys that each row sees."""
        case = self.inputs.case
        position = torch.arange(case.seq_len, device=rows.device)
        seen = self.inside(rows) | self.is_global(position)
        if case.is_causal:
            seen &= position <= rows[:, None]
        elif kind or self.provider.shares_projections:
            seen |= self.is_global(rows)[:, None]
        return seen & (position < case.real_len)

    def rows(self, rows: Tensor, kind: str, head: int) -> Iterator[Rows]:
        """The softmax of some rows, a few at a time."""
        case = self.inputs.case
        key_head = head * case.real_key_heads // case.heads
        query = self.inputs.heads_of(f"query{kind}")[self.sample, head].detach()
        key, value = (
            self.inputs.heads_of(f"{name}{kind}")[self.sample, key_head].detach().double() for name in ("key", "value")
        )
        scale = case.head_dim**-0.5
        for some in rows.split(max(1, _MOST_SCORES // case.seq_len)):
            some_query = query[some].double()
            scores = (some_query @ key.T * scale).masked_fill(~self.visible(some, kind), -torch.inf)
            factor = self._dropout_factor(some, kind, head) if case.dropout and self.provider.dropout_is_ours else 1.0
            yield Rows(some, torch.softmax(scores, -1), factor, scale, some_query, key, value)

    def _dropout_factor(self, rows: Tensor, kind: str, head: int) -> Tensor:
        """[rows, seq_len]: counted in steps of the dilation inside the window of a row of the first kind, plainly elsewhere."""
        case = self.inputs.case
        position = torch.arange(case.seq_len, device=rows.device)[None]
        step = torch.ones_like(position) if kind else torch.where(self.inside(rows), case.step, 1)
        stream = torch.tensor(self.sample * case.heads + head, device=rows.device)
        dropout = Dropout(self.inputs.dropout_seed, dropout_threshold(case.dropout / 100))
        return dropout.factor_at(stream, rows[:, None], position // step, torch.float64, position % step)
