"""Bottleneck adapters: sequential (Houlsby et al., arXiv 1902.00751), and scaled parallel (He et al., arXiv 2110.04366)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from das_gym.adapt.methods.base import Method, all_sites, check_widths
from das_gym.adapt.training import check_ranges
from torch import nn

from das_gym.models.adapters import Adapter, SequentialAdapter, parallel_adapters
from das_gym.models.base import VLP


@dataclass(frozen=True)
class AdapterTuning(Method):
    """Train an adapter after every sub-layer of the skippable layers: it reads the sub-layer's output and adds to it.

    With a bottleneck of 96 METER-base has 5.34 M parameters and 1.64 G MACs of it, as published (`python -m adapt paper`).

    Attributes:
        bottleneck: Width inside, at least 1. None is the width of the parallel adapters that the model was loaded with, or
            1/8 of the hidden size.
    """

    title: ClassVar[str] = "adapter"
    remaining: ClassVar[str] = "adapters after its sub-layers"

    bottleneck: int | None = None

    def __post_init__(self) -> None:
        check_widths(self, "bottleneck")

    def insert(self, vlp: VLP) -> list[nn.Parameter]:
        """Insert a `SequentialAdapter` around the last linear layer of each sub-layer."""
        bottleneck = self.bottleneck or das_bottleneck(vlp)
        vlp.remove_adapters()
        trained: list[nn.Parameter] = []
        for site in all_sites(vlp):
            layer = site.last
            adapter = Adapter(site.width, bottleneck or max(1, site.width // 8), norm=False, init="zero")
            adapter.to(layer.weight.device)
            site.owner.set_submodule(site.out, SequentialAdapter(layer, adapter))
            trained += adapter.parameters()
        return trained


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


def das_bottleneck(vlp: VLP) -> int | None:
    """Return the width of a model's parallel adapters; None if it has none."""
    for index in range(len(vlp.layers)):
        layer = vlp.skippable(index).layer
        for adapter in parallel_adapters(layer) if layer is not None else ():
            return adapter.down.out_features
    return None
