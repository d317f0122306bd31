"""Head only: the model stays as it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from das_gym.adapt.methods.base import Method
from torch import nn

from das_gym.models.base import VLP


@dataclass(frozen=True)
class Head(Method):
    """The task's head trains, and nothing else unless `poolers` do; the field calls it classifier only."""

    title: ClassVar[str] = "head only"

    poolers: bool = False

    def insert(self, vlp: VLP) -> list[nn.Parameter]:
        """Nothing."""
        vlp.remove_adapters()
        return []
