"""Evolutionary searches: (1 + lambda) evolution, and EvoPress with its mutations for depth pruning."""

from typing import ClassVar

import numpy as np
from das_gym.agents.ask_tell.base import Agent, Seed, Statistics

from das_gym.commands.settings import PositiveInt, convert
from das_gym.problem.budget import Floats, Masks
from das_gym.problem.mask_space import MaskSpace


class Evolution(Agent):
    """(1 + lambda) evolution (EvoPress, arXiv 2410.14649).

    The best of the first `offspring` random masks is the parent. Each generation scores `offspring` mutants of it, and
    the best of mutants and parent is the next parent. A mutant keeps all but s of the parent's skipped layers and skips s
    others, s the smaller of two draws from 1..`max_swaps`; for a budget by cost, as many others as it takes. No mask comes
    twice.

    Args:
        offspring: lambda, at least 1.
        max_swaps: Largest number of swaps, at least 1.
    """

    races: ClassVar[bool] = True

    def __init__(self, space: MaskSpace, seed: Seed = None, offspring: PositiveInt = 9, max_swaps: PositiveInt = 3) -> None:
        super().__init__(space, seed)
        self.offspring = convert("offspring", offspring, PositiveInt)
        self.max_swaps = convert("max_swaps", max_swaps, PositiveInt)
        self.parent: Masks | None = None
        self._scored = 0  # masks of this generation

    def ask(self, n: int) -> Masks:
        """Return (m, n_layers) masks, no more than the generation still needs."""
        return self.space.distinct(min(n, self.offspring - self._scored), self._draw, self.rng, self.rewards)

    def tell(self, masks: Masks, rewards: Floats) -> None:
        """Store the rewards, and choose the next parent after the last mask of a generation."""
        super().tell(masks, rewards)
        self._scored += len(masks)
        if self._scored >= self.offspring:
            self.parent = self.best()
            self._scored = 0

    def _draw(self) -> Masks:
        return self.space.sample(self.rng) if self.parent is None else self._mutate(self.parent)

    def _mutate(self, parent: Masks) -> Masks:
        return self.space.mutate(parent, self._draw_swaps(), self.rng)

    def _draw_swaps(self) -> int:
        return int(self.rng.integers(1, self.max_swaps, size=2, endpoint=True).min())


class EvoPress(Evolution):
    """EvoPress with its mutations for depth pruning (arXiv 2410.14649).

    A mutation swaps s skipped layers for s kept ones of the same size (attention for attention and MLP for MLP, where they
    are separate units), s the smaller of two draws from 1..3, so that the number skipped of each size does not change; by
    cost, the budget may then ask for more layers, or for fewer. Ours: fewer offspring, which race where a model scores
    them, instead of 32 that are scored on few examples first; and no mask comes twice.

    Args:
        statistics: Layer statistics; `parameters_share` identifies which layers have the same size.
        offspring: lambda, at least 1.
    """

    def __init__(
        self, space: MaskSpace, seed: Seed = None, statistics: Statistics | None = None, offspring: PositiveInt = 8
    ) -> None:
        super().__init__(space, seed, offspring)
        sizes = np.asarray((statistics or {}).get("parameters_share", np.zeros(self.n_layers)))
        self._sizes = np.unique(sizes, return_inverse=True)[1]

    def _mutate(self, parent: Masks) -> Masks:
        mask = parent.copy()
        for _ in range(self._draw_swaps()):
            groups = [np.flatnonzero(self._sizes == size) for size in range(self._sizes.max() + 1)]
            groups = [group for group in groups if 0 < mask[group].sum() < len(group)]
            if not groups:
                break
            group = groups[self.rng.integers(len(groups))]
            mask[[self.rng.choice(group[mask[group]]), self.rng.choice(group[~mask[group]])]] ^= True
        values = self.rng.random(self.n_layers)
        return self.space.top(values + np.where(mask, 2.0, 0.0))
