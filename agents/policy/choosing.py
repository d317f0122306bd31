"""Masks of a policy: it skips one unit after another, the one with the highest score, until the budget is satisfied."""

from __future__ import annotations

import numpy as np
import torch
from das_gym.agents.policy.network import UnitNetwork, UnitNetworks

from das_gym.problem.budget import Budget
from das_gym.tables.suite import MAX_UNITS, Suite


@torch.no_grad()
def suite_masks(network: UnitNetwork | UnitNetworks, suite: Suite, which: np.ndarray, chunk: int = 512) -> np.ndarray:
    """Return the policy's masks on problems of a suite, (m, MAX_UNITS) bool.

    Args:
        network: The policy.
        suite: The problems, which show the policy's statistics.
        which: (m,) int64, the problems.
        chunk: Problems per batch.
    """
    columns = [suite.statistics.index(name) for name in network.config.statistics]
    masks = np.zeros((len(which), MAX_UNITS), bool)
    nothing = suite.saved[suite.rows(which, masks)]
    for start in range(0, len(which), chunk):
        part = slice(start, start + chunk)
        problems, chosen = which[part], masks[part]
        statistics = torch.from_numpy(suite.observed[problems][:, :, columns])
        units, goals = torch.from_numpy(suite.units[problems]).float(), torch.from_numpy(suite.goals[problems])
        while (unfinished := ~suite.kept[suite.rows(problems, chosen)]).any():
            saved = torch.from_numpy(suite.saved[suite.rows(problems, chosen)] - nothing[part]).float()
            scores, _ = network(statistics, units, torch.from_numpy(chosen).float(), goals, saved)
            best = np.where(suite.useful[problems] & ~chosen, scores.numpy(), -np.inf).argmax(axis=1)
            chosen[np.flatnonzero(unfinished), best[unfinished]] = True
    return masks


@torch.no_grad()
def choose(
    network: UnitNetwork | UnitNetworks,
    statistics: np.ndarray,
    budget: Budget,
    rng: np.random.Generator | None = None,
    count: int = 1,
) -> np.ndarray:
    """Return the policy's masks for one model, (count, n) bool.

    Args:
        network: The policy.
        statistics: (n, n_statistics) float, those of `network.config.statistics`.
        budget: The budget of the masks.
        rng: Draws units by the softmax of their scores; None takes the highest.
        count: Number of masks, drawn independently; they may be equal.
    """
    n = len(statistics)
    known = torch.from_numpy(np.asarray(statistics, np.float32)).expand(count, -1, -1), torch.ones(count, n)
    goals = torch.tensor([[(budget.skip_num or 0) / n, budget.saved or 0.0]], dtype=torch.float32).expand(count, -1)
    masks = np.zeros((count, n), bool)
    saved = np.zeros(count)
    while (unfinished := ~budget.is_kept_by(masks)).any():
        if budget.cost is not None:
            saved = budget.cost.saved(masks) - budget.cost.saved(np.zeros((count, n), bool))
        scores, _ = network(*known, torch.from_numpy(masks).float(), goals, torch.from_numpy(saved).float())
        values = scores.double().numpy()
        if rng is not None:
            values = values + rng.gumbel(size=values.shape)
        best = np.where(budget.useful_layers & ~masks, values, -np.inf).argmax(axis=1)
        masks[unfinished, best[unfinished]] = True
    return masks
