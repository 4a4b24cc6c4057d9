"""A covering array: few rows in which every value of every option meets every value of every other option."""

from __future__ import annotations

import itertools
import random


def all_pairs(options: dict[str, list]) -> list[dict]:
    """Rows {option: value} such that each pair of values of two options stands in one of them; the same on every run.

    Greedy: a row starts with a pair that is not covered yet, and each further option takes the value that covers most.
    """
    generator = random.Random(0)
    names = list(options)
    open_pairs = {
        ((one, left), (other, right))
        for one, other in itertools.combinations(range(len(names)), 2)
        for left in range(len(options[names[one]]))
        for right in range(len(options[names[other]]))
    }
    rows = []
    while open_pairs:
        row: dict[int, int] = dict(min(open_pairs))
        for place in generator.sample(range(len(names)), len(names)):
            if place not in row:
                row[place] = max(
                    range(len(options[names[place]])), key=lambda value, at=place: _new(row, at, value, open_pairs)
                )
        open_pairs -= set(itertools.combinations(sorted(row.items()), 2))
        rows.append({name: options[name][row[place]] for place, name in enumerate(names)})
    return rows


def _new(row: dict[int, int], place: int, value: int, open_pairs: set) -> int:
    """How many open pairs a value covers together with what the row holds already."""
    return sum(tuple(sorted([(place, value), item])) in open_pairs for item in row.items())
