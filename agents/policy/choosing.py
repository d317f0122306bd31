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
    network: UnitNetwork | UnitNetworks, statistics: np.ndarray, budget: Budget, rng: np.random.Generator | None = None
) -> np.ndarray:
    """(n,) bool: what the policy skips of one model.

    Args:
        network: The policy.
        statistics: (n, n_statistics) float, those of `network.config.statistics`.
        budget: What the mask must satisfy.
        rng: Draws units by the softmax of their scores; None takes the highest.
    """
    n = len(statistics)
    known = torch.from_numpy(np.asarray(statistics, np.float32))[None], torch.ones(1, n)
    goals = torch.tensor([[(budget.skip_num or 0) / n, budget.saved or 0.0]], dtype=torch.float32)
    mask = np.zeros(n, bool)
    nothing = _saved(budget, mask)
    while not budget.is_kept_by(mask[None])[0]:
        saved = torch.tensor([_saved(budget, mask) - nothing], dtype=torch.float32)
        scores = network(*known, torch.from_numpy(mask).float()[None], goals, saved)[0][0].double().numpy()
        scores[~(budget.useful_layers & ~mask)] = -np.inf
        if rng is not None:
            scores = scores + rng.gumbel(size=n)
        mask[scores.argmax()] = True
    return mask


def _saved(budget: Budget, mask: np.ndarray) -> float:
    return 0.0 if budget.cost is None else float(budget.cost.saved(mask[None])[0])
