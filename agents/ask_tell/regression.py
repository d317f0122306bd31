"""Rivals that fit what one would fit first: Bayesian linear regression on the layers skipped, or on their pairs as well."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from das_gym.agents.ask_tell.bayes import Bayes
from das_gym.agents.ask_tell.gaussian_process import NOISES, PolynomialProcess, Process

from das_gym.problem.budget import Floats, Masks
from das_gym.problem.mask_space import MaskSpace


def _effects(masks: Masks, values: Floats, noise: float, pairs: float) -> Process:
    """Effects of layers and of their pairs, the latter of prior variance `pairs`: regression, written as a process.

    (1 + s.s' / n) holds a constant and each layer's sign; its square would add each pair's once more.
    """
    n = masks.shape[1]
    return PolynomialProcess(masks, values, noise, np.array([1.0, 1.0 / n, pairs / n**2, 0.0]))


class LinearRegression(Bayes):
    """Bayesian linear regression of the reward on the layers skipped, asked for the largest expected improvement.

    Rewards are standardised, not ranked; the noise is the likeliest of a few. Masks are proposed as `Bayes` proposes them.

    Args:
        space: The masks to choose from.
        seed: Seed, or the generator to draw from.
    """

    pairs: ClassVar[float] = 0.0

    def __init__(self, space: MaskSpace, seed: int | np.random.Generator | None = None) -> None:
        super().__init__(space, seed)

    def _known(self) -> tuple[Masks, Floats]:
        rewards = np.array(list(self.reported.values()))
        return self.reported_masks(), (rewards - rewards.mean()) / max(float(rewards.std()), 1e-12)

    def _fit(self, masks: Masks, scores: Floats) -> Process:
        return max((_effects(masks, scores, noise, self.pairs) for noise in NOISES), key=lambda fit: fit.log_likelihood)


class QuadraticRegression(LinearRegression):
    """As `LinearRegression`, on the layers skipped and on all pairs of them.

    Args:
        space: The masks to choose from.
        seed: Seed, or the generator to draw from.
    """

    pairs: ClassVar[float] = 0.5
