"""Scores of masks, and what they cost in the units that papers state budgets in."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass

import numpy as np

NAMED_EXAMPLES = 3


@dataclass(frozen=True)
class Scores:
    """Means over the examples, for each mask.

    A mask whose loss or metric is not finite is broken: it gets loss inf, metric 0 and divergence inf, and a warning names
    the first of a call with its examples.

    Attributes:
        losses: (m,) float64, nats.
        metrics: (m,) float64, 0..1.
        divergences: (m,) float64, KL(full model || subnet) in nats; None unless requested.
        full_loss: The loss of the full model, nats, for rewards that are relative to it; None for others.
    """

    losses: np.ndarray
    metrics: np.ndarray
    divergences: np.ndarray | None = None
    full_loss: float | None = None

    @property
    def broken(self) -> np.ndarray:
        """(m,) bool: masks whose loss is not finite."""
        return ~np.isfinite(self.losses)


@dataclass
class Spending:
    """Counters of an `Evaluator`: everything that ran, including failed calls. Cached results are not counted.

    Attributes:
        masks: Masks scored. The full model counts if divergences needed it.
        broken: Those of them with a non-finite loss.
        examples: Example-mask pairs scored.
        layer_runs, adapter_runs: Runs of a kept layer, and of a skip adapter, on one batch, summed over batches.
        texts, images: How many went through their encoder.
        macs: Multiply-accumulates of all matrix products that ran: encoders, layers and adapters with the shapes of the run
            (with padding, shared parts once, the pooled token alone if it is the only query), poolers, head.
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

    def __add__(self, other: Spending) -> Spending:
        return Spending(*(mine + its for mine, its in zip(astuple(self), astuple(other), strict=True)))

    def __sub__(self, other: Spending) -> Spending:
        return Spending(*(mine - its for mine, its in zip(astuple(self), astuple(other), strict=True)))


def format_mask(mask: np.ndarray) -> str:
    """Describe a (n_layers,) mask: `the mask that skips layers [1, 4]`."""
    layers = np.flatnonzero(mask).tolist()
    return f"the mask that skips layers {layers}" if layers else "the full model"


def format_examples(keys: Sequence[str]) -> str:
    """Describe examples, the first few by their keys: `examples '12', '15', '18' and 4 more`."""
    named = ", ".join(map(repr, keys[:NAMED_EXAMPLES]))
    more = f" and {len(keys) - NAMED_EXAMPLES} more" if len(keys) > NAMED_EXAMPLES else ""
    return f"example{'s' if len(keys) > 1 else ''} {named}{more}"


def warn_of_broken(masks: np.ndarray, broken: Mapping[int, Sequence[str]]) -> None:
    """Warn, once a call of the engine, of masks with a non-finite loss or metric; `broken` has their examples by row."""
    if not broken:
        return
    row, keys = min(broken.items())
    others = f", and of {len(broken) - 1} other masks" if len(broken) > 1 else ""
    warnings.warn(
        f"the loss of {format_mask(masks[row])}{others} is NaN or infinite, on {format_examples(keys)}. It gets the worst "
        "possible score. Use `precision=float32`, or train the supernet at a lower learning rate",
        RuntimeWarning,
        stacklevel=4,
    )
