"""What each example of a split scores under each mask, in two bytes and one.

A loss is a float16: its relative error is at most 2^-11 (0.05 %), that of a mean over examples far less. A metric is exact,
as a number of one of the few values that occur. Divergences are not kept example by example.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from das_gym.engine.scores import Scores

MAX_FLOAT64 = float(np.finfo(np.float64).max)

MAX_FLOAT16 = float(np.finfo(np.float16).max)
"""Larger losses count as this many nats; infinite ones stay infinite."""

MAX_METRIC_VALUES = 256


def check_array(
    name: str,
    array: Any,
    kinds: str,
    shape: tuple[int | None, ...],
    low: float = -MAX_FLOAT64,
    high: float = MAX_FLOAT64,
    may_lack: bool = False,
) -> None:
    """Raise ValueError for an array of a file that would give wrong numbers.

    `kinds` are those of its dtype as numpy names them: `f`, `iu` or `U`. None in `shape` allows any size of that dimension.
    `may_lack` allows NaN, for values that were not measured.
    """
    sizes = tuple(size if wanted is not None else None for size, wanted in zip(array.shape, shape, strict=False))
    if array.ndim != len(shape) or sizes != shape or array.dtype.kind not in kinds:
        raise ValueError(
            f"{name} is wrong: got {array.dtype} of shape {array.shape}, expected kind {kinds} of shape {shape}"
        )
    if kinds == "U":
        return
    wrong = (array < np.float64(low)) | (array > np.float64(high))
    if not may_lack:
        wrong |= np.isnan(array)
    if wrong.any():
        raise ValueError(f"{name} is out of range: got {array[wrong][0]}, expected {low:g} to {high:g}")


@dataclass(frozen=True, eq=False)
class ExampleScores:
    """The scores of one split, example by example; in a file, its arrays are called `{split}_example_{name}`.

    Attributes:
        losses: (n_examples, n_masks) float16, nats; infinite where a loss is NaN.
        metrics: (n_examples, n_masks) uint8, indices into `metric_values`.
        metric_values: (n_values,) float32.
        groups: (n_examples,) int16, indices into the table's `meta.groups`.
        images: (n_examples,) int32, the number of an example's first image; an example without one has a unique number.
        keys: (n_examples,) text: the data set's own names.
    """

    losses: np.ndarray
    metrics: np.ndarray
    metric_values: np.ndarray
    groups: np.ndarray
    images: np.ndarray
    keys: np.ndarray

    @classmethod
    def empty(cls, masks: int, groups: np.ndarray, images: np.ndarray, keys: Sequence[str]) -> ExampleScores:
        """Return the scores of examples before any is scored; `put` adds them."""
        shape = (len(keys), masks)
        losses = np.zeros(shape, np.float16)
        metrics = np.zeros(shape, np.uint8)
        return cls(losses, metrics, np.zeros(0, np.float32), groups, images, np.array(keys, dtype=str))

    def put(self, first: int, scores: Scores) -> ExampleScores:
        """Add (n_masks, m) scores of examples from `first` on; return the result. ValueError for too many metric values."""
        where = slice(first, first + scores.losses.shape[1])
        losses = np.nan_to_num(scores.losses.T, nan=np.inf, posinf=np.inf)
        self.losses[where] = np.where(np.isinf(losses), np.inf, np.clip(losses, 0.0, MAX_FLOAT16))
        found = scores.metrics.T.astype(np.float32)
        values = np.unique(np.concatenate((self.metric_values, found.ravel())))
        if len(values) > MAX_METRIC_VALUES:
            raise ValueError(f"the metric takes more than {MAX_METRIC_VALUES} different values: leave `each` out")
        # New values move the places of earlier ones.
        self.metrics[:] = np.searchsorted(values, self.metric_values)[self.metrics] if len(self.metric_values) else 0
        self.metrics[where] = np.searchsorted(values, found)
        return ExampleScores(**{**vars(self), "metric_values": values})

    def means(self, places: np.ndarray, masks: np.ndarray | slice = slice(None)) -> Scores:
        """Return (n_masks,) float32 means over some of the examples; with a broken one, loss inf and metric 0."""
        losses = self.losses[places][:, masks].mean(axis=0, dtype=np.float64)
        metrics = self.metric_values[self.metrics[places][:, masks]].mean(axis=0, dtype=np.float64)
        metrics[~np.isfinite(losses)] = 0.0
        return Scores(losses.astype(np.float32), metrics.astype(np.float32), np.full(len(losses), np.nan, np.float32))

    def each(self, places: np.ndarray, masks: np.ndarray) -> Scores:
        """Return (n_masks, n_places) float64 losses and metrics of some masks, by row, on some of the examples."""
        losses = self.losses[places][:, masks].T.astype(np.float64)
        metrics = self.metric_values[self.metrics[places][:, masks]].T.astype(np.float64)
        return Scores(losses, metrics)

    def group_sizes(self, count: int) -> np.ndarray:
        """Return the number of examples in each of `count` groups: (count,) int64."""
        return np.bincount(self.groups, minlength=count)

    def arrays(self, split: str) -> dict[str, np.ndarray]:
        """Return the arrays by their names in a file."""
        return {f"{split}_example_{name}": values for name, values in vars(self).items()}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Any], split: str) -> ExampleScores:
        """Read what `arrays` returned."""
        return cls(**{each.name: arrays[f"{split}_example_{each.name}"] for each in fields(cls)})

    def check(self, split: str, masks: int, count: int, groups: int) -> None:
        """Raise for arrays that do not fit together, or hold impossible values."""
        expected: dict[str, tuple[Any, ...]] = {
            "losses": ("f", (count, masks), 0, np.inf),
            "metric_values": ("f", (None,), 0, 1),
            "metrics": ("iu", (count, masks), 0, len(self.metric_values) - 1),
            "groups": ("iu", (count,), 0, groups - 1),
            "images": ("iu", (count,)),
            "keys": ("U", (count,)),
        }
        for name, limits in expected.items():
            check_array(f"{split}_example_{name}", getattr(self, name), *limits)
