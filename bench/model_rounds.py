"""Implementations of one model side by side: a process for each, and calls that take turns.

A process of its own, because memory that one implementation leaves to the allocator spares the next one page faults, which are
about 40 % of the time of implementations that make large intermediates: no user has both in one process. Turns, so that a
machine which is busy for a while is unfair to none. Only one of them computes at a time.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence

from longformer_triton.bench.check import WrongAnswerError
from longformer_triton.bench.model_cells import MODELS, PEER, ModelCase, Prepared, error_of, summarise
from longformer_triton.bench.record import OK, WRONG
from longformer_triton.bench.worker import Outcome, Worker

_FEWEST, _MOST = 3, 30


def that_fit(cases: Sequence[ModelCase], active_bytes: Mapping[ModelCase, float], free: float) -> Iterator[list[ModelCase]]:
    """The cases in as few sets as hold in ``free`` bytes together, in order.

    Of a set all models are there at once, and one at a time is active. One that does not fit alone is a set of its own.
    """
    together: list[ModelCase] = []
    for case in cases:
        wider = [*together, case]
        needed = sum(other.static_bytes for other in wider) + max(active_bytes.get(other, 0.0) for other in wider)
        if together and needed > free:
            yield together
            together = []
        together.append(case)
    if together:
        yield together


def measure_in_turns(
    workers: Mapping[ModelCase, Worker], seconds: float, deadline: float | None
) -> dict[ModelCase, Outcome] | None:
    """Measure cases that differ in their provider alone, each once a round, each in its own worker.

    Args:
        workers: of :class:`ModelSession`, one for each case.
        seconds: of rounds for each case; there are three rounds at least.
        deadline: of ``time.monotonic``, or None.

    Returns:
        What each case gave, a :class:`ModelMeasurement` where all went well; None when the deadline came first.
    """
    outcomes: dict[ModelCase, Outcome] = {}
    prepared: dict[ModelCase, Prepared] = {}
    for case, worker in workers.items():
        outcome = worker.run(case, seconds, deadline)
        if outcome is None:
            return None
        if outcome[0] == OK:
            prepared[case] = outcome[2]
        else:
            outcomes[case] = outcome
    errors = _errors(prepared, outcomes)
    samples: dict[ModelCase, list[float]] = {case: [] for case in errors}
    end = time.perf_counter() + seconds * len(samples)
    for finished in range(_MOST):
        if finished >= _FEWEST and time.perf_counter() > end:
            break
        for case in list(samples):
            outcome = workers[case].run(None, seconds, deadline)
            if outcome is None:
                return None
            if outcome[0] == OK:
                samples[case].append(outcome[2])
            else:
                outcomes[case] = outcome
                del samples[case]
    for case, times in samples.items():
        outcomes[case] = (OK, "", summarise(case, prepared[case], times, errors[case]))
    return outcomes


def _errors(prepared: Mapping[ModelCase, Prepared], outcomes: dict[ModelCase, Outcome]) -> dict[ModelCase, float | None]:
    """The error of each case that may go on, None where there is nothing to compare; those too far off go to ``outcomes``."""
    expected = next((ready.logits for case, ready in prepared.items() if case.provider == PEER), None)
    errors: dict[ModelCase, float | None] = {}
    for case, ready in prepared.items():
        if expected is None or not MODELS[case.provider].is_windowed:
            errors[case] = None
            continue
        try:
            errors[case] = error_of(case, ready.logits, expected)
        except WrongAnswerError as error:
            outcomes[case] = (WRONG, str(error), None)
    return errors
