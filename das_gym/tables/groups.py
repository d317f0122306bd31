"""What each group of examples, such as a type of questions, scores in the mean: of tables that do not hold every example."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from das_gym.engine.scores import Scores
from das_gym.tables.parts import Schema, SplitPart


@dataclass(frozen=True, eq=False)
class GroupScores(SplitPart):
    """The groups of one split.

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

    def schema(self, masks: int, count: int, groups: int) -> dict[str, Schema]:
        """See `SplitPart.schema`."""
        return {
            "losses": Schema("f", (groups, masks), 0, np.inf),
            "metrics": Schema("f", (groups, masks), 0, 1),
            "sizes": Schema("iu", (groups,), 0, count),
        }
