"""Is a provider's answer right? Sampled rows against a float64 softmax, at any length, before a time counts.

Outputs and query gradients are compared at a few queries of the last text, key and value gradients at a few keys, all of whose
queries are computed. Queries of padding are not looked at. Dropout of this package is a function of its seed and is followed to
the bit; that of others comes from other generators of random numbers, so there the output is compared in the mean, and
gradients for shape and finiteness only.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from longformer_triton.bench.cases import Case, Inputs
from longformer_triton.bench.expected import Expected
from longformer_triton.bench.provider import Provider

# Relative error, ||got - want|| / ||want||, that no correct implementation in that precision exceeds.
TOLERANCE = {"float64": 1e-10, "float32": 1e-4, "float16": 1e-2, "bfloat16": 5e-2}
_ROWS, _ROWS_OF_A_MEAN = 24, 64
_MOST_QUERIES = 4096
# Standard deviations of a mean under dropout: once in ten million cells a right implementation would be called wrong.
_DEVIATIONS = 5.5
# A gradient that is smaller than this share of its terms is what float64 left of zero.
_ZERO = 1e-12


class WrongAnswerError(Exception):
    """A provider computed something else than the reference."""


def relative_error(got: Tensor, want: Tensor, terms: Tensor | None = None) -> float:
    """Relative error in the Euclidean norm; infinite for NaN.

    ``terms`` are those whose sum ``want`` is: where they cancel altogether, as in the gradient of a query that sees one key,
    errors are relative to them.
    """
    size = float(want.norm())
    if terms is not None and size <= _ZERO * float(terms.norm()):
        size = float(terms.norm())
    error = float((got.double() - want).norm()) / max(size, 1e-30)
    return math.inf if math.isnan(error) else error


def check_output(inputs: Inputs, out: Tensor, provider: Provider) -> float:
    """The relative error of sampled output rows, global ones included; raises beyond the tolerance.

    Where dropout is not ours: how far the scale of the output is from 1, on the average of the rows.
    """
    case = inputs.case
    _same_shape("output", out, inputs.grad_out)
    expected = Expected(inputs, provider, case.batch - 1)
    if case.dropout and not provider.dropout_is_ours:
        return _check_mean(expected, out.detach())
    head = case.heads - 1
    rows = _sampled(expected, _ROWS)
    want = torch.empty((len(rows), case.head_dim), dtype=torch.float64, device=rows.device)
    for kind, chosen in _kinds(expected, rows):
        want[chosen] = torch.cat([part.out() for part in expected.rows(rows[chosen], kind, head)])
    return _judge("output", case, relative_error(out.detach()[expected.sample, head, rows], want))


def _kinds(expected: Expected, rows: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Each kind of rows that is among ``rows``, with a mask of them."""
    own = expected.is_global(rows) & expected.has_own_rows
    for kind, chosen in (("", ~own), ("_global", own)):
        if bool(chosen.any()):
            yield kind, chosen


def _check_mean(expected: Expected, out: Tensor) -> float:
    """How far the scale of an output under somebody's dropout is from 1; raises where chance does not explain it.

    Dropout of share p keeps the mean: out = sum of p_j m_j v_j, where m_j has mean 1 and variance p / (1 - p), independent for
    every row and key. So <out, want> over <want, want> has mean 1, and variance p / (1 - p) times the sum of (p_j v_j . want)^2
    over <want, want>^2; the norm of out - want is about sqrt(p / (1 - p)) times that of the dropped terms. An implementation
    that forgets to scale the survivors, or to drop any, is off.
    """
    case = expected.inputs.case
    noise = math.sqrt(case.dropout / (100 - case.dropout))
    rows = _sampled(expected, _ROWS_OF_A_MEAN)
    along = squares = spread = terms = distance = 0.0
    for head in range(case.heads):
        got = out[expected.sample, head].double()
        for kind, chosen in _kinds(expected, rows):
            for part in expected.rows(rows[chosen], kind, head):
                want = part.out()
                along += float((got[part.index] * want).sum())
                squares += float((want * want).sum())
                spread += float((part.probability * (want @ part.value.T)).square().sum())
                terms += float((part.probability.square() @ part.value.square()).sum())
                distance += float((got[part.index] - want).square().sum())
    changed, usual = math.sqrt(distance), noise * math.sqrt(terms)
    if not usual / 4 <= changed <= 4 * usual:
        raise WrongAnswerError(f"output: dropout of {case.dropout} % changes it by {changed:.1e}, expected about {usual:.1e}")
    off = abs(along / squares - 1)
    bound = TOLERANCE[case.dtype] + _DEVIATIONS * noise * math.sqrt(spread) / squares
    if not off <= bound:
        raise WrongAnswerError(f"output: under dropout its mean is off by {off:.1e}, tolerance {bound:.1e}")
    return off


