"""What statistics of neighbours tell of whole masks, and a Gaussian process over masks that is told so beforehand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np
from das_gym.agents.ask_tell.bayes import LISTED, normal_scores
from das_gym.agents.ask_tell.gaussian_process import GRID, MaskProcess

from das_gym.problem.budget import Floats, Masks
from das_gym.problem.mask_space import MaskSpace

HINTS = (0.0, 0.1, 1.0, 10.0, 100.0)
"""Variances to choose from of the hint's effect, as multiples of that of single layers."""

HINTED_GRID = (*GRID, HINTS)
"""As `GRID`, and the variance of the hint's effect."""

HINT_START = 3
"""Where in `HINTS` learning begins."""

_DRAWN = 2000
"""Where the allowed masks are too many to list, so many are compared with."""


class NeighbourCosts:
    """What masks cost as far as runs of up to three units tell: each unit alone, and what it adds beside its next ones.

    Args:
        statistics: Statistic name to (n,) values: those of `needs`. `next_interaction` and `run_interaction` are taken to
            be 0 where they are not known.

    Raises:
        KeyError: one that is needed is not there.

    Attributes:
        needs: Names of the statistics that it cannot do without.
    """

    needs: ClassVar[frozenset[str]] = frozenset(("leave_one_out", "stream", "depth"))

    def __init__(self, statistics: Mapping[str, Floats]) -> None:
        alone, stream, depth = (np.asarray(statistics[name], float) for name in ("leave_one_out", "stream", "depth"))
        nothing = np.zeros(len(alone))
        together = [np.asarray(statistics.get(name, nothing), float) for name in ("next_interaction", "run_interaction")]
        self._effects = [alone, *together]
        order = np.lexsort((depth, stream))
        follows = stream[order[1:]] == stream[order[:-1]]
        self._next = np.full(len(alone) + 1, len(alone))
        self._next[order[:-1][follows]] = order[1:][follows]

    def __call__(self, masks: Masks) -> Floats:
        """(m,) nats above the unskipped model's loss, of (m, n) bool masks."""
        skipped = np.concatenate((masks, np.zeros((len(masks), 1), dtype=bool)), axis=1)  # the next of a last unit never is
        costs, run = np.zeros(len(masks)), skipped
        for effect in self._effects:
            costs += run[:, :-1] @ effect
            run = skipped & run[:, self._next]
        return costs

    def after_flips(self, mask: Masks) -> Floats:
        """(n, n) costs of a (n,) mask with two units flipped; on the diagonal, with one.

        Units more than two apart in their stream, or of different ones, do not mind each other.
        """
        n = len(mask)
        one = mask ^ np.eye(n, dtype=bool)
        single = self(np.concatenate((mask[None], one)))
        found = single[1:, None] + single[None, 1:] - single[0]
        np.fill_diagonal(found, single[1:])
        following = self._next
        for _ in range(2):
            near = np.flatnonzero(following[:n] < n)
            two = one[near]
            two[np.arange(len(near)), following[near]] ^= True
            found[near, following[near]] = found[following[near], near] = self(two)
            following = self._next[following]
        return found


class Hint:
    """How good masks look by what they cost, as normal scores among the allowed ones: the scale of a search's rewards.

    Args:
        costs: What masks cost.
        space: The allowed masks; of very many, some drawn from it, the same ones whenever it is made.
    """

    def __init__(self, costs: NeighbourCosts, space: MaskSpace) -> None:
        rng = np.random.default_rng(0)
        listed = (space.size or LISTED + 1) <= LISTED
        values = np.sort(costs(space.masks if listed else np.stack([space.sample(rng) for _ in range(_DRAWN)])))
        self._costs, (self._values, first) = costs, np.unique(values, return_index=True)
        self._scores = -normal_scores(values.tolist())[first]

    def __call__(self, masks: Masks) -> Floats:
        """(m,) scores of (m, n) masks, the higher the better."""
        return self._score(self._costs(masks))

    def after_flips(self, mask: Masks) -> Floats:
        """(n, n) scores of a (n,) mask with two units flipped; on the diagonal, with one."""
        return self._score(self._costs.after_flips(mask))

    def _score(self, costs: Floats) -> Floats:
        """Of costs of any shape; beyond all that was compared with, on a line through the ends."""
        inside = np.interp(costs, self._values, self._scores)
        slope = (self._scores[-1] - self._scores[0]) / max(self._values[-1] - self._values[0], 1e-12)
        beyond = np.minimum(costs - self._values[0], 0.0) + np.maximum(costs - self._values[-1], 0.0)
        return inside + slope * beyond


class HintedProcess(MaskProcess):
    """`MaskProcess` with one effect more: that of a hint.

    Args:
        masks: (m, n_layers) bool, m >= 1.
        values: (m,) float.
        place: Where in `HINTED_GRID` its variances are.
        hint: What is told of masks beforehand.
    """

    def __init__(self, masks: Masks, values: Floats, place: Sequence[int], hint: Hint) -> None:
        self._hint, self._variance = hint, HINTS[place[-1]]
        super().__init__(masks, values, place[:-1])

    def covariance(self, some: Masks, others: Masks) -> Floats:
        """As `Process.covariance`."""
        return super().covariance(some, others) + self._variance * np.outer(self._hint(some), self._hint(others))

    def prior_variances(self, masks: Masks) -> Floats:
        """As `Process.prior_variances`."""
        return super().prior_variances(masks) + self._variance * self._hint(masks) ** 2

    def flip_means(self, mask: Masks) -> Floats:
        """As `Process.flip_means`."""
        effect = self._variance * float(self._hint(self.masks) @ self.weights)
        return super().flip_means(mask) + effect * self._hint.after_flips(mask)
