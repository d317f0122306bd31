"""Full tuning: every parameter trains, those of the encoders too."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from das_gym.adapt.methods.base import Method
from torch import nn

from das_gym.models.base import VLP


@dataclass(frozen=True)
class Full(Method):
    """All parameters train. Encoder outputs change with every step, so that they cannot be kept."""

    title: ClassVar[str] = "full tuning"

    def insert(self, vlp: VLP) -> list[nn.Parameter]:
        """Nothing is put in; all trains."""
        vlp.remove_adapters()
        return [p for p in vlp.parameters() if p.is_floating_point()]
