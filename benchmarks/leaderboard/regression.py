"""Rivals: Bayesian linear regression on the skipped layers, or also on their pairs."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from das_gym.agents.ask_tell.base import AGENTS, register_agent
from das_gym.agents.ask_tell.bayes import Bayes
from das_gym.agents.ask_tell.gaussian_process import NOISES, PolynomialProcess, Process

from das_gym.problem.budget import Floats, Masks
from das_gym.problem.mask_space import MaskSpace


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


RIVALS = {"linear_regression": LinearRegression, "quadratic_regression": QuadraticRegression}


def register_rivals() -> None:
    """Register both agents, if they are not."""
    for name, agent in RIVALS.items():
        if name not in AGENTS:
            register_agent(name, agent)
