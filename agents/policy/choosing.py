"""What a policy skips: one unit after another, the one with the highest score, until the budget is kept."""

from __future__ import annotations

import numpy as np
import torch
from das_gym.agents.policy.network import UnitNetwork, UnitNetworks

from das_gym.problem.budget import Budget
from das_gym.tables.suite import MAX_UNITS, Suite


@torch.no_grad()
def suite_masks(network: UnitNetwork | UnitNetworks, suite: Suite, which: np.ndarray, chunk: int = 512) -> np.ndarray:
    """(m, MAX_UNITS) bool: what the policy skips on problems `which` ((m,) int64) of a suite.

    Args:
        network: The policy.
        suite: The problems, which show the policy's statistics.
        which: Which of them.
        chunk: How many go at a time.
    """
    columns = [suite.statistics.index(name) for name in network.config.statistics]
    masks = np.zeros((len(which), MAX_UNITS), bool)
    nothing = suite.saved[suite.rows(which, masks)]
    for start in range(0, len(which), chunk):
        part = slice(start, start + chunk)
        chosen, mine = which[part], masks[part]
        known = [torch.from_numpy(suite.observed[chosen][:, :, columns]), torch.from_numpy(suite.units[chosen]).float()]
        goals = torch.from_numpy(suite.goals[chosen])
        for _ in range(MAX_UNITS):
            going = ~suite.kept[suite.rows(chosen, mine)]
            if not going.any():
                break
            saved = torch.from_numpy(suite.saved[suite.rows(chosen, mine)] - nothing[part]).float()
            scores, _ = network(*known, torch.from_numpy(mine).float(), goals, saved)
            open_ = suite.useful[chosen] & ~mine
            best = np.where(open_, scores.numpy(), -np.inf).argmax(axis=1)
            mine[np.flatnonzero(going), best[going]] = True
    return masks


@torch.no_grad()
def choose(
    network: UnitNetwork | UnitNetworks,
    statistics: np.ndarray,
    budget: Budget,
    rng: np.random.Generator | None = None,
    count: int = 1,
) -> np.ndarray:
    """(count, n) bool: what the policy skips of one model.

    Args:
        network: The policy.
        statistics: (n, n_statistics) float, those of `network.config.statistics`.
        budget: What the masks must satisfy.
        rng: Draws units by the softmax of their scores; None takes the highest.
        count: Masks, drawn apart; they may be equal.
    """
    n = len(statistics)
    known = torch.from_numpy(np.asarray(statistics, np.float32)).expand(count, -1, -1), torch.ones(count, n)
    goals = torch.tensor([[(budget.skip_num or 0) / n, budget.saved or 0.0]], dtype=torch.float32).expand(count, -1)
    masks = np.zeros((count, n), bool)
    nothing = _saved(budget, masks)
    while (going := ~budget.is_kept_by(masks)).any():
        saved = torch.from_numpy(_saved(budget, masks) - nothing).float()
        scores = network(*known, torch.from_numpy(masks).float(), goals, saved)[0].double().numpy()
        if rng is not None:
            scores = scores + rng.gumbel(size=scores.shape)
        best = np.where(budget.useful_layers & ~masks, scores, -np.inf).argmax(axis=1)
        masks[going, best[going]] = True
    return masks


def _saved(budget: Budget, masks: np.ndarray) -> np.ndarray:
    """(m,) float64: the share of the cost that each mask saves; 0 without a cost."""
    return np.zeros(len(masks)) if budget.cost is None else budget.cost.saved(masks)
