"""Report the masks and examples that produced non-finite losses."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

NAMED_EXAMPLES = 3
"""How many examples a message names."""


def format_mask(mask: np.ndarray) -> str:
    """Describe a (n_layers,) mask: `the mask that skips layers [1, 4]`."""
    layers = np.flatnonzero(mask).tolist()
    return f"the mask that skips layers {layers}" if layers else "the full model"


def format_examples(keys: Sequence[str]) -> str:
    """Describe examples, the first few by their keys: `examples '12', '15', '18' and 4 more`."""
    named = ", ".join(map(repr, keys[:NAMED_EXAMPLES]))
    more = f" and {len(keys) - NAMED_EXAMPLES} more" if len(keys) > NAMED_EXAMPLES else ""
    return f"example{'s' if len(keys) > 1 else ''} {named}{more}"


class BrokenMasks:
    """The masks of one call of the engine whose loss or metric is not finite, and on which examples."""

    def __init__(self) -> None:
        self.keys: dict[int, list[str]] = {}

    def note(self, row: int, examples: Sequence[Any], values: np.ndarray) -> None:
        """Record which of a batch's examples have a non-finite value, (batch,), under the mask of that row."""
        if not np.isfinite(values).all():
            self.keys.setdefault(row, []).extend(examples[i].key for i in np.flatnonzero(~np.isfinite(values)).tolist())

    def warn(self, masks: np.ndarray) -> None:
        """Warn of the first mask and of their number, once a call."""
        if not self.keys:
            return
        row, keys = min(self.keys.items())
        others = f", and of {len(self.keys) - 1} other masks" if len(self.keys) > 1 else ""
        warnings.warn(
            f"the loss of {format_mask(masks[row])}{others} is NaN or infinite, on {format_examples(keys)}. It gets the "
            "worst possible score. Use `precision=float32`, or train the supernet at a lower learning rate",
            RuntimeWarning,
            stacklevel=4,
        )
