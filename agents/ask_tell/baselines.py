"""The two baselines of every comparison: random masks, and all masks."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from das_gym.agents.ask_tell.base import Agent

from das_gym.problem.budget import Masks
from das_gym.problem.mask_space import MaskSpace


class RandomSearch(Agent):
    """Random masks, no mask twice; the baseline to beat."""

    def ask(self, n: int) -> Masks:
        """Return (m, n_layers) masks that were not scored before, m = n while there are enough."""
        return self.space.distinct(n, lambda: self.space.sample(self.rng), self.rng, self.rewards)


class Exhaustive(Agent):
    """Every mask within the budget, in the order of `MaskSpace.masks`."""

    draws: ClassVar[bool] = False

    def __init__(self, space: MaskSpace, seed: int | np.random.Generator | None = None) -> None:
        super().__init__(space, seed)
        self._masks = space.masks

    def ask(self, n: int) -> Masks:
        """Return the next (m, n_layers) masks, m < n at the end."""
        return self._masks[len(self.rewards) : len(self.rewards) + n].copy()
