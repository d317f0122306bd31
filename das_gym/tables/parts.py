"""Arrays of one split of a table beyond means over all examples; each kind has a separate prefix in the file."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Self

import numpy as np

from das_gym.engine.scores import Scores

LARGEST = float(np.finfo(np.float64).max)


def check_array(
    name: str,
    array: Any,
    kinds: str,
    shape: tuple[int | None, ...],
    low: float = -LARGEST,
    high: float = LARGEST,
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


class SplitPart(ABC):
    """Arrays of one split; a subclass is a dataclass of them.

    Attributes:
        kind: What their names in a file have in common: `{split}_{kind}_{name}`.
    """

    kind: ClassVar[str]

    def arrays(self, split: str) -> dict[str, np.ndarray]:
        """Return the arrays by their names in a file."""
        return {f"{split}_{self.kind}_{name}": values for name, values in vars(self).items()}

    @classmethod
    def of(cls, arrays: Mapping[str, Any], split: str) -> Self:
        """Read what `arrays` returned."""
        return cls(**{each.name: arrays[f"{split}_{cls.kind}_{each.name}"] for each in fields(cls)})  # type: ignore[arg-type]

    @abstractmethod
    def group_sizes(self, count: int) -> np.ndarray:
        """Return the number of examples in each of `count` groups: (count,) int64."""

    @abstractmethod
    def group_means(self, group: int) -> Scores:
        """Return (n_masks,) float32 means over a group's examples, without divergences."""

    @abstractmethod
    def expected(self, masks: int, count: int, groups: int) -> dict[str, tuple[Any, ...]]:
        """Return what `check_array` expects of each array of a split, by name."""

    def check(self, split: str, masks: int, count: int, groups: int) -> None:
        """Raise for arrays that do not fit together, or hold impossible values."""
        for name, expected in self.expected(masks, count, groups).items():
            check_array(f"{split}_{self.kind}_{name}", getattr(self, name), *expected)
        if (found := self.group_sizes(groups).sum()) != count:
            raise ValueError(f"{split}_group_sizes add up to {found} examples; this table has {count}")


@dataclass(frozen=True, eq=False)
class GroupScores(SplitPart):
    """What each group of examples, such as a type of questions, scores in the mean: of tables without single examples.

    Attributes:
        losses: (n_groups, n_masks) float32 means in nats; inf where a loss was not a number.
        metrics: (n_groups, n_masks) float32 means.
        sizes: (n_groups,) int64, how many examples are in each; one without any has losses and metrics of 0.
    """

    kind: ClassVar[str] = "group"

    losses: np.ndarray
    metrics: np.ndarray
    sizes: np.ndarray

    @classmethod
    def from_sums(cls, sums: np.ndarray, sizes: np.ndarray) -> GroupScores:
        """Return the means, from (2, n_groups, n_masks) sums of losses and metrics over examples."""
        losses, metrics = sums / np.maximum(sizes, 1)[:, None]
        broken = ~np.isfinite(losses)
        losses, metrics = np.where(broken, np.inf, losses), np.where(broken, 0.0, metrics)
        return cls(losses.astype(np.float32), metrics.astype(np.float32), sizes)

    def group_sizes(self, count: int) -> np.ndarray:
        """See `SplitPart.group_sizes`."""
        del count
        return self.sizes

    def group_means(self, group: int) -> Scores:
        """See `SplitPart.group_means`."""
        return Scores(self.losses[group], self.metrics[group], np.full_like(self.losses[group], np.nan))

    def expected(self, masks: int, count: int, groups: int) -> dict[str, tuple[Any, ...]]:
        """See `SplitPart.expected`."""
        return {
            "losses": ("f", (groups, masks), 0, np.inf),
            "metrics": ("f", (groups, masks), 0, 1),
            "sizes": ("iu", (groups,), 0, count),
        }
