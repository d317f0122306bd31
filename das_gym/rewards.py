"""Rewards and budgets, by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Reward:
    """What a feasible mask earns.

    Attributes:
        name: How it is asked for.
        formula: What it is, in a line.
        low, high: Its bounds.
        compute: From losses (m,) in nats and metrics (m,) in 0..1 to rewards (m,). Every reward is deterministic.
    """

    name: str
    formula: str
    low: float
    high: float
    compute: Callable[[np.ndarray, np.ndarray], np.ndarray]


MAX_LOSS = 1e4
"""Losses beyond count as this many nats where a reward would otherwise be unbounded."""


REWARDS: dict[str, Reward] = {
    reward.name: reward
    for reward in (
        Reward("exp_neg_loss", "exp(-loss), the paper's reward; in 0..1", 0.0, 1.0, lambda loss, metric: np.exp(-loss)),
        Reward(
            "neg_loss",
            f"-loss in nats, never below -{MAX_LOSS:g}",
            -MAX_LOSS,
            0.0,
            lambda loss, metric: -np.minimum(loss, MAX_LOSS),
        ),
        Reward("metric", "the task's metric; in 0..1", 0.0, 1.0, lambda loss, metric: metric),
    )
}
"""Every reward by name."""


def find_reward(name: str) -> Reward:
    """The reward of that name.

    Raises:
        ValueError: there is none.
    """
    if name not in REWARDS:
        raise ValueError(f"reward={name!r} is unknown; choose one of {', '.join(REWARDS)}")
    return REWARDS[name]


@dataclass(frozen=True)
class Budget:
    """Exactly `skip_num` of `n_layers` layers are skipped; None allows any number.

    Raises:
        ValueError: `skip_num` is not a whole number from 0 to `n_layers`.
    """

    n_layers: int
    skip_num: int | None

    def __post_init__(self) -> None:
        if self.skip_num is None:
            return
        if isinstance(self.skip_num, bool) or not isinstance(self.skip_num, (int, np.integer)):
            raise ValueError(
                f"skip_num={self.skip_num!r} is not a whole number; use 0..{self.n_layers}, or None for any number"
            )
        if not 0 <= self.skip_num <= self.n_layers:
            raise ValueError(
                f"skip_num={self.skip_num}: the model has {self.n_layers} skippable layers; use 0..{self.n_layers}"
            )

    def violations(self, masks: np.ndarray) -> np.ndarray:
        """(m,) share of layers (0..1) by which each mask misses the budget; 0 = feasible."""
        if self.skip_num is None:
            return np.zeros(len(masks))
        return np.abs(masks.sum(axis=1) - self.skip_num) / self.n_layers


def rewards_within(budget: Budget, reward: Reward, masks: np.ndarray, losses: np.ndarray, metrics: np.ndarray) -> np.ndarray:
    """(m,) float64: the reward of feasible masks; the lowest reward minus the violation for the others.

    The penalty is below every feasible reward and grows with the distance to the budget, so that an
    agent that starts far away finds its way.
    """
    violations = budget.violations(masks)
    with np.errstate(over="ignore"):
        earned = np.clip(reward.compute(losses, metrics), reward.low, reward.high)
    return np.where(violations > 0, reward.low - violations, earned)
