"""ShortGPT's rule: skip the layers that change least what passes through them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from das_gym.agents.ask_tell.best_seen import OneMask
from das_gym.agents.ask_tell.blocks import Blocks, distance

from das_gym.problem.budget import Floats, Masks
from das_gym.problem.mask_space import MaskSpace


class BlockInfluence(OneMask):
    """The layers of least block influence, 1 - E cos(h_in, h_out) over tokens (ShortGPT, arXiv 2403.03853): one mask.

    METER's layers are measured within their own streams, and ranked together. `OneShot` ranks by any statistic; by
    `block_influence_tokens` it is this.

    Args:
        space: The masks to choose from.
        seed: Not used: nothing is drawn.
        statistics: Statistic name to (n_layers,) values; `block_influence_tokens` is read where blocks were not measured.
        blocks: As for `Angular`.

    Raises:
        ValueError: `blocks` of another model.
    """

    preferences: Floats

    def __init__(
        self,
        space: MaskSpace,
        seed: int | np.random.Generator | None = None,
        statistics: Mapping[str, Floats] | None = None,
        blocks: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(space, seed)
        known = Blocks.of(blocks, statistics, self.n_layers)
        self.preferences = np.array([-(distance(known.cosine, layer, 1) or 0.0) for layer in range(self.n_layers)])

    def best(self) -> Masks:
        """The mask."""
        return self.space.top(self.preferences)
