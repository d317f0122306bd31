"""Mean regrets by model, with intervals over models and the spread over seeds, and the best agents."""

from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np
from das_gym.agents.comparing.comparison import AgentResult
from das_gym.agents.comparing.oracle import Oracle

from benchmarks.search.problems import SearchProblem
from das_gym.intervals import t_interval
from das_gym.problem.budget import Floats

WORST = 2.0
"""The largest normalized regret that counts."""

FLIPPED = 12
"""Up to this many differences, the sign-flip test goes through all signs."""

FLIPS = 10_000
"""Signs that it draws for more differences."""

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
        self.problems = problems
        self.results = results
        self.models = tuple(dict.fromkeys(problem.model for problem in problems))

    @cached_property
    def _curves(self) -> dict[str, list[Floats]]:
        """Each agent's (seeds, evaluations) regrets on each problem."""
        return {agent: [regret_curves(p.oracle, each) for p, each in self._pairs(agent)] for agent in self.results}

    def by_model(self, agent: str, count: int) -> Floats:
        """Return (models,) mean normalized regret after `count` evaluations: a mean of the means of a model's problems."""
        return self._by_model(np.array([curves[:, count - 1].mean() for curves in self._curves[agent]]))

    def _by_model(self, regrets: Floats) -> Floats:
        """Return (models, ...) means of (problems, ...) regrets over the problems of each model."""
        owners = np.array([problem.model for problem in self.problems])
        return np.array([regrets[owners == model].mean(axis=0) for model in self.models])

    def seed_spread(self, agent: str, count: int) -> float:
        """Return the standard deviation over seeds of the mean over models after `count` evaluations; NaN for one seed."""
        by_seed = self._by_model(np.array([curves[:, count - 1] for curves in self._curves[agent]])).mean(axis=0)
        return float(by_seed.std(ddof=1)) if len(by_seed) > 1 else float("nan")

    def mean(self, agent: str, count: int) -> float:
        """Return the mean of `by_model`."""
        return float(self.by_model(agent, count).mean())

    def ranked(self, count: int) -> list[str]:
        """Return the agents, that with the lowest mean after `count` evaluations first."""
        return sorted(self.results, key=lambda agent: (self.mean(agent, count), agent))

    def cell(self, agent: str, count: int) -> str:
        """Return the mean and its 95 % t-interval over models."""
        low, high = t_interval(self.by_model(agent, count))
        return f"{self.mean(agent, count):.3f} [{low:.3f}, {high:.3f}]"

    def final_regrets(self, agent: str) -> Floats:
        """Return (searches,) regrets of the last answers of the searches of all problems."""
        return np.concatenate([regret_curves(problem.oracle, each)[:, -1] for problem, each in self._pairs(agent)])

    def needed(self, agent: str) -> Floats:
        """Return (searches,) the evaluations from which on the answer is the best mask; inf where it is not at the end."""
        return np.concatenate([each.evaluations_needed() for each in self.results[agent]])

    def found(self, agent: str) -> float:
        """Return the share of searches that end at the best mask, over all problems."""
        return float(np.mean([each.found_best[:, -1].mean() for each in self.results[agent]]))

    def milliseconds(self, agent: str) -> float:
        """Return the mean processor time of a turn."""
        times = [each.milliseconds.mean() for each in self.results[agent] if each.milliseconds is not None]
        return float(np.mean(times))

    def _pairs(self, agent: str) -> list[tuple[SearchProblem, AgentResult]]:
        return list(zip(self.problems, self.results[agent], strict=True))

    def winners(self, count: int) -> str:
        """Return the first agent after `count` evaluations, and those that may be as good, see `is_alike`."""
        first, *others = self.ranked(count)
        best = self.by_model(first, count)
        alike = [agent for agent in others if is_alike(self.by_model(agent, count) - best)]
        named = f"`{first}` ({self.mean(first, count):.3f})"
        return f"{named}, within the noise of {', '.join(f'`{agent}`' for agent in alike)}" if alike else named


def is_alike(differences: Floats) -> bool:
    """Return True if the mean of (models,) paired differences may be 0, by the t-interval or by the sign-flip test.

    Both hold for six models, for which a percentile bootstrap is too narrow.
    """
    low, high = t_interval(differences)
    return low <= 0 <= high or sign_flip_p(differences) > 0.05


def sign_flip_p(differences: np.ndarray) -> float:
    """Return the two-sided p-value of a sign-flip test that the mean of (n,) paired differences is 0.

    It is the share of sign changes of the differences with a mean as far from 0: of all of them for up to `FLIPPED`
    differences, otherwise of `FLIPS` that are drawn, the same at each call.
    """
    count = len(differences)
    if count <= FLIPPED:
        signs = 1 - 2 * ((np.arange(2**count)[:, None] >> np.arange(count)) & 1)
    else:
        signs = np.random.default_rng(0).choice((-1, 1), (FLIPS, count))
    means = np.abs(signs @ differences) / count
    return float((means >= abs(differences.mean()) - 1e-12).mean())
