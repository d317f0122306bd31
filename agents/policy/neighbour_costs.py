"""Estimate the cost of masks from statistics of neighbouring units, and choose masks by it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from das_gym.problem.budget import Budget, Floats, Masks


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


def greedy_mask(costs: NeighbourCosts, budget: Budget) -> Masks:
    """Skip, one after another, the unit that adds the least estimated cost to what is skipped; return an (n,) mask."""
    mask, one = np.zeros(budget.n_layers, dtype=bool), np.eye(budget.n_layers, dtype=bool)
    while not budget.is_kept_by(mask[None])[0]:
        # What a unit adds depends on which of its neighbours are skipped already, so all are estimated again.
        added = costs(mask | one) - costs(mask[None])
        mask[np.where(budget.useful_layers & ~mask, -added, -np.inf).argmax()] = True
    return mask
