"""What a downstream task offers to the rest of das_gym."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor, nn


class Example(Protocol):
    """Something to be scored; `key` tells it from every other example of its data set."""

    @property
    def key(self) -> str:
        """Unique in the data set."""
        ...


class Task(ABC):
    """A head on the pooled features, its loss and its metric, and how examples become batches."""

    name: str

    @abstractmethod
    def inputs(self, examples: Sequence[Any]) -> dict[str, Tensor]:
        """The batch that the VLP encodes."""

    @abstractmethod
    def targets(self, examples: Sequence[Any]) -> dict[str, Tensor]:
        """What loss and metric compare logits with."""

    @abstractmethod
    def build_head(self, feature_size: int) -> nn.Module:
        """A new head from (batch, feature_size) pooled features to logits."""

    @abstractmethod
    def losses(self, logits: Tensor, targets: dict[str, Tensor]) -> Tensor:
        """(batch,) loss of each example, in nats."""

    @abstractmethod
    def metrics(self, logits: Tensor, targets: dict[str, Tensor]) -> Tensor:
        """(batch,) metric of each example, 0..1, larger is better."""
