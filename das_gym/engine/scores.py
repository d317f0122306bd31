"""Scores of masks, and what they cost in the units that papers state budgets in."""

from __future__ import annotations

from dataclasses import asdict, dataclass

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


@dataclass
class Spending:
    """Counters of an `Evaluator`: everything that ran, including failed calls. Cached results are not counted.

    Attributes:
        masks: Masks scored, without cached ones. The full model counts if divergences needed it.
        broken: Those of them with a non-finite loss.
        examples: Example-mask pairs scored.
        layer_runs: Runs of a kept layer on one batch, summed over batches.
        adapter_runs: Runs of a skip adapter on one batch, summed over batches.
        texts, images: How many went through their encoder.
        macs: Multiply-accumulates of all matrix products that ran: encoders, layers and adapters with the shapes of the
            run (with padding, shared parts once, the pooled token alone if it is the only query), poolers, head.
        seconds: Wall-clock time.
    """

    masks: int = 0
    broken: int = 0
    examples: int = 0
    layer_runs: int = 0
    adapter_runs: int = 0
    texts: int = 0
    images: int = 0
    macs: int = 0
    seconds: float = 0.0

    def as_dict(self) -> dict[str, int | float]:
        """Return every counter by name, for JSON."""
        return asdict(self)
