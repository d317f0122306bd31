"""BitFit: biases train (Ben Zaken et al., arXiv 2106.10199)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from das_gym.adapt.methods.base import Method
from torch import nn

from das_gym.models.base import VLP


@dataclass(frozen=True)
class BitFit(Method):
    """Train every bias in the skippable layers. The encoders before them stay frozen, so their outputs can be cached."""

    title: ClassVar[str] = "BitFit"
    trains_weights: ClassVar[bool] = True

    def insert(self, vlp: VLP) -> list[nn.Parameter]:
        """Insert nothing; return the biases."""
        vlp.remove_adapters()
        layers = [vlp.skippable(index).chosen(False) for index in range(len(vlp.layers))]
        biases = [getattr(module, "bias", None) for layer in layers for module in layer.modules()]
        found = [bias for bias in biases if isinstance(bias, nn.Parameter)]
        if not found:
            raise ValueError(f"BitFit: a {type(layers[0]).__name__} has no biases. Choose another method.")
        return found
