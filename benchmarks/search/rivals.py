"""Rivals of the default agent that are not installed: local search, Bayesian regressions, a heat kernel, Optuna's TPE."""

import importlib.util
import time
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from das_gym.agents import Agent
from das_gym.agents.ask_tell.base import AGENTS, Seed, register_agent
from das_gym.agents.ask_tell.bayes import Bayes
from das_gym.agents.ask_tell.gaussian_process import NOISE_VARIANCES, GaussianProcess, PolynomialProcess
from das_gym.agents.comparing.comparison import AgentResult
from das_gym.agents.comparing.oracle import Oracle

from das_gym.problem.budget import Floats, Masks
from das_gym.problem.mask_space import MaskSpace, flipped

KICKS = 3
OPTUNA = "optuna"
"""Name on the leaderboard, and the package."""


class LocalSearch(Agent):
    """Swaps in random order from the best mask so far, first improvement; three random swaps away where none helps."""

    def __init__(self, space: MaskSpace, seed: Seed = None) -> None:
        super().__init__(space, seed)
        self._here: Masks | None = None
        self._height = -np.inf
        self._queue: list[np.ndarray] = []

    def ask(self, n: int) -> Masks:
        """Return the next swaps of the current mask."""
        found: dict[bytes, Masks] = {}
        for _ in range(1000):
            if len(found) == n:
                break
            mask = self._next()
            if mask.tobytes() not in self.rewards:
                found[mask.tobytes()] = mask
        return np.array(list(found.values()), dtype=bool).reshape(-1, self.n_layers)

    def _next(self) -> Masks:
        if not self.rewards:
            return self.space.sample(self.rng)
        if self._here is not None and self._queue:
            return flipped(self._here, self._queue.pop()[None])[0]
        mask = self.best()
        self._here = None
        for _ in range(KICKS):
            moves = self.space.moves(mask)
            mask = flipped(mask, moves[self.rng.integers(len(moves))][None])[0]
        return mask

    def tell(self, masks: Masks, rewards: Floats) -> None:
        """Move to the first better mask."""
        super().tell(masks, rewards)
        for mask, reward in zip(masks, rewards, strict=True):
            if self._here is None or reward > self._height:
                self._here = np.array(mask)
                self._height = float(reward)
                self._queue = list(self.rng.permutation(self.space.moves(self._here)))


class LinearRegression(Bayes):
    """Bayesian linear regression of the reward on the skipped layers, with expected improvement.

    Rewards are standardized, not ranked. The noise is the likeliest of a few. Masks are proposed as `Bayes` proposes them.
    """

    free_budget: ClassVar[bool] = False  # random masks first, no smaller ones
    pairs: ClassVar[float] = 0.0

    def _observations(self) -> tuple[Masks, Floats]:
        rewards = np.array(list(self.rewards.values()))
        return self.scored_masks(), (rewards - rewards.mean()) / max(float(rewards.std()), 1e-12)

    def _fit(self, masks: Masks, scores: Floats) -> list[GaussianProcess]:
        # Regression written as a process: (1 + d / n) has a constant and each layer's sign, (d / n)^2 each pair's product.
        n = masks.shape[1]
        polynomial = np.array([1.0, 1.0 / n, self.pairs / n**2, 0.0])
        processes = [PolynomialProcess(masks, scores, noise, polynomial) for noise in NOISE_VARIANCES]
        return [max(processes, key=lambda process: process.log_likelihood)]


class QuadraticRegression(LinearRegression):
    """Bayesian regression on the skipped layers and on all pairs of them, with expected improvement."""

    pairs: ClassVar[float] = 0.5


RIVALS: dict[str, str | type[Agent]] = {
    "local_search": LocalSearch,
    "linear_regression": LinearRegression,
    "quadratic_regression": QuadraticRegression,
    "heat_kernel": "benchmarks.search.heat_kernel:HeatKernel",
}


def register_rivals() -> None:
    """Register the rivals as agents, if they are not."""
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
    answers = []
    curves = []
    times = []
    for seed in seeds:
        study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed, multivariate=True), direction="maximize")
        masks = []
        rewards = []
        started = time.process_time()
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
