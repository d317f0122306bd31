"""The rows of a comparison: each method, and DAS with every number of skipped layers, with searched and random masks."""

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
class MethodVariant:
    """A row of the comparison.

    Attributes:
        key: Name of its trainings in files and records.
        title: Name in tables.
        method: A key of `METHODS`.
        settings: Of the method.
        skip_num: Number of skipped layers.
        random_mask: Whether each seed draws its own mask.
        rate_of: Key of the row whose learning rate it takes. None chooses its own.
    """

    key: str
    title: str
    method: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    skip_num: int = 0
    random_mask: bool = False
    rate_of: str | None = None

    def make(self, seed: int, n_layers: int) -> Method:
        """Return the method with its mask."""
        if not self.random_mask:
            return make_method(self.method, self.settings)
        mask = np.zeros(n_layers, dtype=int)
        mask[np.random.default_rng([seed, self.skip_num]).choice(n_layers, self.skip_num, replace=False)] = 1
        return make_method(self.method, {**self.settings, "mask": tuple(mask.tolist())})


def method_variants(
    methods: Sequence[str], settings: Mapping[str, Mapping[str, Any]], masks: Mapping[int, Sequence[int]]
) -> list[MethodVariant]:
    """Return all rows.

    Args:
        methods: Keys of `METHODS`.
        settings: Of methods, by name.
        masks: The searched mask for each number of skipped layers.
    """
    variants: list[MethodVariant] = []
    for name in methods:
        own = dict(settings.get(name, {}))
        make_method(name, own)  # rejects wrong settings before anything trains
        if name != MASKED:
            variants.append(MethodVariant(name, find_class(METHODS[name]).title, name, own))
            continue
        for skip_num, mask in sorted(masks.items()):
            key = f"das_{skip_num}"
            variants.append(MethodVariant(key, f"DAS, {skip_num} skipped", name, {**own, "mask": tuple(mask)}, skip_num))
            if skip_num:
                title = f"DAS, {skip_num} at random"
                random = MethodVariant(f"random_{skip_num}", title, name, own, skip_num, random_mask=True, rate_of=key)
                variants.append(random)
    return variants
