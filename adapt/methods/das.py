"""Dynamic Architecture Skipping (arXiv 2309.01479): adapters replace skipped layers and run next to those that are kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from das_gym.adapt.methods.base import Method, PrunedModel
from torch import nn

from das_gym.models.adapters import Adapter
from das_gym.models.base import VLP


@dataclass(frozen=True)
class DAS(Method):
    """Replace each skipped layer by a skip adapter; train these and the parallel adapters of the others.

    In fine-tuning the adapters are as wide as those that the model was loaded with, in recovery see `recovery_widths`.

    Attributes:
        mask: One number per layer, 1 = skipped; None skips none. In recovery the layers are deleted already.
    """

    title: ClassVar[str] = "DAS"
    adds_code: ClassVar[bool] = True
    recovery_rate: ClassVar[float] = 3e-3

    mask: tuple[int, ...] | None = None

    def insert(self, vlp: VLP) -> list[nn.Parameter]:
        """Remove layers; return the parameters of all adapters that remain."""
        if not any(isinstance(module, Adapter) for module in vlp.modules()):
            raise ValueError(
                f"DAS: this {type(vlp).__name__} has no adapters{'; ' * bool(vlp.untrainable)}{vlp.untrainable}"
            )
        vlp.prune(np.zeros(len(vlp.layers), bool) if self.mask is None else np.array(self.mask, bool))
        return [p for module in vlp.modules() if isinstance(module, Adapter) for p in module.parameters()]

    def insert_for_recovery(self, pruned: PrunedModel) -> list[nn.Parameter]:
        """Insert adapters, which start without effect."""
        return pruned.insert_adapters(*recovery_widths(pruned.vlp.feature_size))

    def check_recovery(self, vlp: VLP, parts: Mapping[str, nn.Module]) -> None:
        """Check that layers have a known place for adapters."""
        if vlp.untrainable:
            raise ValueError(f"{vlp.untrainable}. Use recover=lora or recover=full.")

    def describe_recovery(self, hidden_size: int) -> str:
        """Return a text about what recovery trains; see `Method.describe_recovery`."""
        parallel, skip = recovery_widths(hidden_size)
        return (
            f"Adapters of DAS (arXiv 2309.01479), and nothing else, {parallel} wide before attention and MLP, {skip} wide "
            "where a layer was deleted"
        )


def recovery_widths(hidden_size: int) -> tuple[int, int]:
    """Return the widths of parallel and skip adapters in recovery, by the hidden size of the decoder."""
    return max(8, hidden_size // 64), max(8, hidden_size // 16)
