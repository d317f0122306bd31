"""What a table holds of one split beyond means over all examples: arrays with a prefix of their own in its file."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, ClassVar, Self

import numpy as np

from das_gym.engine.scores import Scores


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
    def check(self, split: str, masks: int, count: int, groups: int) -> None:
        """Refuse arrays that do not fit together, or hold what nothing can have measured.

        Args:
            split: Which.
            masks: How many the table has.
            count: How many examples.
            groups: How many groups.

        Raises:
            ValueError: names them.
        """

    def check_shapes(self, split: str, wanted: Mapping[str, tuple[int, ...]]) -> None:
        """Refuse arrays of other shapes than those wanted by name.

        Raises:
            ValueError: names the first.
        """
        for name, shape in wanted.items():
            found = getattr(self, name).shape
            if found != shape:
                raise ValueError(f"{split}_{self.kind}_{name} has shape {found}; this table needs {shape}")
