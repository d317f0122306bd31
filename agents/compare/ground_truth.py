"""How a found mask stands among all that keep its budget, where a table knows it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from das_gym.agents.compare.oracle import is_tabular, make_scored


@dataclass(frozen=True)
class GroundTruth:
    """A mask among all that keep the budget.

    Attributes:
        rank: 1 + how many of them have a higher reward.
        masks: How many they are.
        regret: The best one's reward minus the mask's, at least 0.
        best_reward: The best one's.
    """

    rank: int
    masks: int
    regret: float
    best_reward: float


def ground_truth_of(env_id: str, env_kwargs: Mapping[str, Any], mask: Sequence[int]) -> GroundTruth | None:
    """Where a mask stands, by the environment's own reward, price of MACs included.

    Args:
        env_id: Of the environment that it was searched in.
        env_kwargs: Its settings, the budget among them.
        mask: 0/1 a layer.

    Returns:
        None for an environment that answers from no table, and for a mask off the budget.
    """
    if not is_tabular(env_id):
        return None
    env = make_scored(env_id, {}, env_kwargs)
    table, scorer, chosen = env.table, env.scorer, np.array(mask, dtype=bool)
    if not scorer.budget.keeps(chosen[None])[0]:
        return None
    competing = scorer.budget.keeps(table.masks)
    return GroundTruth(
        rank=int(table.rank(chosen, scorer.objective, scorer.split)),
        masks=int(competing.sum()),
        regret=float(table.regret(chosen, scorer.objective, scorer.split)),
        best_reward=float(table.values(scorer.objective, scorer.split)[competing].max()),
    )
