"""Predict the cost of masks from statistics of neighbouring units, and use it in a Gaussian process over masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from das_gym.agents.ask_tell.bayes import LISTED, normal_scores
from das_gym.agents.ask_tell.gaussian_process import GRID, MaskProcess

from das_gym.problem.budget import Floats, Masks
from das_gym.problem.mask_space import MaskSpace

HINTS = (0.0, 0.1, 1.0, 10.0, 100.0)
"""Candidate variances of the hint's effect, as multiples of the variance of single layers."""

HINTED_GRID = (*GRID, HINTS)
"""`GRID` and the variance of the hint's effect."""

HINT_START = 3
"""Index into `HINTS` at which learning begins."""

_SAMPLES = 2000
"""Random masks that stand for all, where they are too many to list."""


class NeighbourCosts:
    """Costs of masks from runs of up to three units: each unit alone, and what it adds to its next ones in the stream.

    Args:
        statistics: Statistic name to (n,) values of `leave_one_out`, `next_interaction`, `run_interaction`, `stream` and
            `depth`.
    """

    def __init__(self, statistics: Mapping[str, Floats]) -> None:
        stream, depth = statistics["stream"], statistics["depth"]
        names = ("leave_one_out", "next_interaction", "run_interaction")
        self._effects = [np.asarray(statistics[name], float) for name in names]
        order = np.lexsort((depth, stream))
        follows = stream[order[1:]] == stream[order[:-1]]
        self._next = np.full(len(order) + 1, len(order))
        self._next[order[:-1][follows]] = order[1:][follows]

    def __call__(self, masks: Masks) -> Floats:
        """Return the predicted loss above the full model's in nats, (m,), of (m, n) bool masks."""
        skipped = np.concatenate((masks, np.zeros((len(masks), 1), dtype=bool)), axis=1)  # a last unit has no next one
        costs, run = np.zeros(len(masks)), skipped
        for effect in self._effects:
            costs += run[:, :-1] @ effect
            run = skipped & run[:, self._next]
        return costs

    def after_flips(self, mask: Masks) -> Floats:
        """Return (n, n) costs of a (n,) mask with two units flipped; on the diagonal, with one.

        Units more than two apart in their stream, or in different streams, do not interact, so most pairs are sums.
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
    """Predicted scores of masks: normal scores of their costs among the masks within the budget.

    Args:
        costs: The predicted costs.
        space: The masks within the budget; if there are too many, a fixed sample.
    """

    def __init__(self, costs: NeighbourCosts, space: MaskSpace) -> None:
        rng = np.random.default_rng(0)
        listed = (space.size or LISTED + 1) <= LISTED
        values = np.sort(costs(space.masks if listed else np.stack([space.sample(rng) for _ in range(_SAMPLES)])))
        self._costs, (self._values, first) = costs, np.unique(values, return_index=True)
        self._scores = -normal_scores(values.tolist())[first]

    def __call__(self, masks: Masks) -> Floats:
        """Return (m,) scores of (m, n) masks, higher is better."""
        return self._score(self._costs(masks))

    def after_flips(self, mask: Masks) -> Floats:
        """Return (n, n) scores of a (n,) mask with two units flipped; on the diagonal, with one."""
        return self._score(self._costs.after_flips(mask))

    def _score(self, costs: Floats) -> Floats:
        """Return the scores of costs of any shape: interpolated, and beyond the known costs on a line through the ends."""
        inside = np.interp(costs, self._values, self._scores)
        slope = (self._scores[-1] - self._scores[0]) / max(self._values[-1] - self._values[0], 1e-12)
        beyond = np.minimum(costs - self._values[0], 0.0) + np.maximum(costs - self._values[-1], 0.0)
        return inside + slope * beyond


class HintedProcess(MaskProcess):
    """`MaskProcess` with one more effect, that of a hint.

    Args:
        masks: (m, n_layers) bool, m >= 1.
        values: (m,) float.
        indices: The variances: one index into each axis of `HINTED_GRID`.
        hint: Predicted scores of masks.
    """

    def __init__(self, masks: Masks, values: Floats, indices: Sequence[int], hint: Hint) -> None:
        self._hint, self._variance = hint, HINTS[indices[-1]]
        super().__init__(masks, values, indices[:-1])

    def covariance(self, some: Masks, others: Masks) -> Floats:
        """See `Process.covariance`."""
        return super().covariance(some, others) + self._variance * np.outer(self._hint(some), self._hint(others))

    def prior_variances(self, masks: Masks) -> Floats:
        """See `Process.prior_variances`."""
        return super().prior_variances(masks) + self._variance * self._hint(masks) ** 2

    def flip_means(self, mask: Masks) -> Floats:
        """See `Process.flip_means`."""
        effect = self._variance * float(self._hint(self.masks) @ self.weights)
        return super().flip_means(mask) + effect * self._hint.after_flips(mask)
