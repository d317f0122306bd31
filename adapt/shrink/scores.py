"""How right answers are, and how sure that is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from das_gym.tasks.base import Task

Z = 1.959964
"""Of a normal distribution, 95 % lies within so many standard deviations."""


def scored(task: Task, examples: Sequence[Any], texts: Sequence[str]) -> np.ndarray:
    """(len(examples),) float64, 0..1: how right each text is."""
    return np.array([task.score_text(e, text) for e, text in zip(examples, texts, strict=True)], dtype=np.float64)


def interval(scores: np.ndarray) -> tuple[float, float]:
    """The 95 % interval of a mean score: Wilson's where each is right or wrong, else by 2,000 bootstrap samples.

    Args:
        scores: (n,) 0..1, at least one.
    """
    count, mean = len(scores), float(scores.mean())
    if np.isin(scores, (0, 1)).all():
        width = Z * math.sqrt(mean * (1 - mean) / count + Z**2 / (4 * count**2))
        middle, scale = mean + Z**2 / (2 * count), 1 + Z**2 / count
        return max(0.0, (middle - width) / scale), min(1.0, (middle + width) / scale)
    return bootstrap(scores)


def bootstrap(values: np.ndarray, samples: int = 2000) -> tuple[float, float]:
    """The 95 % percentile interval of the mean of (n,) values, the same each time."""
    draws = np.random.default_rng(0).integers(0, len(values), (samples, len(values)))
    low, high = np.percentile(values[draws].mean(axis=1), (2.5, 97.5)).tolist()
    return low, high


def difference_interval(apart: np.ndarray) -> tuple[float, float]:
    """The 95 % interval of a mean difference of scores on the same examples.

    By Agresti and Min (2005, half a pair added to each kind of pairs) where each score is right or wrong, so that a handful
    of pairs without a difference is no proof that there is none; else by 2,000 bootstrap samples.

    Args:
        apart: (n,) -1..1, at least one.
    """
    if not np.isin(apart, (-1, 0, 1)).all():
        return bootstrap(apart)
    better, worse, count = (apart == 1).sum() + 0.5, (apart == -1).sum() + 0.5, len(apart) + 2
    middle = (better - worse) / count
    width = Z * math.sqrt(better + worse - (better - worse) ** 2 / count) / count
    return float(max(-1.0, middle - width)), float(min(1.0, middle + width))
