"""What is told of numbers that are none: under which mask, and on which examples."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

SHOWN = 3
"""So many examples are named."""


def told_mask(mask: np.ndarray) -> str:
    """A (n_layers,) mask in words: `the mask that skips layers [1, 4]`."""
    layers = np.flatnonzero(mask).tolist()
    return f"the mask that skips layers {layers}" if layers else "the full model"


def told_examples(keys: Sequence[str]) -> str:
    """Examples in words, the first few by their keys: `examples '12', '15', '18' and 4 more`."""
    named = ", ".join(map(repr, keys[:SHOWN]))
    more = f" and {len(keys) - SHOWN} more" if len(keys) > SHOWN else ""
    return f"example{'s' if len(keys) > 1 else ''} {named}{more}"


class BrokenMasks:
    """The masks of one call of the engine whose loss or metric is not finite, and on which examples."""

    def __init__(self) -> None:
        self.keys: dict[int, list[str]] = {}

    def note(self, row: int, examples: Sequence[Any], values: np.ndarray) -> None:
        """Remember which of a batch's examples have a value, (batch,), that is not finite under the mask of that row."""
        if not np.isfinite(values).all():
            self.keys.setdefault(row, []).extend(examples[i].key for i in np.flatnonzero(~np.isfinite(values)).tolist())

    def warn(self, masks: np.ndarray) -> None:
        """Tell of the first, and how many there are, once for a call."""
        if not self.keys:
            return
        row, keys = min(self.keys.items())
        others = f", and of {len(self.keys) - 1} other masks" if len(self.keys) > 1 else ""
        warnings.warn(
            f"the loss of {told_mask(masks[row])}{others} is not a number, on {told_examples(keys)}: it counts as the worst "
            "there is; a model or supernet with such masks may need float32, or training at a lower learning rate",
            RuntimeWarning,
            stacklevel=4,
        )
