"""95 % intervals of mean scores, of their differences, and of any statistic by the bootstrap; rank correlation."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

Z = 1.959964
"""95 % of a normal distribution lies within this many standard deviations of its mean."""

RESAMPLES = 2000


def bootstrap_interval(statistic: Callable[[np.ndarray], np.ndarray], count: int) -> tuple[float, float]:
    """Return the 95 % percentile interval of a statistic of `count` resampled rows, the same at each call.

    The statistic maps (samples, count) row numbers to (samples,) values; NaN values are ignored.

    Example:
        >>> times = np.array([1.0, 2.0, 4.0])
        >>> low, high = bootstrap_interval(lambda rows: np.median(times[rows], axis=1), len(times))
    """
    rows = np.random.default_rng(0).integers(0, count, (RESAMPLES, count))
    low, high = np.nanpercentile(statistic(rows), (2.5, 97.5)).tolist()
    return low, high


def mean_bootstrap_interval(values: np.ndarray) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of the mean of (n,) values; the same at every call."""
    return bootstrap_interval(lambda rows: values[rows].mean(axis=1), len(values))


def t_interval(values: np.ndarray) -> tuple[float, float]:
    """Return Student's interval of the mean of (n,) values, which holds for few of them; unbounded for fewer than 3."""
    from scipy import stats  # takes a second

    count = len(values)
    mean = float(values.mean())
    if count < 3:
        return -math.inf, math.inf
    width = float(stats.t.ppf(0.975, count - 1)) * float(values.std(ddof=1)) / math.sqrt(count)
    return mean - width, mean + width


def mean_interval(scores: np.ndarray) -> tuple[float, float]:
    """Return the interval of the mean of (n,) scores in 0..1: Wilson's if each is 0 or 1, else by the bootstrap."""
    from scipy import stats  # takes a second

    if not np.isin(scores, (0, 1)).all():
        return mean_bootstrap_interval(scores)
    interval = stats.binomtest(int(scores.sum()), len(scores)).proportion_ci(0.95, "wilson")
    return float(interval.low), float(interval.high)


def difference_interval(differences: np.ndarray) -> tuple[float, float]:
    """Return the interval of the mean of (n,) differences, -1..1, of two models' scores on the same examples.

    If every score is 0 or 1, the interval is that of Agresti and Min (2005), who add half a pair to each kind of pair. A few
    pairs without a difference are then no proof that the models are equal. Otherwise the bootstrap is used.
    """
    if not np.isin(differences, (-1, 0, 1)).all():
        return mean_bootstrap_interval(differences)
    better = (differences == 1).sum() + 0.5
    worse = (differences == -1).sum() + 0.5
    count = len(differences) + 2
    middle = (better - worse) / count
    width = Z * math.sqrt(better + worse - (better - worse) ** 2 / count) / count
    return float(max(-1.0, middle - width)), float(min(1.0, middle + width))


def average_ranks(values: np.ndarray) -> np.ndarray:
    """Return (m,) float64 ranks from 0 up; equal values share the mean of their ranks."""
    _, which, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts + 1) / 2)[which]


def spearman(one: np.ndarray, other: np.ndarray) -> float:
    """Return Spearman's rank correlation of two (m,) arrays, -1..1; NaN if one of them is constant."""
    ranks = np.stack([average_ranks(one), average_ranks(other)])
    return float("nan") if np.ptp(ranks, axis=1).min() == 0 else float(np.corrcoef(ranks)[0, 1])
