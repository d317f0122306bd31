"""ShortGPT's rule: skip the layers that change least what passes through them."""

from __future__ import annotations

import numpy as np
from das_gym.agents.ask_tell.blocks import OfBlocks

from das_gym.problem.budget import Floats, Masks


class BlockInfluence(OfBlocks):
    """The layers of least block influence, 1 - E cos(h_in, h_out) over tokens (ShortGPT, arXiv 2403.03853): one mask.

    METER's layers are measured within their own streams, and ranked together. `OneShot` ranks by any statistic; by
    `block_influence_tokens` it is this.
    """

    @property
    def preferences(self) -> Floats:  # type: ignore[override]
        """(n_layers,) float64: less influence is rather skipped."""
        return np.array([-self.own(layer) for layer in range(self.n_layers)])

    def best(self) -> Masks:
        """The mask."""
        return self.space.top(self.preferences)
