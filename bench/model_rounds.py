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

Logits = list[list[float]]

_FEWEST, _MOST = 3, 30
# Of a process that has imported PyTorch and transformers, or has set up a GPU.
_PROCESS_BYTES = 1 << 29
# What an allocator holds at a peak, over what was asked of it: three models that take 16 GiB by their own numbers did not go
# into 23 together.
_ALLOCATED = 1.5


def needed_bytes(cases: Sequence[ModelCase], active_bytes: Mapping[ModelCase, float], device_type: str) -> float:
    """What models that are there at once take, when each in turn takes its active bytes too.

    On a CPU it gives them back; on a GPU its process keeps them.
    """
    active = [_ALLOCATED * active_bytes.get(case, 0.0) for case in cases]
    return sum(case.static_bytes + _PROCESS_BYTES for case in cases) + (max(active) if device_type == "cpu" else sum(active))


def that_fit(
    cases: Sequence[ModelCase], active_bytes: Mapping[ModelCase, float], device_type: str, free: float
) -> Iterator[list[ModelCase]]:
    """The cases in sets that hold in ``free`` bytes together, in order. One that does not fit alone is a set of its own."""
    together: list[ModelCase] = []
    for case in cases:
        if together and needed_bytes([*together, case], active_bytes, device_type) > free:
            yield together
            together = []
        together.append(case)
    if together:
        yield together


def measure_in_turns(
    workers: Mapping[ModelCase, Worker], seconds: float, deadline: float | None, logits: dict[str, Logits]
) -> dict[ModelCase, Outcome] | None:
    """Measure cases that differ in their provider alone, each once a round, each in its own worker.

    Args:
        workers: of :class:`ModelSession`, one for each case.
        seconds: of rounds for each case; there are three rounds at least.
        deadline: of ``time.monotonic``, or None.
        logits: by provider, of models for the same text that were measured before; those of these are added.

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
            logits[case.provider] = outcome[2].logits
        else:
            outcomes[case] = outcome
    errors = _errors(prepared, logits.get(PEER), outcomes)
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


def _errors(
    prepared: Mapping[ModelCase, Prepared], expected: Logits | None, outcomes: dict[ModelCase, Outcome]
) -> dict[ModelCase, float | None]:
    """The error of each case that may go on, None where there is nothing to compare; those too far off go to ``outcomes``."""
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
