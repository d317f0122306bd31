"""Metrics of generated answers that users register."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from das_gym.names import add_entry

METRICS: dict[str, Callable[[Any, str], float]] = {}
"""Scores of a generated answer to an example, 0..1, by name."""


def register_metric(name: str, function: Callable[[Any, str], float]) -> None:
    """Add a metric of generated answers: `adapt shrink` and `adapt evaluate` then take `metric=NAME`.

    Args:
        name: Its name.
        function: Called with an example (`question`, `answer`, `answers`, `options`, `kind`) and the generated text. It
            returns a score, 0..1, larger is better.

    Raises:
        TypeError: `function` cannot be called.
        ValueError: A name that is not allowed or taken.

    Example:
        >>> from das_gym import register_metric
        >>> register_metric("contains", lambda example, text: float(example.answer in text))
    """
    if not callable(function):
        raise TypeError(f"`function` is not callable: got {function!r}, expected function(example, text) -> score")
    add_entry(METRICS, name, function, "metric")


def score_texts(metric: str, examples: Sequence[Any], texts: Sequence[str]) -> np.ndarray:
    """Return the (n,) float64 scores of generated answers by a metric of `METRICS`; ValueError for one outside 0..1."""
    scores = np.array([METRICS[metric](e, text) for e, text in zip(examples, texts, strict=True)], dtype=np.float64)
    for example, score in zip(examples, scores, strict=True):
        if not 0 <= score <= 1:
            raise ValueError(f"metric {metric!r} is out of range on {example.key}: got {score}, expected 0..1")
    return scores
