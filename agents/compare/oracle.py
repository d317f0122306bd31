"""What answers the agents that are compared: a table, which knows the ground truth, or a live environment."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
from das_gym.agents.searching.environment import LayerStatistics, observed_statistics, refusing_other_environments

from das_gym.config import check_names
from das_gym.envs.scored_env import ScoredEnv
from das_gym.envs.suite_env import SuiteEnv
from das_gym.problem.budget import Budget, Floats, Masks
from das_gym.problem.mask_space import MaskSpace
from das_gym.registration import ENVIRONMENTS, SUITE_IDS, many_objectives
from das_gym.tables.suite import SuiteProblem, random_probabilities


class Oracle(ABC):
    """Rewards on the reward split, and what agents may not see: scores on the test split.

    An optimiser from elsewhere calls it as a function of one mask; `asked` keeps what it called.

    Attributes:
        env_id: The environment that it stands for.
        env_kwargs: Its settings besides the budget.
        space: The masks that keep the budget.
        statistics: Layer statistics by name, (n_layers,) each.
        best_reward: The highest reward of an allowed mask; None where nobody knows.
        random_reward: What layers skipped in a random order earn in the mean; None where nobody knows.
        asked: (layers skipped, reward) of every call, in order.
    """

    env_id: str
    env_kwargs: Mapping[str, Any]
    space: MaskSpace
    statistics: Mapping[str, Floats]
    best_reward: float | None = None
    random_reward: float | None = None

    @cached_property
    def asked(self) -> list[tuple[tuple[int, ...], float]]:
        """See the class."""
        return []

    def __call__(self, mask: npt.ArrayLike) -> float:
        """The reward of one mask, noted in `asked`.

        Args:
            mask: (n_layers,) truths, True = skipped. `space.top` makes an allowed mask of one number a layer.

        Raises:
            ValueError: another shape, or a mask that does not keep the budget.
        """
        given = np.asarray(mask)
        array = given.astype(bool)
        if array.shape != (self.space.n_layers,) or (given != array).any() or not self.space.contains(array[None])[0]:
            raise ValueError(
                f"mask={np.asarray(mask).tolist()}: give {self.space.n_layers} truths, one a layer, with "
                f"{self.space.budget.describe()}; space.top(scores) makes such a mask of one number a layer"
            )
        reward = float(self.rewards(array[None])[0])
        self.asked.append((tuple(np.flatnonzero(array).tolist()), reward))
        return reward

    @abstractmethod
    def rewards(self, masks: Masks) -> Floats:
        """(m,) rewards of (m, n_layers) masks, also of masks off the budget."""

    @abstractmethod
    def test_metrics(self, masks: Masks) -> Floats:
        """(m,) metrics of (m, n_layers) masks on the test split, 0..1."""

    def normalised(self, regrets: Floats) -> Floats:
        """(...) regrets as shares of what there is to gain: 0 = the best mask, 1 = layers skipped in a random order.

        Raises:
            ValueError: nobody knows both.
        """
        if self.best_reward is None or self.random_reward is None:
            raise ValueError(f"{self.env_id}: only a table knows what its best and its random masks earn")
        return regrets / max(self.best_reward - self.random_reward, 1e-12)

    def ranks(self, rewards: Floats) -> npt.NDArray[np.int64] | None:
        """1 + how many allowed masks have a higher reward than each of (...) rewards; None where nobody knows."""
        del rewards
        return None


class TableOracle(Oracle):
    """An exhaustive table.

    Args:
        env_id: Id of a tabular environment.
        budget: `skip_num`, or a share to save.
        env_kwargs: Its other settings: `reward`, `macs_price`, `table`.
    """

    def __init__(self, env_id: str, budget: Mapping[str, Any], env_kwargs: Mapping[str, Any] | None = None) -> None:
        self.env_id, self.env_kwargs = env_id, dict(env_kwargs or {})
        env = make_scored(env_id, budget, self.env_kwargs)
        self.table = env.table
        self.space = MaskSpace(env.scorer.budget)
        self.statistics = observed_statistics(env, env.reset()[0])
        self._objective, self._split = env.scorer.objective, env.scorer.split
        anywhere = replace(self._objective, budget=Budget(self.table.n_layers))
        self._rewards = self.table.values(anywhere, self._split)
        kept = self.space.contains(self.table.masks)
        self.best_reward = float(self._rewards[kept].max())
        if self.table.meta.max_skipped is None:
            chances = random_probabilities(self.table.masks, kept, self.space.budget.useful_layers)
            self.random_reward = float(chances @ self._rewards)
        elif self.space.skip_num is not None:
            self.random_reward = float(self._rewards[kept].mean())

    def rewards(self, masks: Masks) -> Floats:
        """As `Oracle.rewards`."""
        return self._rewards[self.table.index(masks)]

    def test_metrics(self, masks: Masks) -> Floats:
        """As `Oracle.test_metrics`."""
        return self.table.values("metric", "test")[self.table.index(masks)]

    def ranks(self, rewards: Floats) -> npt.NDArray[np.int64]:
        """As `Oracle.ranks`."""
        return self.table.rank_of_values(rewards, self._objective, self._split)


class SuiteOracle(Oracle):
    """A problem of a suite.

    Args:
        problem: That problem.
        statistics: Names of the layer statistics that agents read.
    """

    def __init__(self, problem: SuiteProblem, statistics: Sequence[str]) -> None:
        self.env_id, self.env_kwargs = problem.name, {}
        self.table, self._rewards, self.space = problem.table, problem.rewards, MaskSpace(problem.budget)
        observed = {name: self.table.statistic(name).astype(np.float64) for name in statistics}
        self.statistics = LayerStatistics(observed, self.table.statistic)
        self.best_reward, self.random_reward = problem.optimum, problem.random_mean

    def rewards(self, masks: Masks) -> Floats:
        """As `Oracle.rewards`."""
        return self._rewards[self.table.index(masks)]

    def test_metrics(self, masks: Masks) -> Floats:
        """As `Oracle.test_metrics`: not known, since a suite's problem is one group of examples."""
        return np.full(len(masks), np.nan)


