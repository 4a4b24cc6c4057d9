"""Is a provider's answer right? Sampled rows against a float64 softmax, at any length, before a time counts.

A dense reference at full length would not fit in memory; a row of it does. Outputs and query gradients are compared at a few
queries, key and value gradients at one key, whose queries are all computed.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from longformer_triton.bench.cases import Case, Inputs

# Relative error, ||got - want|| / ||want||, that no correct implementation in that precision exceeds.
TOLERANCE = {"float64": 1e-10, "float32": 1e-4, "float16": 1e-2, "bfloat16": 5e-2}
_ROWS = 24
_MOST_QUERIES = 4096


class WrongAnswerError(Exception):
    """A provider computed something else than the reference."""


def relative_error(got: Tensor, want: Tensor) -> float:
    """Relative error in the Euclidean norm; infinite for NaN."""
    error = float((got.double() - want).norm() / want.norm().clamp_min(1e-30))
    return math.inf if math.isnan(error) else error


def _rows_of(case: Case) -> Tensor:
    """Queries to compare: the first, the last, and a spread between; the global ones among the first."""
    spread = torch.linspace(0, case.seq_len - 1, min(_ROWS, case.seq_len)).long()
    return torch.unique(spread)


def _probabilities(inputs: Inputs, is_windowed: bool, head: int, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """float64 (probabilities [rows, seq_len], keys, values) of ordinary rows in the first sample."""
    case = inputs.case
    query, key, value = (inputs.heads_of(name)[0, head].detach().double() for name in ("query", "key", "value"))
    scores = query[rows] @ key.T * case.head_dim**-0.5
    if is_windowed:
        position = torch.arange(case.seq_len, device=rows.device)
        visible = (position - rows[:, None]).abs() <= case.side
        visible[:, : case.num_globals] = True
        scores = scores.masked_fill(~visible, -torch.inf)
    return torch.softmax(scores, -1), key, value


def check_output(inputs: Inputs, out: Tensor, is_windowed: bool) -> float:
    """The relative error of sampled output rows, global ones included; raises beyond the tolerance."""
    case = inputs.case
    rows = _rows_of(case).to(out.device)
    head = case.heads - 1
    probability, _, value = _probabilities(inputs, is_windowed, head, rows)
    want = probability @ value
    is_global = rows < case.num_globals
    if is_windowed and bool(is_global.any()):
        query, key, value = (inputs.heads_of(f"{name}_global")[0, head].detach().double() for name in ("query", "key", "value"))
        want[is_global] = torch.softmax(query[rows[is_global]] @ key.T * case.head_dim**-0.5, -1) @ value
    return _judge("output", case, relative_error(out.detach()[0, head, rows], want))


def check_gradients(inputs: Inputs, grads: dict[str, Tensor], is_windowed: bool) -> float:
    """The largest relative error of sampled gradients of query, key and value; raises beyond the tolerance.

    ``grads`` are gradients of ``inputs.packed``, (batch, seq_len, heads * head_dim).
    """
    case = inputs.case
    head = case.heads - 1
    channels = slice(head * case.head_dim, (head + 1) * case.head_dim)
    scale = case.head_dim**-0.5

    def backward(rows: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        probability, key, value = _probabilities(inputs, is_windowed, head, rows)
        grad_out = inputs.grad_out[0, head, rows].double()
        out = probability @ value
        grad_scores = probability * (grad_out @ value.T - (grad_out * out).sum(-1, keepdim=True))
        return probability, grad_scores * scale, grad_out, key

    rows = _rows_of(case).to(inputs.grad_out.device)
    rows = rows[rows >= case.num_globals] if is_windowed else rows
    _, grad_scores, _, key = backward(rows)
    worst = _judge("query gradient", case, relative_error(grads["query"][0, rows, channels], grad_scores @ key))
    column = case.seq_len // 2 if case.seq_len // 2 >= case.num_globals else case.seq_len - 1
    reach = case.side if is_windowed else case.seq_len
    seers = torch.arange(max(0, column - reach), min(case.seq_len, column + reach + 1), device=rows.device)
    seers = seers[seers >= case.num_globals] if is_windowed else seers
    if len(seers) <= _MOST_QUERIES and column >= case.num_globals:
        probability, grad_scores, grad_out, _ = backward(seers)
        query = inputs.heads_of("query")[0, head, seers].detach().double()
        want_key, want_value = grad_scores[:, column] @ query, probability[:, column] @ grad_out
        worst = max(worst, _judge("key gradient", case, relative_error(grads["key"][0, column, channels], want_key)))
        worst = max(worst, _judge("value gradient", case, relative_error(grads["value"][0, column, channels], want_value)))
    return worst


def _judge(what: str, case: Case, error: float) -> float:
    if not error <= TOLERANCE[case.dtype]:
        raise WrongAnswerError(f"{what}: relative error {error:.1e} against float64, tolerance {TOLERANCE[case.dtype]:.0e}")
    return error
