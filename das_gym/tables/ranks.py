"""Do two ways of scoring masks put them in the same order?"""

from __future__ import annotations

import numpy as np


def average_ranks(values: np.ndarray) -> np.ndarray:
    """Return (m,) float64 ranks from 0 up; equal values share the mean of their ranks."""
    _, which, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts + 1) / 2)[which]


def spearman(one: np.ndarray, other: np.ndarray) -> float:
    """Return Spearman's rank correlation of two (m,) arrays, -1..1; NaN if one of them is constant."""
    ranks = np.stack([average_ranks(one), average_ranks(other)])
    return float("nan") if np.ptp(ranks, axis=1).min() == 0 else float(np.corrcoef(ranks)[0, 1])
