"""The cross-entropy method: draw from a distribution, move it towards the best draws."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from das_gym.agents.ask_tell.base import check_number
from das_gym.agents.ask_tell.best_seen import BestSeen

from das_gym.config import convert, read_array
from das_gym.problem.budget import Floats, Masks
from das_gym.problem.mask_space import MaskSpace

MIN_PROBABILITY = 0.01


class CrossEntropy(BestSeen):
    """Cross-entropy method over one skip probability a layer.

    Masks are layers drawn without replacement with weights p / (1 - p), none of them twice. After every `population`
    masks, p moves by the share `smoothing` of the way to the mean of the `elite` best masks of all told so far, and
    stays within 0.01..0.99. The answer is the best mask told.

    Args:
        space: The masks to choose from.
        seed: Seed, or the generator to draw from.
        population: Masks between two moves, at least 1.
        elite: Masks to move towards, at least 1.
        smoothing: 0..1, 1 = all the way.

    Raises:
        ValueError: a hyperparameter outside its range.
    """

    def __init__(
        self,
        space: MaskSpace,
        seed: int | np.random.Generator | None = None,
        population: int = 15,
        elite: int = 6,
        smoothing: float = 0.5,
    ) -> None:
        super().__init__(space, seed)
        check_number("population", population, minimum=1, whole=True)
        check_number("elite", elite, minimum=1, whole=True)
        check_number("smoothing", smoothing, minimum=0, maximum=1)
        self.population, self.elite, self.smoothing = population, elite, smoothing
        expected = np.mean([space.sample(np.random.default_rng(i)) for i in range(100)], axis=0)
        self.probabilities = self._bounded(np.full(self.n_layers, expected.mean()))
        self._since_move = 0

    def skip_probabilities(self) -> Floats:
        """(n_layers,) p."""
        return self.probabilities.copy()

    def ask(self, n: int) -> Masks:
        """(m, n_layers) masks that were not told before."""
        odds = np.log(self.probabilities) - np.log1p(-self.probabilities)
        return self.space.distinct(
            n, lambda: self.space.top(odds + self.rng.gumbel(size=self.n_layers)), self.rng, self.reported
        )

    def tell(self, masks: Masks, rewards: Floats) -> None:
        """Remember the rewards; move p if it is time."""
        super().tell(masks, rewards)
        self._since_move += len(masks)
        if self._since_move >= self.population:
            order = np.argsort(-np.array(list(self.reported.values())), kind="stable")
            target = self.reported_masks()[order[: self.elite]].mean(axis=0)
            self.probabilities = self._bounded(self.probabilities + self.smoothing * (target - self.probabilities))
            self._since_move = 0

    def state_dict(self) -> dict[str, Any]:
        """As `BestSeen.state_dict`, with p and the masks told since it moved."""
        return {**super().state_dict(), "probabilities": self.probabilities.tolist(), "since_move": self._since_move}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """As `Agent.load_state_dict`."""
        super().load_state_dict(state)
        self.probabilities = self._bounded(read_array("probabilities", state["probabilities"], (self.n_layers,)))
        self._since_move = convert("since_move", state["since_move"], int)

    @staticmethod
    def _bounded(probabilities: Floats) -> Floats:
        return np.clip(probabilities, MIN_PROBABILITY, 1.0 - MIN_PROBABILITY)
