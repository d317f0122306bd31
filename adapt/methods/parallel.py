"""Scaled parallel adapters (He et al., arXiv 2110.04366)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from das_gym.adapt.methods.base import Method, all_sites, check_widths
from das_gym.adapt.training import check_ranges
from torch import nn

from das_gym.models.adapters import Adapter
from das_gym.models.base import VLP


@dataclass(frozen=True)
class ScaledParallel(Method):
    """Train an adapter parallel to the MLP of every skippable layer; its output is scaled and added.

    Attributes:
        bottleneck: Width inside, at least 1. None is a quarter of the hidden size.
        scale: Factor of the output, above 0.
    """

    title: ClassVar[str] = "scaled parallel adapter"
    remaining: ClassVar[str] = "adapters parallel to its MLPs"

    bottleneck: int | None = None
    scale: float = 4.0

    def __post_init__(self) -> None:
        check_widths(self, "bottleneck")
        check_ranges(self, scale=(1e-6, 1e6))

    def insert(self, vlp: VLP) -> list[nn.Parameter]:
        """Insert an `Adapter` parallel to each MLP."""
        vlp.remove_adapters()
        trained: list[nn.Parameter] = []
        for site in all_sites(vlp, "mlp"):
            width = self.bottleneck or max(1, site.width // 4)
            adapter = Adapter(site.width, width, norm=False, scale=self.scale, init="zero")
            site.put_beside(adapter.to(site.last.weight.device))
            trained += adapter.parameters()
        return trained