def check_gradients(inputs: Inputs, grads: dict[str, Tensor], provider: Provider) -> float:
    """The largest relative error of sampled gradients; raises beyond the tolerance.

    ``grads`` are gradients of ``inputs.packed``, (batch, seq_len, heads * head_dim).
    """
    case = inputs.case
    for name, grad in grads.items():
        _same_shape(f"{name} gradient", grad, inputs.packed[name])
        if not bool(grad.isfinite().all()):
            raise WrongAnswerError(f"{name} gradient: not finite")
    if case.dropout and not provider.dropout_is_ours:
        return 0.0
    expected = Expected(inputs, provider, case.batch - 1)
    tokens = expected.global_tokens
    rows = _sampled(expected, _ROWS)
    worst = _check_rows(expected, grads, rows[~expected.is_global(rows)] if expected.has_own_rows else rows, "")
    if expected.has_own_rows:
        worst = max(worst, _check_rows(expected, grads, tokens[:_ROWS], "_global"))
    for column in _columns(expected):
        worst = max(worst, _check_column(expected, grads, column, _seers(expected, column), ""))
        if expected.has_own_rows and len(tokens) <= _MOST_QUERIES:
            worst = max(worst, _check_column(expected, grads, column, tokens, "_global"))
    return worst


def _sampled(expected: Expected, count: int) -> Tensor:
    """Queries to compare: a spread from the first to the last, and the first and the last global token."""
    case = expected.inputs.case
    spread = torch.linspace(0, case.real_len - 1, min(count, case.real_len), device=expected.global_tokens.device).long()
    rows = torch.unique(torch.cat((spread, expected.global_tokens[[0, -1]] if len(expected.global_tokens) else spread)))
    return rows[_regular(expected, rows)]


def _regular(expected: Expected, rows: Tensor) -> Tensor:
    """Which queries see the window that the reference means: not those near an end where windows shift there."""
    case = expected.inputs.case
    left, right = case.band
    if not expected.provider.edges_shift or case.is_causal:
        return torch.ones_like(rows, dtype=torch.bool)
    return (rows >= left * case.step) & (rows < case.real_len - right * case.step)


def _columns(expected: Expected) -> list[int]:
    """Keys to compare: an ordinary one as near to the middle as there is, and the first global one."""
    case = expected.inputs.case
    position = torch.arange(case.real_len, device=expected.global_tokens.device)
    ordinary = position[~expected.is_global(position)]
    nearest = ordinary[(ordinary - case.real_len // 2).abs().argmin()].tolist() if len(ordinary) else None
    return [*([] if nearest is None else [nearest]), *expected.global_tokens[:1].tolist()]


def _seers(expected: Expected, column: int) -> Tensor:
    """Every query that sees a key, global rows only where they are of the first kind; none if these are too many to compute."""
    case = expected.inputs.case
    position = torch.arange(case.real_len, device=expected.global_tokens.device)
    if not expected.provider.is_windowed or bool((expected.global_tokens == column).any()):
        seers = position
    else:
        left, right = case.band
        reach = torch.isin(position, expected.global_tokens) if expected.provider.shares_projections else position < 0
        seers = position[reach | ((position - column >= -right * case.step) & (position - column <= left * case.step))]
    seers = seers[~expected.is_global(seers)] if expected.has_own_rows else seers
    too_many = len(seers) > _MOST_QUERIES or not bool(_regular(expected, seers).all())
    return seers[:0] if too_many else seers


def _check_rows(expected: Expected, grads: dict[str, Tensor], rows: Tensor, kind: str) -> float:
    """Query gradients at some rows of one kind."""
    case, sample, head = expected.inputs.case, expected.sample, expected.inputs.case.heads - 1
    if not len(rows):
        return 0.0
    grad_out = expected.inputs.grad_out[sample, head].double()
    gradients = (
        (part.grad_scores(grad_out[part.index]) @ part.key, part.grad_terms(grad_out[part.index]) @ part.key.abs())
        for part in expected.rows(rows, kind, head)
    )
    want, terms = map(torch.cat, zip(*gradients, strict=True))
    channels = slice(head * case.head_dim, (head + 1) * case.head_dim)
    return _judge(f"query{kind} gradient", case, relative_error(grads[f"query{kind}"][sample, rows, channels], want, terms))


def _check_column(expected: Expected, grads: dict[str, Tensor], column: int, seers: Tensor, kind: str) -> float:
    """Key and value gradients at one key, from every query that sees it and every head that shares it."""
    case, sample = expected.inputs.case, expected.sample
    if not len(seers):
        return 0.0
    group = case.heads // case.real_key_heads
    want_key, want_value, key_terms = torch.zeros((3, case.head_dim), dtype=torch.float64, device=seers.device)
    for head in range(case.heads - group, case.heads):
        grad_out = expected.inputs.grad_out[sample, head].double()
        for part in expected.rows(seers, kind, head):
            want_key += part.grad_scores(grad_out[part.index])[:, column] @ part.query
            key_terms += part.grad_terms(grad_out[part.index])[:, column] @ part.query.abs()
            want_value += part.kept[:, column] @ grad_out[part.index]
    channels = slice((case.real_key_heads - 1) * case.head_dim, case.real_key_heads * case.head_dim)
    worst = 0.0
    for name, want, terms in ((f"key{kind}", want_key, key_terms), (f"value{kind}", want_value, None)):
        error = relative_error(grads[name][sample, column, channels], want, terms)
        worst = max(worst, _judge(f"{name} gradient", case, error))
    return worst


def _same_shape(what: str, got: Tensor, like: Tensor) -> None:
    if got.shape != like.shape:
        raise WrongAnswerError(f"{what}: shape {tuple(got.shape)}, expected {tuple(like.shape)}")


def _judge(what: str, case: Case, error: float) -> float:
    if not error <= TOLERANCE[case.dtype]:
        raise WrongAnswerError(f"{what}: relative error {error:.1e} against float64, tolerance {TOLERANCE[case.dtype]:.0e}")
    return error
