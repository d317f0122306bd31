"""Gaussian processes over masks: one of effects of single layers, pairs and triples, one that weights layers.

In the first, each order of effects has its own variance. A function of n bits is a sum of effects of sets of layers. Write
a mask as n signs. If the effects of all sets of j layers have the same prior variance, the covariance of two masks depends
only on the dot product d of their signs: it is that variance times a polynomial of d of degree j (Krawtchouk's), here scaled
to 1 at d = n.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from das_gym.problem.budget import Floats, Masks

PAIR_VARIANCES = (0.01, 0.03, 0.1, 0.3, 1.0)
TRIPLE_VARIANCES = (0.001, 0.01, 0.03, 0.1, 0.3)
NOISE_VARIANCES = (1e-4, 1e-3, 1e-2, 0.1, 0.3, 1.0)
GRID = (PAIR_VARIANCES, TRIPLE_VARIANCES, NOISE_VARIANCES)
"""Candidate variances of pairs, triples and noise, as multiples of the variance of single layers."""

START_INDICES = (2, 1, 1)
"""Index into each axis of `GRID` at which learning begins."""

LOG_PRIOR_MEAN = np.log([0.1, 0.1, 2.0, 3e-3])
LOG_PRIOR_STD = np.array([1.5, 1.5, 0.7, 1.5])
"""Prior of the logarithms of `pairs`, `heat`, `rate` and the noise. That of a weight has deviation 1."""

LARGEST_STEP = 0.5
SMALLEST_STEP = 0.01
FIRST_STEP = 0.1


def order_polynomials(n: int) -> Floats:
    """Return (4, 4): row j holds the coefficients of 1, d, d^2, d^3 of the covariance of effects of j layers; 0 if n < j."""
    rows = np.zeros((4, 4))
    rows[0, 0] = 1.0
    rows[1, 1] = 1.0 / n
    if n > 1:
        rows[2] = np.array([-n, 0.0, 1.0, 0.0]) / (n * (n - 1))
    if n > 2:
        rows[3] = np.array([0.0, 2.0 - 3.0 * n, 0.0, 1.0]) / (n * (n - 1) * (n - 2))
    return rows


@dataclass
class Posterior:
    """Means and variances, without noise, of a process at (m, n_layers) candidates `masks`; (m,) each."""

    process: "GaussianProcess"
    masks: Masks
    mean: Floats
    variance: Floats
    _weights: Floats  # (observations, m), whitened covariances with the observations

    def observe(self, index: int) -> None:
        """Shrink the variances as if candidate `index` had been observed at its mean."""
        prior = self.process.covariance(self.masks[index : index + 1], self.masks)[0]
        left = prior * self.process.scale - self._weights[:, index] @ self._weights
        # One more row of the whitened covariances, as Cholesky would add it: no factorization for each mask of a turn.
        row = left / math.sqrt(self.variance[index] + self.process.noise * self.process.scale)
        self._weights = np.vstack((self._weights, row))
        self.variance = np.maximum(self.variance - row**2, 0.0)


class GaussianProcess(ABC):
    """A Gaussian process over masks, conditioned on observed values.

    Args:
        masks: (m, n_layers) bool, m >= 1.
        values: (m,) float, on any scale: the prior variance is scaled to fit.
        noise: Variance of the noise, up to `scale`.

    Attributes:
        scale: Factor of all variances, the likeliest one.
        log_likelihood: Logarithm of the marginal likelihood of the values, up to a constant that all processes share.
    """

    def __init__(self, masks: Masks, values: Floats, noise: float) -> None:
        self.masks = masks
        self.noise = noise
        covariance = self.covariance(masks, masks)
        m = len(masks)
        covariance[np.diag_indices(m)] += noise
        # The last row of the factor of [[covariance, values], [values, large]] is L^-1 values: a likelihood takes one
        # factorization, and the inverse is computed only for the process that predicts.
        joint = np.empty((m + 1, m + 1))
        joint[:m, :m] = covariance
        joint[m, :m] = joint[:m, m] = values
        # Its corner has to exceed values K^-1 values, which is at most |values|^2 / noise, or there is no factor.
        joint[m, m] = 1.0 + 2.0 * float(values @ values) / noise
        factor: Floats = np.linalg.cholesky(joint).astype(np.float64, copy=False)
        self._factor = factor[:m, :m]
        self._white = factor[m, :m]
        # Equal values have a scale of 0, whose logarithm is infinite.
        self.scale = max(float(self._white @ self._white) / m, 1e-9)
        self.log_likelihood = -0.5 * m * math.log(self.scale) - float(np.log(np.diag(self._factor)).sum())

    @cached_property
    def whiten(self) -> Floats:
        """Inverse of the Cholesky factor of the observations' covariance, (m, m)."""
        return invert_lower(self._factor)

    @cached_property
    def weights(self) -> Floats:
        """(m,): the posterior mean of a mask is the sum of its covariances with the observed masks times these."""
        return self.whiten.T @ self._white

    @abstractmethod
    def covariance(self, some: Masks, others: Masks) -> Floats:
        """Return the (a, b) prior covariance of (a, n_layers) with (b, n_layers) masks, up to `scale`."""

    @abstractmethod
    def flip_means(self, mask: Masks) -> Floats:
        """Return posterior means of a mask with layers flipped, (n_layers, n_layers).

        Entry (i, j) is that of swapping a skipped layer i for a kept layer j, entry (i, i) that of flipping layer i. Other
        entries mean nothing: no agent makes such moves.
        """

    def mean(self, masks: Masks) -> Floats:
        """Return (m,) posterior means."""
        return self.covariance(masks, self.masks) @ self.weights

    def posterior(self, masks: Masks) -> Posterior:
        """Return means and variances at (m, n_layers) candidates."""
        weights = self.whiten @ self.covariance(self.masks, masks)
        prior = self.covariance(masks[:1], masks[:1])[0, 0]  # every mask has the same prior variance
        variance = np.maximum(prior - (weights**2).sum(axis=0), 0.0) * self.scale
        return Posterior(self, masks, self._white @ weights, variance, weights * math.sqrt(self.scale))


