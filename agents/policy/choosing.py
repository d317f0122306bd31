"""Masks of a policy, and of the rule that stands in for it on models of many units."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from das_gym.agents.policy.hinted import NeighbourCosts
from das_gym.agents.policy.network import READS, PolicyEnsemble, PolicyInput, PolicyNetwork

from das_gym.problem.budget import Budget, Masks
from das_gym.tables.suite import MAX_UNITS, Suite

RANK_WEIGHT = 3.0
"""Weight of the ranks of units against the Gumbel noise of drawn masks."""


def suite_inputs(suite: Suite) -> Iterator[tuple[np.ndarray, PolicyInput]]:
    """Yield the problems' numbers and the policy's input, for each table and budget of a suite."""
    groups: dict[int, list[int]] = {}
    for number, problem in enumerate(suite.problems):
        groups.setdefault(id(problem.budget), []).append(number)
    for numbers in groups.values():
        problems = [suite.problems[number] for number in numbers]
        masks = problems[0].table.masks
        statistics = [{name: problem.table.statistic(name) for name in READS} for problem in problems]
        yield np.array(numbers), PolicyInput.of(statistics, masks[problems[0].budget.is_kept_by(masks)])


@torch.no_grad()
def suite_masks(policy: PolicyEnsemble | PolicyNetwork, suite: Suite) -> Masks:
    """Return the policy's masks on the problems of a suite, (P, MAX_UNITS) bool."""
    found = np.zeros((len(suite.problems), MAX_UNITS), bool)
    for numbers, given in suite_inputs(suite):
        masks = given.skipped[policy(given).argmax(dim=1)].bool().numpy()
        found[numbers, : masks.shape[1]] = masks
    return found


def greedy_masks(costs: NeighbourCosts, budget: Budget, rng: np.random.Generator | None = None, count: int = 1) -> Masks:
    """Skip, one after another, the unit with the least estimated cost given what is skipped; return (count, n) masks.

    Args:
        costs: The estimates.
        budget: The budget of the masks.
        rng: Draws units by the softmax of their ranks; None takes the best.
        count: Number of masks, drawn independently; they may be equal.
    """
    n = budget.n_layers
    masks, one = np.zeros((count, n), bool), np.eye(n, dtype=bool)
    while (unfinished := ~budget.is_kept_by(masks)).any():
        more, less = ((masks[:, None] | one), (masks[:, None] & ~one))
        added = (costs(more.reshape(-1, n)) - costs(less.reshape(-1, n))).reshape(count, n)
        values = -RANK_WEIGHT * np.sign(added[:, :, None] - added[:, None]).mean(axis=2)
        if rng is not None:
            values = values + rng.gumbel(size=values.shape)
        best = np.where(budget.useful_layers & ~masks, values, -np.inf).argmax(axis=1)
        masks[unfinished, best[unfinished]] = True
    return masks
