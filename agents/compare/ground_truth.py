"""The rank of a mask among all masks within its budget, where a table knows them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from das_gym.agents.searching.environment import is_tabular, make_scored


@dataclass(frozen=True)
class GroundTruth:
    """How a mask ranks among all masks within the budget.

    Attributes:
        rank: 1 + the number of masks with a higher reward.
        masks: Number of masks.
        regret: The best reward minus the mask's, at least 0.
        best_reward: The best reward.
    """

    rank: int
    masks: int
    regret: float
    best_reward: float


def ground_truth_of(env_id: str, env_kwargs: Mapping[str, Any], mask: Sequence[int]) -> GroundTruth | None:
    """Compare a mask with all others by the environment's own reward.

    Args:
        env_id: The environment that it was searched in.
        env_kwargs: Its settings, the budget among them.
        mask: 0/1 per layer.

    Returns:
        None for an environment without a table, and for a mask outside the budget.
    """
    if not is_tabular(env_id):
        return None
    env = make_scored(env_id, {}, env_kwargs)
    table, scorer, chosen = env.table, env.scorer, np.array(mask, dtype=bool)
    if not scorer.budget.is_kept_by(chosen[None])[0]:
        return None
    allowed = scorer.budget.is_kept_by(table.masks)
    return GroundTruth(
        rank=int(table.rank(chosen, scorer.objective, scorer.split)),
        masks=int(allowed.sum()),
        regret=float(table.regret(chosen, scorer.objective, scorer.split)),
        best_reward=float(table.values(scorer.objective, scorer.split)[allowed].max()),
    )
