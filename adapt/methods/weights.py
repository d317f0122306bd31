"""Methods that insert nothing: full tuning, the head alone, and BitFit (Ben Zaken et al., arXiv 2106.10199)."""

from dataclasses import dataclass
from typing import ClassVar

from das_gym.adapt.methods.base import Method, PrunedModel
from torch import nn

from das_gym.models.base import VLP


@dataclass(frozen=True)
class Full(Method):
    """Train all parameters. Encoder outputs change with every step, so they cannot be cached."""

    title: ClassVar[str] = "full tuning"
    trains_weights: ClassVar[bool] = True
    recovery_rate: ClassVar[float] = 1e-4

    def insert(self, vlp: VLP) -> list[nn.Parameter]:
        vlp.remove_adapters()
        # Quantised weights are integers, which have no gradient.
        return [p for p in vlp.parameters() if p.is_floating_point()]

    def insert_for_recovery(self, pruned: PrunedModel) -> list[nn.Parameter]:
        # The embeddings and the vision tower stay frozen.
        return [p for part in pruned.parts.values() for p in part.parameters() if p.is_floating_point()]


@dataclass(frozen=True)
class Head(Method):
    """Train the task's head alone (linear probing)."""

    title: ClassVar[str] = "head only"
    poolers: ClassVar[bool] = False

    def insert(self, vlp: VLP) -> list[nn.Parameter]:
        vlp.remove_adapters()
        return []  # the head always trains


@dataclass(frozen=True)
class BitFit(Method):
    """Train every bias in the skippable layers. The encoders before them stay frozen, so their outputs can be cached."""

    title: ClassVar[str] = "BitFit"
    trains_weights: ClassVar[bool] = True

    def insert(self, vlp: VLP) -> list[nn.Parameter]:
        vlp.remove_adapters()
        layers = [vlp.skippable_layer(index).module_for(False) for index in range(len(vlp.layers))]
        biases = [getattr(module, "bias", None) for layer in layers for module in layer.modules()]
        found = [bias for bias in biases if isinstance(bias, nn.Parameter)]
        if not found:
            raise ValueError(f"BitFit: a {type(layers[0]).__name__} has no biases. Choose another method.")
        return found