class LiveOracle(Oracle):
    """An environment with its model; it remembers scores, so that a mask costs time once however many agents ask for it.

    Args:
        env_id: Id of an environment.
        budget: `skip_num`, or a share to save.
        env_kwargs: Its other settings.

    Raises:
        ValueError: its examples change from step to step.
    """

    def __init__(self, env_id: str, budget: Mapping[str, Any], env_kwargs: Mapping[str, Any] | None = None) -> None:
        self.env_id, self.env_kwargs = env_id, dict(env_kwargs or {})
        changing = self.env_kwargs.get("reward_batches", "fixed")
        if changing != "fixed":
            raise ValueError(f"reward_batches={changing!r} gives a mask now this reward, now that; compare with 'fixed'")
        env = make_scored(env_id, budget, self.env_kwargs)
        self.space = MaskSpace(env.scorer.budget)
        self.statistics = observed_statistics(env, env.reset()[0])
        self._scorer = make_scored(env_id, {"skip_num": None}, self.env_kwargs).scorer
        self._rng = np.random.default_rng(0)

    def rewards(self, masks: Masks) -> Floats:
        """As `Oracle.rewards`."""
        return self._scorer.score(masks, self._rng).rewards

    def test_metrics(self, masks: Masks) -> Floats:
        """As `Oracle.test_metrics`."""
        problem = self._scorer.problem
        return problem.evaluator.evaluate(masks, problem.splits.test).metrics


def make_scored(env_id: str, budget: Mapping[str, Any], env_kwargs: Mapping[str, Any]) -> Any:
    """The environment behind its wrappers.

    Raises:
        ValueError: it is none of das_gym's, which alone have a scorer.
    """
    with refusing_other_environments(env_id):
        env = gymnasium.make(env_id, **budget, **env_kwargs).unwrapped
    if not isinstance(env, ScoredEnv):
        raise ValueError(f"{env_id} is no environment of das_gym; agents are compared on those")
    return env


def make_oracle(env_id: str, budget: Mapping[str, Any] | None = None, env_kwargs: Mapping[str, Any] | None = None) -> Oracle:
    """The oracle of an environment: of its table where the id is a tabular one, of a problem of the suite's.

    Args:
        env_id: The environment.
        budget: `skip_num`, or a share to save; {} or None is none. A problem of a suite has its own.
        env_kwargs: Its other settings. Of `DAS-Suite-v0`: `problem`, a number or a name, and the environment's own settings
            of which problems there are and what is shown of them, in `test` unless `split` says otherwise.

    Raises:
        ValueError: what the environment refuses, or one whose rewards are vectors.
    """
    name = env_id.rpartition(":")[2]
    if name in SUITE_IDS:
        if budget:
            raise ValueError(f"budget={dict(budget)}: a problem of a suite has its own; leave it out")
        return _suite_oracle(**dict(env_kwargs or {}))
    alone = {many_objectives(id): id for entry in ENVIRONMENTS.values() for id in (entry.id, entry.tabular_id)}
    if name in alone:
        raise ValueError(f"{env_id} rewards with a vector, and an oracle gives one number: use {alone[name]}")
    return (TableOracle if is_tabular(env_id) else LiveOracle)(env_id, budget or {}, env_kwargs)


OF_PROBLEMS = ("reward", "statistics", "suite", "problems", "relatives", "problems_seed", "budgets")
"""Settings of `SuiteEnv` that say which problems there are, and what is shown of them."""


def _suite_oracle(problem: int | str = 0, split: str = "test", **more: Any) -> SuiteOracle:
    """The oracle of a problem of a suite."""
    check_names(more, OF_PROBLEMS, "setting of a suite's oracle")
    suite = SuiteEnv(split, **more).suite
    return SuiteOracle(suite.problems[suite.index(problem)], suite.statistics)


def is_tabular(env_id: str) -> bool:
    """Whether an id means an environment of das_gym that answers from a table; `module:id` may name it too."""
    return env_id.rpartition(":")[2] in {entry.tabular_id for entry in ENVIRONMENTS.values()}
