"""A rival from elsewhere: Optuna's tree-structured Parzen estimator, where Optuna is installed."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from das_gym.agents.compare.oracle import Oracle
from das_gym.agents.compare.results import AgentResult

from das_gym.problem.budget import Masks
from das_gym.problem.mask_space import MaskSpace

OPTUNA = "optuna"
"""What it is called on the leaderboard, and the package."""


def has_optuna() -> bool:
    """Whether Optuna is installed."""
    return importlib.util.find_spec(OPTUNA) is not None


class TreeParzen:
    """TPE, multivariate, over one number a layer, of which the largest are skipped; asked for one mask at a time.

    Args:
        space: The masks to choose from.
        seed: Of its sampler.

    Raises:
        ImportError: Optuna is not installed.
    """

    def __init__(self, space: MaskSpace, seed: int) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.space = space
        self._study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed, multivariate=True))

    def ask(self) -> Masks:
        """(n_layers,) the mask to score next; also one that was scored before."""
        self._trial = self._study.ask()
        return self.space.top(np.array([self._trial.suggest_float(str(i), 0, 1) for i in range(self.space.n_layers)]))

    def tell(self, reward: float) -> None:
        """The reward of that mask."""
        self._study.tell(self._trial, -reward)


def trace_optuna(
    oracle: Oracle, agent: str, seeds: Sequence[int], evaluations: int, masks_per_turn: int, agent_kwargs: Mapping[str, Any]
) -> AgentResult:
    """As `run_agent`, of `TreeParzen`: its answer is the best mask so far; a turn is so many masks one after another."""
    del agent_kwargs
    answers, curves, times = [], [], []
    for seed in seeds:
        sampler, masks, rewards, seconds = TreeParzen(oracle.space, seed), [], [], 0.0
        for _ in range(evaluations):
            started = time.process_time()
            masks.append(sampler.ask())
            seconds += time.process_time() - started
            rewards.append(float(oracle.rewards(masks[-1][None])[0]))
            started = time.process_time()
            sampler.tell(rewards[-1])
            seconds += time.process_time() - started
        answers.append(masks[int(np.argmax(rewards))])
        curves.append(np.maximum.accumulate(rewards))
        times.append(1e3 * masks_per_turn * seconds / evaluations)
    used = np.full(len(seeds), evaluations)
    return AgentResult(agent, np.array(answers), np.array(curves), used, np.array(times))
