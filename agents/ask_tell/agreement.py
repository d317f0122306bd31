"""A Gaussian process over masks that learns how much each layer matters.

The agreement of two masks is u = sum_i w_i s_i t_i of their signs s and t, with a weight w_i >= 0 for each layer, and
weights that add up to 1. The covariance is 1 + u + pairs * u^2 + heat * exp(rate * (u - 1)): effects of layers, of pairs of
layers, and a heat kernel for the rest. Where few layers matter, this generalizes from fewer masks than a process whose
covariance counts the layers in which masks differ.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
from das_gym.agents.ask_tell.gaussian_process import Process

from das_gym.problem.budget import Floats, Masks

MIDDLE = np.log([0.1, 0.1, 2.0, 3e-3])
DEVIATION = np.array([1.5, 1.5, 0.7, 1.5])
"""Prior of the logarithms of `pairs`, `heat`, `rate` and the noise. That of a weight has deviation 1."""

LARGEST_STEP = 0.5
SMALLEST_STEP = 0.01
FIRST_STEP = 0.1


class AgreementProcess(Process):
    """A process whose covariance is a function of the agreement of two masks.

    Args:
        masks, values: As for `Process`.
        logs: (n_layers + 4,) logarithms of the weights (up to a constant), `pairs`, `heat`, `rate`, and of the noise as a
            share of the prior variance.
    """

    def __init__(self, masks: Masks, values: Floats, logs: Floats) -> None:
        # Weights add up to 1, so that `pairs`, `heat` and `rate` mean the same for any number of layers.
        weights = np.exp(logs[:-4] - logs[:-4].max())
        self.layer_weights = weights / weights.sum()
        self.pairs, self.heat, self.rate, self.noise_share = np.exp(logs[-4:])
        self._weighted = (2.0 * masks - 1.0) * self.layer_weights
        # A mask agrees with itself by u = 1: the prior variance of every mask is 2 + pairs + heat.
        super().__init__(masks, values, self.noise_share * (2.0 + self.pairs + self.heat))

    def covariance(self, some: Masks, others: Masks) -> Floats:
        # An ask takes the covariance of the observed masks several times; their product with the weights is kept.
        weighted = self._weighted if some is self.masks else (2.0 * some - 1.0) * self.layer_weights
        u = weighted @ (2.0 * others - 1.0).T
        return self._polynomial(u) + self.heat * np.exp(self.rate * (u - 1.0))

    def _polynomial(self, u: Floats) -> Floats:
        return 1.0 + u * (1.0 + self.pairs * u)

    @cached_property
    def _factors(self) -> Floats:
        """Factors of the heat kernel with each observed mask, (m, n_layers), if a layer agreed and is flipped."""
        return np.exp(-2.0 * self.rate * np.abs(self._weighted))

    def flip_means(self, mask: Masks) -> Floats:
        """See `Process.flip_means`: a flip adds to the agreement, and multiplies the heat kernel by a factor."""
        # The heat kernel is a product over layers, so that of a swap is the product of two factors. In the polynomial the
        # two steps of a swap also multiply each other, through u^2.
        signs = 2.0 * mask - 1.0
        u = self._weighted @ signs
        steps = self._weighted * (-2.0 * signs)
        factors = np.where(steps < 0.0, self._factors, 1.0 / self._factors)
        decay = self.heat * self.weights * np.exp(self.rate * (u - 1.0))
        here = float(self.weights @ self._polynomial(u))
        one = (self.weights * (1.0 + 2.0 * self.pairs * u)) @ steps + self.pairs * self.weights @ steps**2
        found = np.zeros((mask.size, mask.size))
        both = 2.0 * self.pairs * (steps[:, mask].T * self.weights) @ steps[:, ~mask]
        both += (factors[:, mask].T * decay) @ factors[:, ~mask]
        found[np.ix_(mask, ~mask)] = here + one[mask, None] + one[~mask] + both
        np.fill_diagonal(found, here + one + decay @ factors)
        return found

    def gradient(self) -> Floats:
        """Return the derivative of the log-likelihood with respect to `logs`, (n_layers + 4,)."""
        signs = 2.0 * self.masks - 1.0
        u = self._weighted @ signs.T
        # `inner` is the derivative by each covariance. `scale` is at its likeliest value, so its derivative is 0.
        inner = 0.5 * (np.outer(self.weights, self.weights) / self.scale - self.whiten.T @ self.whiten)
        decay = inner * (self.heat * np.exp(self.rate * (u - 1.0)))
        trace = float(np.trace(inner)) * self.noise_share
        by_agreement = inner * (1.0 + 2.0 * self.pairs * u) + self.rate * decay
        by_weight = ((by_agreement @ signs) * signs).sum(axis=0)
        # The weights are a softmax of their logarithms.
        by_weight = self.layer_weights * (by_weight - self.layer_weights @ by_weight)
        by_pairs = self.pairs * (float((inner * u * u).sum()) + trace)
        by_heat = float(decay.sum()) + self.heat * trace
        by_rate = self.rate * float((decay * (u - 1.0)).sum())
        return np.append(by_weight, [by_pairs, by_heat, by_rate, trace * (2.0 + self.pairs + self.heat)])


class AgreementLearner:
    """Learns the settings of an `AgreementProcess`: steps up the posterior of their logarithms, see `next_steps`."""

    def __init__(self, n_layers: int) -> None:
        self._middle = np.append(np.zeros(n_layers), MIDDLE)
        self._deviation = np.append(np.ones(n_layers), DEVIATION)
        self.logs = self._middle.copy()
        self._steps = np.full(n_layers + 4, FIRST_STEP)
        self._slopes = np.zeros(n_layers + 4)

    def fit(self, masks: Masks, values: Floats, steps: int) -> AgreementProcess:
        """Take steps, and return the process that observed `values`."""
        process = AgreementProcess(masks, values, self.logs)
        for _ in range(steps):
            slopes = process.gradient() - (self.logs - self._middle) / self._deviation**2
            self._slopes, self._steps = next_steps(slopes, self._slopes, self._steps)
            # Where the likelihood is flat, unclipped steps grow until exp() overflows.
            low = self._middle - 3.0 * self._deviation
            high = self._middle + 3.0 * self._deviation
            self.logs = np.clip(self.logs + np.sign(self._slopes) * self._steps, low, high)
            process = AgreementProcess(masks, values, self.logs)
        return process


def next_steps(slopes: Floats, previous: Floats, steps: Floats) -> tuple[Floats, Floats]:
    """Return the slopes to follow and the sizes of the steps, by resilient propagation (Rprop).

    The step of a value grows while its slope keeps its sign. When the sign changes, the step shrinks, and the value stays.
    `previous` and `steps` are what this function returned before: at first 0 and `FIRST_STEP`.
    """
    agree = slopes * previous
    steps = np.clip(steps * np.where(agree > 0, 1.3, np.where(agree < 0, 0.5, 1.0)), SMALLEST_STEP, LARGEST_STEP)
    return np.where(agree < 0, 0.0, slopes), steps
