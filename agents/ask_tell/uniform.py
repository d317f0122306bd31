"""The baseline that looks at nothing: skipped layers spread evenly over the model."""

from __future__ import annotations

import numpy as np
from das_gym.agents.ask_tell.best_seen import OneMask

from das_gym.problem.budget import Masks


class Uniform(OneMask):
    """Layers spread evenly: one mask.

    Every n/k-th layer in mask order, beginning half a step in. By cost, k is the smallest number of layers that, spread
    so, keep the budget.

    Args:
        space: The masks to choose from.
        seed: Not used: nothing is drawn.
    """

    def best(self) -> Masks:
        """The mask."""
        spreads = np.array([self._spread(count) for count in range(self.n_layers + 1)])
        allowed = np.flatnonzero(self.space.contains(spreads))
        return spreads[allowed[0]] if len(allowed) else self.space.top(np.arange(self.n_layers, 0.0, -1.0))

    def _spread(self, count: int) -> Masks:
        mask = np.zeros(self.n_layers, dtype=bool)
        mask[((np.arange(count) + 0.5) * self.n_layers / max(count, 1)).astype(int)] = True
        return mask
