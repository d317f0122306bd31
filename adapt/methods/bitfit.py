"""BitFit: biases train (Ben Zaken et al., arXiv 2106.10199)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from das_gym.adapt.methods.base import Method
from torch import nn

from das_gym.models.base import VLP


@dataclass(frozen=True)
class BitFit(Method):
    """Every bias in the skippable layers trains; the encoders before them stay frozen, so that their outputs can be kept."""

    title: ClassVar[str] = "BitFit"

    def insert(self, vlp: VLP) -> list[nn.Parameter]:
        """Nothing is put in.

        Raises:
            ValueError: the layers have no biases.
        """
        vlp.remove_adapters()
        layers = (vlp.skippable(index).chosen(False) for index in range(len(vlp.layers)))
        biases = [getattr(module, "bias", None) for layer in layers for module in layer.modules()]
        found = [bias for bias in biases if isinstance(bias, nn.Parameter)]
        if not found:
            kind = type(vlp.skippable(0).chosen(False)).__name__
            raise ValueError(f"BitFit: a {kind} has no biases; choose another method")
        return found
