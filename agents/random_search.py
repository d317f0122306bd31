"""The baseline to beat: random masks, each once, and of these the best."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from agents.base import Agent, Floats, Masks, top_mask


class RandomSearch(Agent):
    """Asks for random masks that skip `skip_num` layers, none of them twice; the answer is the best one it was told.

    Args:
        n_layers: Number of skippable layers, at least 1.
        skip_num: How many layers a mask skips, 0..n_layers.
        seed: Seed, or the generator to draw from.

    Raises:
        ValueError: a number outside its range.
    """

    def __init__(self, n_layers: int, skip_num: int, seed: int | np.random.Generator | None = None) -> None:
        super().__init__(n_layers, skip_num, seed)
        self._asked: dict[bytes, Masks] = {}
        self._best: tuple[Masks, float] | None = None

    def skip_probabilities(self) -> Floats:
        """(n_layers,) skip_num / n_layers: every layer is as likely as any other."""
        return np.full(self.n_layers, self.skip_num / self.n_layers)

    def ask(self, n: int) -> Masks:
        """(m, n_layers) masks that were not asked for before, m = n while so many are left."""
        already = len(self._asked)
        wanted = min(already + n, math.comb(self.n_layers, self.skip_num))
        while len(self._asked) < wanted:
            mask = top_mask(self.rng.random(self.n_layers), self.skip_num)
            self._asked.setdefault(mask.tobytes(), mask)
        return np.array(list(self._asked.values())[already:], dtype=bool).reshape(wanted - already, self.n_layers)

    def tell(self, masks: Masks, rewards: Floats) -> None:
        """Remember the best mask; of equal ones the first told."""
        for mask, reward in zip(*self._check_told(masks, rewards), strict=True):
            if self._best is None or reward > self._best[1]:
                self._best = (mask.copy(), float(reward))

    def best(self) -> Masks:
        """The best mask told so far.

        Raises:
            ValueError: nothing was told yet.
        """
        if self._best is None:
            raise ValueError("no mask was scored yet; call tell(masks, rewards) before best()")
        return self._best[0].copy()

    def state_dict(self) -> dict[str, Any]:
        """As `Agent.state_dict`, with the masks asked for and the best one told."""
        best = None if self._best is None else {"mask": self._best[0].astype(int).tolist(), "reward": self._best[1]}
        return {**super().state_dict(), "asked": [mask.astype(int).tolist() for mask in self._asked.values()], "best": best}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """As `Agent.load_state_dict`."""
        super().load_state_dict(state)
        asked = [np.array(mask, dtype=bool) for mask in state["asked"]]
        self._asked = {mask.tobytes(): mask for mask in asked}
        best = state["best"]
        self._best = None if best is None else (np.array(best["mask"], dtype=bool), float(best["reward"]))
