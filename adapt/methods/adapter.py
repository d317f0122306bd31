"""Bottleneck adapters: sequential (Houlsby et al., arXiv 1902.00751), scaled parallel (He et al., arXiv 2110.04366), DAS."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
from das_gym.adapt.methods.base import Method, PrunedModel, Width, all_sites
from torch import nn

from das_gym.commands.settings import Range
from das_gym.models.adapters import Adapter, SequentialAdapter, parallel_adapters
from das_gym.models.base import VLP


@dataclass(frozen=True)
class AdapterTuning(Method):
    """Train an adapter after every sub-layer of the skippable layers: it reads the sub-layer's output and adds to it.

    With a bottleneck of 96 METER-base has 5.34 M parameters and 1.64 G MACs of it, as published (`python -m adapt paper`).

    Attributes:
        bottleneck: Width inside. None is the width of the parallel adapters that the model was loaded with, or
            1/8 of the hidden size.
    """

    title: ClassVar[str] = "adapter"
    remaining: ClassVar[str] = "adapters after its sub-layers"

    bottleneck: Width | None = None

    def insert(self, vlp: VLP) -> list[nn.Parameter]:
        bottleneck = self.bottleneck or _das_bottleneck(vlp)
        vlp.remove_adapters()
        trained: list[nn.Parameter] = []
        for site in all_sites(vlp):
            adapter = Adapter(site.width, bottleneck or max(1, site.width // 8), norm=False, init="zero")
            adapter.to(site.out_layer.weight.device)
            # In place of the linear layer: the code of any layer runs it there.
            site.owner.set_submodule(site.out, SequentialAdapter(site.out_layer, adapter))
            trained += adapter.parameters()
        return trained


@dataclass(frozen=True)
class ScaledParallel(Method):
    """Train an adapter parallel to the MLP of every skippable layer; its output is scaled and added.

    Attributes:
        bottleneck: Width inside. None is a quarter of the hidden size.
        scale: Factor of the output.
    """

    title: ClassVar[str] = "scaled parallel adapter"
    remaining: ClassVar[str] = "adapters parallel to its MLPs"

    bottleneck: Width | None = None
    scale: Annotated[float, Range(1e-6, 1e6)] = 4.0

    def insert(self, vlp: VLP) -> list[nn.Parameter]:
        vlp.remove_adapters()
        trained: list[nn.Parameter] = []
        for site in all_sites(vlp, "mlp"):
            width = self.bottleneck or max(1, site.width // 4)
            adapter = Adapter(site.width, width, norm=False, scale=self.scale, init="zero")
            site.put_beside(adapter.to(site.out_layer.weight.device))
            trained += adapter.parameters()
        return trained


@dataclass(frozen=True)
class DAS(Method):
    """Dynamic Architecture Skipping (arXiv 2309.01479): replace skipped layers by adapters, add parallel ones to the others.

    In fine-tuning the adapters are as wide as those that the model was loaded with. In recovery, parallel adapters have 1/64
    of the hidden size, skip adapters 1/16.

    Attributes:
        mask: One number per layer, 1 = skipped; None skips none. In recovery the layers are deleted already.
    """

    title: ClassVar[str] = "DAS"
    adds_code: ClassVar[bool] = True
    recovery_rate: ClassVar[float] = 3e-3

    mask: tuple[int, ...] | None = None

    def insert(self, vlp: VLP) -> list[nn.Parameter]:
        """Remove layers; return the parameters of all adapters that remain. ValueError for a model without adapters."""
        if not any(isinstance(module, Adapter) for module in vlp.modules()):
            raise ValueError(f"DAS: this {type(vlp).__name__} has no adapters. {vlp.untrainable}".strip())
        vlp.prune(np.zeros(len(vlp.layers), bool) if self.mask is None else np.array(self.mask, bool))
        return [p for module in vlp.modules() if isinstance(module, Adapter) for p in module.parameters()]

    def insert_for_recovery(self, pruned: PrunedModel) -> list[nn.Parameter]:
        return pruned.insert_adapters(max(8, pruned.vlp.feature_size // 64), max(8, pruned.vlp.feature_size // 16))

    def check_recovery(self, vlp: VLP, parts: Mapping[str, nn.Module]) -> None:
        if vlp.untrainable:
            raise ValueError(f"{vlp.untrainable} Or use recover=lora or recover=full.")


def _das_bottleneck(vlp: VLP) -> int | None:
    """Return the width of the parallel adapters that a model was loaded with; None if it has none."""
    for index in range(len(vlp.layers)):
        layer = vlp.skippable_layer(index).layer
        for adapter in parallel_adapters(layer) if layer is not None else ():
            return adapter.down.out_features
    return None
