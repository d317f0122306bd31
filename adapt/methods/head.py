"""Head only: the model stays as it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from das_gym.adapt.methods.base import Method
from torch import nn

from das_gym.models.base import VLP


@dataclass(frozen=True)
class Head(Method):
    """Train the task's head (linear probing); with `poolers`, also the poolers and token types."""

    title: ClassVar[str] = "head only"

    poolers: bool = False

    def insert(self, vlp: VLP) -> list[nn.Parameter]:
        """Insert nothing; return nothing."""
        vlp.remove_adapters()
        return []
