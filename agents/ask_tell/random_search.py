"""The baseline to beat: random masks, each once, and of these the best."""

from __future__ import annotations

from das_gym.agents.ask_tell.best_seen import BestSeen

from das_gym.problem.budget import Masks


class RandomSearch(BestSeen):
    """Random masks, none of them twice.

    They are drawn by `MaskSpace.sample`; the answer is the best one told.

    Args:
        space: The masks to choose from.
        seed: Seed, or the generator to draw from.
    """

    def ask(self, n: int) -> Masks:
        """(m, n_layers) masks that were not told before, m = n while so many are left."""
        return self.space.distinct(n, lambda: self.space.sample(self.rng), self.rng, self.reported)
