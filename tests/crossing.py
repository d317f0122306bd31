"""Every pair of settings in few rows: faults lie where two features meet."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

Row = dict[str, Any]
"""A value of each dimension."""

TRIED = 40
"""Rows that are drawn for each one that is taken."""


def crossed(
    dimensions: Mapping[str, Sequence[Any]], allowed: Callable[[Row], bool] = lambda row: True, seed: int = 0
) -> list[Row]:
    """Rows that have every two values of two dimensions together, but for those that no allowed row has.

    Greedy: of rows drawn around a pair that is still missing, the one with most missing pairs is taken.

    Args:
        dimensions: What there is to choose from, by name.
        allowed: Which rows mean something.
        seed: Of what is drawn.
    """
    rng, names = np.random.default_rng(seed), tuple(dimensions)

    def drawn(fixed: Mapping[str, int]) -> dict[str, int]:
        return {name: fixed.get(name, int(rng.integers(len(dimensions[name])))) for name in names}

    def values(places: Mapping[str, int]) -> Row:
        return {name: dimensions[name][place] for name, place in places.items()}

    def pairs(places: Mapping[str, int]) -> set[Any]:
        return set(itertools.combinations(((name, places[name]) for name in names), 2))

    missing = {
        ((one, i), (other, j))
        for one, other in itertools.combinations(names, 2)
        for i in range(len(dimensions[one]))
        for j in range(len(dimensions[other]))
    }
    rows: list[Row] = []
    while missing:
        pair = min(missing)
        tried = [places for places in (drawn(dict(pair)) for _ in range(TRIED)) if allowed(values(places))]
        if not tried:
            missing.discard(pair)  # nothing has it
            continue
        best = max(tried, key=lambda places: len(pairs(places) & missing))
        missing -= pairs(best)
        rows.append(values(best))
    return rows
