"""Rivals of our agents on the leaderboard: regression, local search, and Optuna's sampler if it is installed."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from das_gym.agents.ask_tell.base import AGENTS, Agent, register_agent
from das_gym.agents.ask_tell.bayes import Bayes
from das_gym.agents.ask_tell.gaussian_process import NOISES, PolynomialProcess, Process
from das_gym.agents.compare.oracle import Oracle
from das_gym.agents.compare.results import AgentResult

from das_gym.problem.budget import Floats, Masks
from das_gym.problem.mask_space import MaskSpace

OPTUNA = "optuna"
"""Name on the leaderboard, and the package."""


class LinearRegression(Bayes):
    """Bayesian linear regression of the reward on the skipped layers, with expected improvement.

    Rewards are standardized, not ranked. The noise is the likeliest of a few. Masks are proposed as `Bayes` proposes them.
    """

    pairs: ClassVar[float] = 0.0

    def __init__(self, space: MaskSpace, seed: int | np.random.Generator | None = None) -> None:
        super().__init__(space, seed)

    def _observations(self) -> tuple[Masks, Floats]:
        rewards = np.array(list(self.rewards.values()))
        return self.scored_masks(), (rewards - rewards.mean()) / max(float(rewards.std()), 1e-12)

    def _fit(self, masks: Masks, scores: Floats) -> Process:
        # Regression written as a process: (1 + d / n) has a constant and each layer's sign, (d / n)^2 each pair's product.
        n = masks.shape[1]
        polynomial = np.array([1.0, 1.0 / n, self.pairs / n**2, 0.0])
        processes = [PolynomialProcess(masks, scores, noise, polynomial) for noise in NOISES]
        return max(processes, key=lambda process: process.log_likelihood)


class QuadraticRegression(LinearRegression):
    """Bayesian regression on the skipped layers and on all pairs of them, with expected improvement."""

    pairs: ClassVar[float] = 0.5


class LocalSearch(Agent):
    """Local search: unscored neighbours of the best mask so far (one layer swapped); random masks where none is left."""

    def ask(self, n: int) -> Masks:
        """Return `Agent.ask`."""
        around = self.space.neighbours(self.best()) if self.rewards else np.zeros((0, self.n_layers), dtype=bool)
        new = [mask for mask in self.rng.permutation(around) if mask.tobytes() not in self.rewards][:n]
        seen = self.rewards.keys() | {mask.tobytes() for mask in new}
        random = self.space.distinct(n - len(new), lambda: self.space.sample(self.rng), self.rng, seen)
        return np.concatenate((np.array(new, dtype=bool).reshape(-1, self.n_layers), random))


RIVALS = {"linear_regression": LinearRegression, "quadratic_regression": QuadraticRegression, "local_search": LocalSearch}


def register_rivals() -> None:
    """Register the rivals that are agents, if they are not."""
    for name, agent in RIVALS.items():
        if name not in AGENTS:
            register_agent(name, agent)


def has_optuna() -> bool:
    """Whether Optuna is installed."""
    return importlib.util.find_spec(OPTUNA) is not None


def run_optuna(
    oracle: Oracle, agent: str, seeds: Sequence[int], evaluations: int, masks_per_turn: int, agent_kwargs: Mapping[str, Any]
) -> AgentResult:
    """Search with multivariate TPE over one number per layer, of which the largest are skipped. As `run_agent`.

    It is asked for one mask at a time, also for masks that were scored before. Its answer is the best mask so far.
    """
    import optuna

    del agent_kwargs
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    answers, curves, times = [], [], []
    for seed in seeds:
        study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed, multivariate=True), direction="maximize")
        masks, rewards, started = [], [], time.process_time()
        for _ in range(evaluations):
            trial = study.ask()
            scores = [trial.suggest_float(str(layer), 0, 1) for layer in range(oracle.space.n_layers)]
            masks.append(oracle.space.top(np.array(scores)))
            rewards.append(float(oracle.rewards(masks[-1][None])[0]))
            study.tell(trial, rewards[-1])
        times.append(1e3 * masks_per_turn * (time.process_time() - started) / evaluations)
        answers.append(masks[int(np.argmax(rewards))])
        curves.append(np.maximum.accumulate(rewards))
    return AgentResult(agent, np.array(answers), np.array(curves), np.full(len(seeds), evaluations), np.array(times))
