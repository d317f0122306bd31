"""Scores of masks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Scores:
    """Means over the examples, for each mask.

    A mask whose loss or metric is NaN or infinite is broken: it gets loss inf, metric 0 and divergence inf, and affects no
    other mask. A warning names the first of a call with its examples; `Spending.broken` counts all of them.

    Attributes:
        losses: (m,) float64, nats.
        metrics: (m,) float64, 0..1.
        divergences: (m,) float64, KL(full model || subnet) in nats, inf if it is not finite; None unless requested.
    """

    losses: np.ndarray
    metrics: np.ndarray
    divergences: np.ndarray | None = None

    @property
    def broken(self) -> np.ndarray:
        """(m,) bool: masks whose loss is not finite."""
        return ~np.isfinite(self.losses)
