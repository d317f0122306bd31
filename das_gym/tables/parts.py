"""What a table holds of one split beyond means over all examples: arrays with a prefix of their own in its file."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Self

import numpy as np

from das_gym.engine.scores import Scores

LARGEST = float(np.finfo(np.float64).max)
WORDS = {"f": "real numbers", "iu": "whole numbers", "U": "texts"}


@dataclass(frozen=True)
class Schema:
    """What an array must be.

    Attributes:
        kinds: The kinds of its dtype, as numpy names them: `f`, `iu` or `U`.
        shape: Its shape; None allows any number in its place.
        low, high: Bounds of its numbers.
        may_lack: Whether NaN stands for what was not measured.
    """

    kinds: str
    shape: tuple[int | None, ...]
    low: float = -LARGEST
    high: float = LARGEST
    may_lack: bool = False

    def check(self, name: str, array: Any) -> None:
        """Refuse another array.

        Raises:
            ValueError: names it.
        """
        shape = tuple(size if wanted is not None else None for size, wanted in zip(array.shape, self.shape, strict=False))
        if array.ndim != len(self.shape) or shape != self.shape:
            raise ValueError(f"{name} has shape {array.shape}; this table needs {self.shape}")
        if array.dtype.kind not in self.kinds:
            raise ValueError(f"{name} is of type {array.dtype}; a table holds {WORDS[self.kinds]}")
        if self.kinds == "U":
            return
        wrong = (array < np.float64(self.low)) | (array > np.float64(self.high))
        if not self.may_lack:
            wrong |= np.isnan(array)
        if wrong.any():
            raise ValueError(f"{name} holds {array[wrong][0]}, which nothing can have measured")


class SplitPart(ABC):
    """Arrays of one split; a subclass is a dataclass of them.

    Attributes:
        kind: What their names in a file have in common: `{split}_{kind}_{name}`.
    """

    kind: ClassVar[str]

    def arrays(self, split: str) -> dict[str, np.ndarray]:
        """As a file holds them."""
        return {f"{split}_{self.kind}_{name}": values for name, values in vars(self).items()}

    @classmethod
    def of(cls, arrays: Mapping[str, Any], split: str) -> Self:
        """What `arrays` gave."""
        return cls(**{each.name: arrays[f"{split}_{cls.kind}_{each.name}"] for each in fields(cls)})  # type: ignore[arg-type]

    @abstractmethod
    def group_sizes(self, count: int) -> np.ndarray:
        """(count,) int64: how many examples are in each of so many groups."""

    @abstractmethod
    def group_means(self, group: int) -> Scores:
        """(n_masks,) float32 means over a group's examples, without divergences."""

    @abstractmethod
    def schema(self, masks: int, count: int, groups: int) -> dict[str, Schema]:
        """What the arrays of a split must be.

        Args:
            masks: How many the table has.
            count: How many examples.
            groups: How many groups.
        """

    def check(self, split: str, masks: int, count: int, groups: int) -> None:
        """Refuse arrays that do not fit together, or hold what nothing can have measured.

        Raises:
            ValueError: names the first.
        """
        for name, wanted in self.schema(masks, count, groups).items():
            wanted.check(f"{split}_{self.kind}_{name}", getattr(self, name))
        if (found := self.group_sizes(groups).sum()) != count:
            raise ValueError(f"{split}_group_sizes add up to {found} examples; this table has {count}")
