"""Mean regrets by model, with intervals that resample models, and the best agents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np
from das_gym.agents.compare.comparison import AgentResult, evaluations_needed
from das_gym.agents.compare.oracle import Oracle

from benchmarks.search.problems import SearchProblem
from das_gym.intervals import mean_bootstrap_interval
from das_gym.problem.budget import Floats

WORST = 2.0
"""The largest normalized regret that counts."""

ROUNDING = 1e-9
"""Regrets up to this are those of the best mask."""

NO_ANSWER = 1.0
"""The normalized regret of an agent that has no answer yet: that of layers skipped in a random order."""


def regret_curves(oracle: Oracle, result: AgentResult) -> Floats:
    """Return (seeds, evaluations) regrets as fractions of the possible gain, see `Oracle.normalized`."""
    regrets = np.clip(oracle.normalized(result.regret), 0.0, WORST)  # rounding may leave a little less than 0
    return np.where(np.isfinite(result.curves), regrets, NO_ANSWER)


class Scores:
    """What agents earned on some problems.

    Args:
        problems: The problems.
        results: Each agent's result on each problem.
    """

    def __init__(self, problems: Sequence[SearchProblem], results: Mapping[str, Sequence[AgentResult]]) -> None:
        self.problems, self.results = problems, results
        self.models = tuple(dict.fromkeys(problem.model for problem in problems))

    @cached_property
    def _curves(self) -> dict[str, list[Floats]]:
        """Each agent's mean regret over seeds on each problem, after each evaluation."""
        return {
            agent: [regret_curves(p.oracle, each).mean(axis=0) for p, each in zip(self.problems, results, strict=True)]
            for agent, results in self.results.items()
        }

    def by_model(self, agent: str, count: int) -> Floats:
        """Return (models,) mean normalized regret after `count` evaluations: a mean of the means of a model's problems."""
        regrets = np.array([curve[count - 1] for curve in self._curves[agent]])
        owners = np.array([problem.model for problem in self.problems])
        return np.array([regrets[owners == model].mean() for model in self.models])

    def mean(self, agent: str, count: int) -> float:
        """Return the mean of `by_model`."""
        return float(self.by_model(agent, count).mean())

    def ranked(self, count: int) -> list[str]:
        """Return the agents, that with the lowest mean after `count` evaluations first."""
        return sorted(self.results, key=lambda agent: (self.mean(agent, count), agent))

    def cell(self, agent: str, count: int) -> str:
        """Return the mean and its 95 % interval, which resamples models."""
        low, high = mean_bootstrap_interval(self.by_model(agent, count))
        return f"{self.mean(agent, count):.3f} [{low:.3f}, {high:.3f}]"

    def final_regrets(self, agent: str) -> Floats:
        """Return (searches,) regrets of the last answers of the searches of all problems."""
        return np.concatenate([regret_curves(problem.oracle, each)[:, -1] for problem, each in self._pairs(agent)])

    def needed(self, agent: str) -> Floats:
        """Return (searches,) the evaluations from which on the answer is the best mask; inf where it is not at the end."""
        found = [regret_curves(problem.oracle, each) <= ROUNDING for problem, each in self._pairs(agent)]
        return np.concatenate([evaluations_needed(each) for each in found])

    def found(self, agent: str) -> float:
        """Return the share of searches that end at the best mask, over all problems."""
        return float((self.final_regrets(agent) <= ROUNDING).mean())

    def milliseconds(self, agent: str) -> float:
        """Return the mean processor time of a turn."""
        times = [each.milliseconds.mean() for _, each in self._pairs(agent) if each.milliseconds is not None]
        return float(np.mean(times))

    def _pairs(self, agent: str) -> list[tuple[SearchProblem, AgentResult]]:
        return list(zip(self.problems, self.results[agent], strict=True))

    def winners(self, count: int) -> str:
        """Return the first agent after `count` evaluations, and those whose difference from it may be 0."""
        first, *others = self.ranked(count)
        alike = []
        for agent in others:
            low, high = mean_bootstrap_interval(self.by_model(agent, count) - self.by_model(first, count))
            if low <= 0 <= high:
                alike.append(agent)
        named = f"`{first}` ({self.mean(first, count):.3f})"
        return f"{named}, within the noise of {', '.join(f'`{agent}`' for agent in alike)}" if alike else named
