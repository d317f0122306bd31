"""Bayesian optimization with a heat kernel in a trust region (arXiv 2510.26633; also in MCBO).

The covariance of two masks is the product of exp(-w_i) over the layers in which they differ. Each layer has its own weight,
learned with the noise by some steps up the marginal likelihood at each ask. Candidates lie within a radius of flips around
the best mask: it grows with success, shrinks with failure, and is reset once it was at its smallest.
"""

import math
from typing import ClassVar

import numpy as np
from das_gym.agents.ask_tell.base import Seed
from das_gym.agents.ask_tell.bayes import Bayes, normal_scores
from das_gym.agents.ask_tell.gaussian_process import FIRST_STEP, GaussianProcess, next_steps

from das_gym.problem.budget import Floats, Masks
from das_gym.problem.mask_space import MaskSpace

STEPS = 4
"""Gradient steps at each ask."""

NOISE = math.log(1e-2)
SPREADS = (1.5, 1.0, 2.0)
"""Prior standard deviations of logarithms: the weights' mean, each weight around it, and the noise."""

FAILURES = 3
"""Turns without a better mask after which the radius is halved."""

_RANGE = (math.log(1e-4), math.log(3.0))
_NOISE_RANGE = (math.log(1e-5), 0.0)


class HeatProcess(GaussianProcess):
    """A process with a heat kernel.

    Args:
        masks: (m, n_layers) bool, m >= 1.
        values: (m,) float.
        logs: (n_layers + 1,) logarithms of the weights and of the noise.
    """

    def __init__(self, masks: Masks, values: Floats, logs: Floats) -> None:
        self._layer_weights = np.exp(logs[:-1])
        super().__init__(masks, values, math.exp(logs[-1]))

    def covariance(self, some: Masks, others: Masks) -> Floats:
        a, b, w = some.astype(float), others.astype(float), self._layer_weights
        return np.exp(2.0 * (a * w) @ b.T - (a @ w)[:, None] - (b @ w)[None])

    def flip_means(self, mask: Masks) -> Floats:
        """See `GaussianProcess.flip_means`: each flip multiplies the covariance with an observed mask by one factor."""
        differ = (self.masks != mask).astype(float)
        here = self.weights * np.exp(-differ @ self._layer_weights)
        factors = np.exp(self._layer_weights * (2.0 * differ - 1.0))
        found = (factors * here[:, None]).T @ factors  # also of moves that no agent makes
        np.fill_diagonal(found, here @ factors)
        return found

    def gradient(self) -> Floats:
        """Return the derivative of the log-likelihood with respect to `logs`, (n_layers + 1,)."""
        inner = 0.5 * (np.outer(self.weights, self.weights) / self.scale - self.whiten.T @ self.whiten)
        weighted = inner * self.covariance(self.masks, self.masks)
        x = self.masks.astype(float)
        by_weight = 2.0 * ((x * (weighted @ x)).sum(axis=0) - weighted.sum(axis=1) @ x)
        return np.append(by_weight * self._layer_weights, np.trace(inner) * self.noise)


class HeatKernel(Bayes):
    """Bayesian optimization with a heat kernel in a trust region (arXiv 2510.26633)."""

    free_budget: ClassVar[bool] = False  # random masks first, no smaller ones

    def __init__(self, space: MaskSpace, seed: Seed = None) -> None:
        super().__init__(space, seed)
        size = self.n_layers + 1
        self._prior = math.log(1.5 / self.n_layers)
        self.learned = {
            "logs": np.append(np.full(self.n_layers, self._prior), NOISE),
            "steps": np.full(size, FIRST_STEP),
            "slopes": np.zeros(size),
        }
        self.radius = self.n_layers
        self.failures = 0

    def tell(self, masks: Masks, rewards: Floats) -> None:
        """Store the rewards, and grow or shrink the trust region."""
        before = max(self.rewards.values(), default=-math.inf)
        super().tell(masks, rewards)
        if max(self.rewards.values(), default=-math.inf) > before:
            self.radius = min(2 * self.radius, self.n_layers)
            self.failures = 0
            return
        self.failures += 1
        if self.failures == FAILURES:
            self.radius = self.radius // 2 if self.radius > 2 else self.n_layers
            self.failures = 0

    def _observations(self) -> tuple[Masks, Floats]:
        return self.scored_masks(), normal_scores(list(self.rewards.values()))

    def _fit(self, masks: Masks, scores: Floats) -> list[GaussianProcess]:
        """Take steps by resilient propagation, as `AgreementLearner` does."""
        process = HeatProcess(masks, scores, self.learned["logs"])
        for _ in range(STEPS):
            logs = self.learned["logs"]
            steps = self.learned["steps"]
            spread = logs[:-1] - (mean := logs[:-1].mean())
            pull = spread / SPREADS[1] ** 2 + (mean - self._prior) / SPREADS[0] ** 2 / self.n_layers
            slopes = process.gradient() - np.append(pull, (logs[-1] - NOISE) / SPREADS[2] ** 2)
            slopes, steps = next_steps(slopes, self.learned["slopes"], steps)
            logs = logs + np.sign(slopes) * steps
            logs = np.append(np.clip(logs[:-1], *_RANGE), np.clip(logs[-1], *_NOISE_RANGE))
            self.learned = {"logs": logs, "steps": steps, "slopes": slopes}
            process = HeatProcess(masks, scores, logs)
        return [process]

    def _candidates(self, process: GaussianProcess) -> Masks:
        """Return the candidates of `Bayes` within the trust region; all of them where none is."""
        fresh = super()._candidates(process)
        scored = self.scored_masks()
        rewards = np.where(self.space.contains(scored), list(self.rewards.values()), -np.inf)
        near = fresh[(fresh != scored[rewards.argmax()]).sum(axis=1) <= self.radius]
        return near if len(near) else fresh
