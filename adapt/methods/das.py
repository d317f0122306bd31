"""Dynamic Architecture Skipping (arXiv 2309.01479): some layers are gone, adapters in their place and beside the others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from das_gym.adapt.methods.base import Method
from torch import nn

from das_gym.models.adapters import Adapter
from das_gym.models.base import VLP


@dataclass(frozen=True)
class DAS(Method):
    """Skipped layers are removed, a skip adapter trains in the place of each, parallel adapters train in the others.

    Widths are those that the model was loaded with.

    Attributes:
        mask: 0 or 1 a layer, 1 = skipped; None skips none.
    """

    title: ClassVar[str] = "DAS"

    mask: tuple[int, ...] | None = None

    def insert(self, vlp: VLP) -> list[nn.Parameter]:
        """Nothing is taken out and nothing put in, layers are removed; every adapter that is left trains.

        Raises:
            ValueError: a mask of another width, or a model without adapters.
        """
        if not any(isinstance(module, Adapter) for module in vlp.modules()):
            raise ValueError(
                f"DAS: this {type(vlp).__name__} has no adapters{'; ' * bool(vlp.untrainable)}{vlp.untrainable}"
            )
        vlp.prune(np.zeros(len(vlp.layers), bool) if self.mask is None else np.array(self.mask, bool))
        return [p for module in vlp.modules() if isinstance(module, Adapter) for p in module.parameters()]
