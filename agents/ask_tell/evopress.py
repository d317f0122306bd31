"""EvoPress as it drops layers: many offspring on few examples, two on all, and swaps that keep the count of every size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from das_gym.agents.ask_tell.base import check_number
from das_gym.agents.ask_tell.evolution import Evolution

from das_gym.problem.budget import Floats, Masks
from das_gym.problem.mask_space import MaskSpace


class EvoPress(Evolution):
    """EvoPress's search of layers to drop (arXiv 2410.14649, its settings for depth pruning).

    Of `initial` random masks the best is the parent. Every generation scores `offspring` mutants of it on a sixteenth of
    the reward examples and the best `survivors` of these on all; the best of them and the parent is the next parent. A
    mutation exchanges s skipped layers for s kept ones of the same size (attention for attention and MLP for MLP, where
    they are units apart), s the smaller of two draws from 1..3, so that the number skipped of each size stays as it is; by
    cost, the budget may ask for more layers then, or for fewer. Ours: the first masks pass through the same stages, and no
    mask is scored twice at one fidelity. `Evolution` is the same with other numbers and without sizes.

    Args:
        space: The masks to choose from.
        seed: Seed, or the generator to draw from.
        statistics: Statistic name to (n_layers,) values; `parameters_share` says which layers are of one size.
        offspring: lambda, at least 1.
        initial: Random masks at first, at least 1.
        survivors: Of a generation, how many are scored on all examples, at least 1.
        stages: Rising shares of the reward examples, the last 1.

    Raises:
        ValueError: a hyperparameter outside its range.
    """

    def __init__(
        self,
        space: MaskSpace,
        seed: int | np.random.Generator | None = None,
        statistics: Mapping[str, Floats] | None = None,
        offspring: int = 32,
        initial: int = 64,
        survivors: int = 2,
        stages: Sequence[float] = (1 / 16, 1.0),
    ) -> None:
        super().__init__(space, seed, offspring, stages=stages)
        check_number("initial", initial, minimum=1, whole=True)
        check_number("survivors", survivors, minimum=1, whole=True)
        self.initial, self.survivors = initial, survivors
        sizes = np.asarray((statistics or {}).get("parameters_share", np.zeros(self.n_layers)))
        self._sizes = np.unique(sizes, return_inverse=True)[1]

    @property
    def generation(self) -> int:
        """`initial` at first, then `offspring`."""
        return self.initial if self.parent is None else self.offspring

    def surviving(self, scored: int) -> int:
        """How many of a generation go on to the next stage."""
        return min(self.survivors, scored)

    def _draw(self) -> Masks:
        if self.parent is None:
            return self.space.sample(self.rng)
        mask = self.parent.copy()
        for _ in range(int(self.rng.integers(1, self.max_swaps, size=2, endpoint=True).min())):
            groups = [np.flatnonzero(self._sizes == size) for size in range(self._sizes.max() + 1)]
            groups = [group for group in groups if 0 < mask[group].sum() < len(group)]
            if not groups:
                break
            group = groups[self.rng.integers(len(groups))]
            mask[[self.rng.choice(group[mask[group]]), self.rng.choice(group[~mask[group]])]] ^= True
        values = self.rng.random(self.n_layers)
        return self.space.top(values + np.where(mask, 2.0, 0.0))
