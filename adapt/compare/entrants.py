"""Who takes part in a comparison: each method once, DAS with every number of skipped layers, found and at random."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from das_gym.adapt.methods.base import METHODS, Method, make_method

from das_gym.registration import find_class

MASKED = "das"
"""The method that takes a mask."""


@dataclass(frozen=True)
class Entrant:
    """A row of the comparison.

    Attributes:
        key: What its trainings are kept under.
        title: As it is called in tables.
        method: A key of `METHODS`.
        settings: Of the method.
        skip_num: Layers that it skips.
        drawn: Whether each seed draws its own mask.
        rate_of: Key of the row whose learning rate it takes; None chooses one of its own.
    """

    key: str
    title: str
    method: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    skip_num: int = 0
    drawn: bool = False
    rate_of: str | None = None

    def made(self, seed: int, n_layers: int) -> Method:
        """The method with its mask."""
        if not self.drawn:
            return make_method(self.method, self.settings)
        mask = np.zeros(n_layers, dtype=int)
        mask[np.random.default_rng([seed, self.skip_num]).choice(n_layers, self.skip_num, replace=False)] = 1
        return make_method(self.method, {**self.settings, "mask": tuple(mask.tolist())})


def entrants(
    methods: Sequence[str], settings: Mapping[str, Mapping[str, Any]], masks: Mapping[int, Sequence[int]]
) -> list[Entrant]:
    """All rows.

    Args:
        methods: Keys of `METHODS`.
        settings: Of methods, by name.
        masks: Of each number of layers to skip, what a search found.

    Raises:
        ValueError: a method that is not there, or a setting that it refuses.
    """
    found: list[Entrant] = []
    for name in methods:
        own = dict(settings.get(name, {}))
        make_method(name, own)  # a mistake is told before anything trains
        if name != MASKED:
            title = find_class(METHODS[name]).title
            found.append(Entrant(name, title, name, own))
            continue
        for skip_num, mask in sorted(masks.items()):
            key, title = f"das_{skip_num}", f"DAS, {skip_num} skipped"
            found.append(Entrant(key, title, name, {**own, "mask": tuple(mask)}, skip_num))
            if skip_num:
                title = f"DAS, {skip_num} at random"
                found.append(Entrant(f"random_{skip_num}", title, name, own, skip_num, drawn=True, rate_of=key))
    return found
