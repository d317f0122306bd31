"""What masks score."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Scores:
    """Means over the examples, for each mask.

    A mask whose loss or metric is not a number, or infinite, is broken: it has loss inf, metric 0 and divergence inf, and
    spoils no other. A warning names the first of a call with its examples, `broken` tells which, `Spending.broken` how many
    there have been.

    Attributes:
        losses: (m,) float64, nats.
        metrics: (m,) float64, 0..1.
        divergences: (m,) float64, KL(full model || subnet) in nats, inf where it is no number; None if not asked for.
    """

    losses: np.ndarray
    metrics: np.ndarray
    divergences: np.ndarray | None = None

    @property
    def broken(self) -> np.ndarray:
        """(m,) bool: masks whose loss is not finite."""
        return ~np.isfinite(self.losses)
