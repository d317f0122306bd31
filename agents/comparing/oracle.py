"""Oracles answer the agents that are compared: a table, which knows the ground truth, or a live environment."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from das_gym.agents.ask_tell.base import Statistics
from das_gym.agents.searching.scorer import make_scored, open_scorer

from das_gym.problem.budget import Budget, Floats, Masks
from das_gym.problem.mask_space import MaskSpace
from das_gym.problem.problem import Problem
from das_gym.registration import is_tabular


class Oracle(ABC):
    """Rewards of masks on the reward split, and what agents may not see, such as scores on the test split.

    Any optimizer can call it as a function of one mask; `calls` keeps the masks and their rewards.

    Attributes:
        env_kwargs: Settings of the environment besides the budget.
        space: The masks within the budget.
        statistics: Layer statistics by name, (n_layers,) float64 each.
        best_reward: The highest reward of a mask within the budget; None if unknown.
        random_reward: The mean reward of layers skipped in a random order; None if unknown.
        problem: The problem that is scored, if it was given.
    """

    env_id: str
    env_kwargs: Mapping[str, Any]
    space: MaskSpace
    statistics: Statistics
    best_reward: float | None = None
    random_reward: float | None = None
    problem: Problem | None = None

    @cached_property
    def calls(self) -> list[tuple[tuple[int, ...], float]]:
        """The (skipped layers, reward) of every call, in order."""
        return []

    def __call__(self, mask: npt.ArrayLike) -> float:
        """Return the reward of one mask within the budget, (n_layers,) of 0 and 1, 1 = skipped; add it to `calls`."""
        given = np.asarray(mask)
        array = given.astype(bool)
        if array.shape != (self.space.n_layers,) or (given != array).any() or not self.space.contains(array[None])[0]:
            raise ValueError(
                f"`mask` is not allowed: got {given.tolist()}, expected {self.space.n_layers} values of 0 and 1 with "
                f"{self.space.budget.describe()}. space.top(scores) makes such a mask from one number per layer"
            )
        reward = float(self.rewards(array[None])[0])
        self.calls.append((tuple(np.flatnonzero(array).tolist()), reward))
        return reward

    @abstractmethod
    def rewards(self, masks: Masks) -> Floats:
        """Return (m,) rewards of (m, n_layers) masks, within the budget or not."""

    def test_metrics(self, masks: Masks) -> Floats:
        """Return (m,) metrics of (m, n_layers) masks on the test split, 0..1; NaN if there is none."""
        return np.full(len(masks), np.nan)

    def normalized(self, regrets: Floats) -> Floats:
        """Return regrets as fractions of the possible gain: 0 = the best mask, 1 = layers skipped in a random order."""
        if self.best_reward is None or self.random_reward is None:
            raise ValueError(f"{self.env_id} has no known best and mean reward to scale by. Compare on a table")
        return regrets / max(self.best_reward - self.random_reward, 1e-12)

    def ranks(self, rewards: Floats) -> npt.NDArray[np.int64] | None:
        """Return 1 + the number of masks within the budget with a higher reward than each of `rewards`; None if unknown."""
        return None


def random_probabilities(masks: np.ndarray, kept: np.ndarray, useful: np.ndarray) -> np.ndarray:
    """Return (n_masks,) float64: how likely a random order of the useful units arrives at each mask.

    Units are skipped one after another, each remaining one with the same probability, until the budget is satisfied.

    Args:
        masks: (2^n, n) bool, row `sum(mask[i] << i)` is that mask.
        kept: (2^n,) bool, which masks satisfy the budget. Of the masks that some order reaches, none that satisfies it
            may be part of another that does not.
        useful: (n,) bool, units that serve the budget.
    """
    allowed = ~(masks & ~useful).any(axis=1)
    count = int(useful.sum())
    sizes = masks.sum(axis=1)
    # A mask of s units is reached in (s - 1)! orders of those before the last, times (count - s)! of those after it.
    orders = np.array([math.factorial(max(s - 1, 0)) * math.factorial(max(count - s, 0)) for s in range(masks.shape[1] + 1)])
    lasts = np.zeros(len(masks))  # units that can be the last one skipped: without them the budget is not yet satisfied
    for unit in np.flatnonzero(useful):
        skips = masks[:, unit]
        lasts[skips] += ~kept[np.flatnonzero(skips) - (1 << unit)]
    found = np.where(kept & allowed, lasts * (orders / math.factorial(count))[sizes], 0.0)
    found[0] = float(kept[0])
    return found


class TableOracle(Oracle):
    """The oracle of an exhaustive table: of a tabular environment with a budget and its other settings."""

    def __init__(self, env_id: str, budget: Mapping[str, Any], env_kwargs: Mapping[str, Any] | None = None) -> None:
        self.env_id = env_id
        self.env_kwargs = dict(env_kwargs or {})
        env = make_scored(env_id, {**budget, **self.env_kwargs})
        self.table = env.table
        self._scorer = env.scorer
        self.space = MaskSpace(self._scorer.budget)
        self.statistics = self._scorer.layer_statistics
        without_budget = replace(self._scorer.objective, budget=Budget(self.table.n_layers))
        self._rewards = self.table.values(without_budget, self._scorer.split)
        allowed = self.space.contains(self.table.masks)
        self.best_reward = float(self._rewards[allowed].max())
        if self.table.meta.max_skipped is None:  # a partial table lacks masks on the way to a budget by cost
            probabilities = random_probabilities(self.table.masks, allowed, self.space.budget.useful_layers)
            self.random_reward = float(probabilities @ self._rewards)
        elif self.space.skip_num is not None:
            self.random_reward = float(self._rewards[allowed].mean())

    def rewards(self, masks: Masks) -> Floats:
        return self._rewards[self.table.index(masks)]

    def test_metrics(self, masks: Masks) -> Floats:
        return self.table.values("metric", "test")[self.table.index(masks)]

    def ranks(self, rewards: Floats) -> npt.NDArray[np.int64]:
        return self.table.rank_of_values(rewards, self._scorer.objective, self._scorer.split)


class LiveOracle(Oracle):
    """The oracle of an environment with its model, which caches scores: agents that ask for the same mask share its cost."""

    def __init__(
        self,
        env_id: str,
        budget: Mapping[str, Any],
        env_kwargs: Mapping[str, Any] | None = None,
        problem: Problem | None = None,
    ) -> None:
        self.env_id = env_id
        self.env_kwargs = dict(env_kwargs or {})
        self.problem = problem
        batches = self.env_kwargs.get("reward_batches", "fixed")
        if batches != "fixed":
            raise ValueError(f"`reward_batches` is not supported here: got {batches!r}, expected 'fixed'. Leave it out.")
        scorer = open_scorer(env_id, {**budget, **self.env_kwargs}, problem=problem)
        self.space = MaskSpace(scorer.budget)
        self.statistics = scorer.layer_statistics
        # Without a budget: agents such as `greedy` score masks outside of it on their way.
        self._scorer: Any = open_scorer(env_id, {"skip_num": None, **self.env_kwargs}, problem=problem)

    def rewards(self, masks: Masks) -> Floats:
        return self._scorer.score(masks)[0]

    def test_metrics(self, masks: Masks) -> Floats:
        problem = self._scorer.problem
        return problem.evaluator.evaluate(masks, problem.splits.test).metrics


def make_oracle(
    env_id: str,
    budget: Mapping[str, Any] | None = None,
    env_kwargs: Mapping[str, Any] | None = None,
    problem: Problem | None = None,
) -> Oracle:
    """Make the oracle of a das_gym environment, which reads its table or runs its model; ValueError for others.

    Args:
        env_id: Id of the environment.
        budget: `skip_num`, or a share to save such as `macs_saved`.
        env_kwargs: Other settings of the environment.
        problem: The loaded problem of the environment; None loads it.

    Example:
        >>> from das_gym.agents import make_oracle
        >>> oracle = make_oracle("DAS-METER-VQA-Tabular-v0", {"skip_num": 4})
        >>> round(oracle([0, 1, 0, 1, 0, 0, 0, 0, 1, 0, 1, 0]), 4)
        0.8118
    """
    if is_tabular(env_id):
        return TableOracle(env_id, budget or {}, env_kwargs)
    return LiveOracle(env_id, budget or {}, env_kwargs, problem)