class PolynomialProcess(GaussianProcess):
    """A process whose covariance is a polynomial of the dot product of the signs, n_layers - 2 * layers that differ.

    Args:
        masks, values, noise: As for `GaussianProcess`.
        polynomial: (4,) coefficients of 1, d, d^2, d^3.
    """

    def __init__(self, masks: Masks, values: Floats, noise: float, polynomial: Floats) -> None:
        self._polynomial = polynomial
        super().__init__(masks, values, noise)

    def covariance(self, some: Masks, others: Masks) -> Floats:
        return self._covariance_at((2.0 * some - 1.0) @ (2.0 * others - 1.0).T)

    def _covariance_at(self, d: Floats) -> Floats:
        """Evaluate the polynomial at dot products `d` of any shape, by Horner's rule in place."""
        found = np.full_like(d, self._polynomial[3])
        for coefficient in self._polynomial[2::-1]:
            found *= d
            found += coefficient
        return found

    def flip_means(self, mask: Masks) -> Floats:
        # Two flips change the dot product with an observed mask by -4, 0 or 4, depending on which of the two layers now
        # agree. So all swaps together take two matrix products.
        agree = (self.masks != mask).astype(np.float64)  # (observations, n_layers): would agree once flipped
        d = mask.size - 2.0 * agree.sum(axis=1)
        down, one_down, same, one_up, up = (self.weights * self._covariance_at(d + step) for step in (-4, -2, 0, 2, 4))
        differ = 1.0 - agree
        found = np.zeros((mask.size, mask.size))
        rises = (agree[:, mask].T * (up - same)) @ agree[:, ~mask]
        falls = (differ[:, mask].T * (down - same)) @ differ[:, ~mask]
        found[np.ix_(mask, ~mask)] = same.sum() + rises + falls
        np.fill_diagonal(found, one_up @ agree + one_down @ differ)
        return found


