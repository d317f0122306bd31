"""The truth: every mask, one after another."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from das_gym.agents.ask_tell.best_seen import BestSeen

from das_gym.problem.budget import Masks
from das_gym.problem.mask_space import MaskSpace


class Exhaustive(BestSeen):
    """Every allowed mask, in the order of `MaskSpace.masks`; the answer is the best one told.

    Args:
        space: The masks to choose from.
        seed: Not used: nothing is drawn.

    Raises:
        ValueError: the masks are too many to list.
    """

    draws: ClassVar[bool] = False

    def __init__(self, space: MaskSpace, seed: int | np.random.Generator | None = None) -> None:
        super().__init__(space, seed)
        self._masks = space.masks

    def ask(self, n: int) -> Masks:
        """The next (m, n_layers) masks, m < n at the end."""
        return self._masks[len(self.reported) : len(self.reported) + n].copy()