class MaskProcess(PolynomialProcess):
    """The process with effects of single layers, pairs and triples.

    Args:
        masks, values: As for `GaussianProcess`.
        indices: The variances: one index into each axis of `GRID`.
    """

    def __init__(self, masks: Masks, values: Floats, indices: Sequence[int] = START_INDICES) -> None:
        pairs, triples, noise = (choices[i] for choices, i in zip(GRID, indices, strict=True))
        super().__init__(masks, values, noise, np.array([1.0, 1.0, pairs, triples]) @ order_polynomials(masks.shape[1]))


def fit_step(
    make: Callable[[Sequence[int]], MaskProcess], indices: Sequence[int], axes: Sequence[int] = range(len(GRID))
) -> tuple[MaskProcess, list[int]]:
    """Increase the marginal likelihood by one step along each of `axes` of `GRID`; return the process and its indices.

    `make` makes the process of one index per axis, and `indices` are where to begin.
    """
    best_indices = list(indices)
    best = make(best_indices)
    for axis in axes:
        for step in (-1, 1):
            tried = list(best_indices)
            tried[axis] += step
            if 0 <= tried[axis] < len(GRID[axis]):
                process = make(tried)
                if process.log_likelihood > best.log_likelihood:
                    best = process
                    best_indices = tried
    return best, best_indices


def invert_lower(factor: Floats) -> Floats:
    """Return the (m, m) inverse of a lower triangular matrix, by halves: numpy's general inverse is four times slower."""
    if len(factor) <= 64:
        return np.linalg.inv(factor).astype(np.float64, copy=False)
    half = len(factor) // 2
    inverse = np.zeros_like(factor)
    inverse[:half, :half] = invert_lower(factor[:half, :half])
    inverse[half:, half:] = invert_lower(factor[half:, half:])
    inverse[half:, :half] = -inverse[half:, half:] @ (factor[half:, :half] @ inverse[:half, :half])
    return inverse


def expected_improvement(mean: Floats, variance: Floats, best: float) -> Floats:
    """Return by how much each of (m,) candidates is expected to exceed `best`, at least 0."""
    deviation = np.sqrt(np.maximum(variance, 1e-18))  # a variance of 0 would divide by 0
    u = (mean - best) / deviation
    density = np.exp(-0.5 * u**2) / math.sqrt(2.0 * math.pi)
    return np.maximum(deviation * (u * _normal_cdf(u) + density), 0.0)


def _normal_cdf(u: Floats) -> Floats:
    """Return the standard normal distribution function, to 1e-7 (Abramowitz and Stegun, 26.2.17).

    It is not `torch.special.ndtr`, because agents need only numpy, and the numbers of LEADERBOARD.md come from this one.
    """
    t = 1.0 / (1.0 + 0.2316419 * np.abs(u))
    powers = t * (0.319381530 + t * (-0.356563782 + t * (1.781477937 + t * (-1.821255978 + t * 1.330274429))))
    tail = np.exp(-0.5 * u**2) / math.sqrt(2.0 * math.pi) * powers
    return np.where(u >= 0, 1.0 - tail, tail)


class AgreementProcess(GaussianProcess):
    """A process that learns how much each layer matters: its covariance is a function of the agreement of two masks.

    The agreement is u = sum_i w_i s_i t_i of their signs s and t, with a weight w_i >= 0 for each layer, and weights that
    add up to 1. The covariance is 1 + u + pairs * u^2 + heat * exp(rate * (u - 1)): effects of layers, of pairs of layers,
    and a heat kernel for the rest. Where few layers matter, this generalizes from fewer masks than a process whose
    covariance counts the layers in which masks differ.

    Args:
        masks, values: As for `GaussianProcess`.
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
        """See `GaussianProcess.flip_means`: a flip adds to the agreement, and multiplies the heat kernel by a factor."""
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
        self._middle = np.append(np.zeros(n_layers), LOG_PRIOR_MEAN)
        self._deviation = np.append(np.ones(n_layers), LOG_PRIOR_STD)
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
