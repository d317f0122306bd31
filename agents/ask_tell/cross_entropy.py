"""The cross-entropy method: draw masks from a distribution, and move it towards the best ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from das_gym.agents.ask_tell.base import Agent, check_number

from das_gym.config import convert, read_array
from das_gym.problem.budget import Floats, Masks
from das_gym.problem.mask_space import MaskSpace

MIN_PROBABILITY = 0.01


class CrossEntropy(Agent):
    """Cross-entropy method with one skip probability per layer.

    Layers are drawn without replacement with weights p / (1 - p), no mask twice. After every `population` masks, p moves by
    the fraction `smoothing` towards the mean of the `elite` best masks so far, and stays within 0.01..0.99.

    Args:
        space: The masks to choose from.
        seed: Seed, or the generator to draw from.
        population: Masks between two updates, at least 1.
        elite: Number of masks to move towards, at least 1.
        smoothing: 0..1, 1 = all the way.
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
        self._since_update = 0

    def skip_probabilities(self) -> Floats:
        """Return p, (n_layers,)."""
        return self.probabilities.copy()

    def ask(self, n: int) -> Masks:
        """Return (m, n_layers) masks that were not scored before."""
        odds = np.log(self.probabilities) - np.log1p(-self.probabilities)
        draw = lambda: self.space.top(odds + self.rng.gumbel(size=self.n_layers))  # noqa: E731
        return self.space.distinct(n, draw, self.rng, self.rewards)

    def tell(self, masks: Masks, rewards: Floats) -> None:
        """Store the rewards. After `population` masks, update the skip probabilities."""
        super().tell(masks, rewards)
        self._since_update += len(masks)
        if self._since_update >= self.population:
            order = np.argsort(-np.array(list(self.rewards.values())), kind="stable")
            target = self.scored_masks()[order[: self.elite]].mean(axis=0)
            self.probabilities = self._bounded(self.probabilities + self.smoothing * (target - self.probabilities))
            self._since_update = 0

    def state_dict(self) -> dict[str, Any]:
        """Return `Agent.state_dict` with p and the number of masks since its last update."""
        return {**super().state_dict(), "probabilities": self.probabilities.tolist(), "since_update": self._since_update}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue exactly where `state_dict` was called."""
        super().load_state_dict(state)
        self.probabilities = self._bounded(read_array("probabilities", state["probabilities"], (self.n_layers,)))
        self._since_update = convert("since_update", state["since_update"], int)

    @staticmethod
    def _bounded(probabilities: Floats) -> Floats:
        return np.clip(probabilities, MIN_PROBABILITY, 1.0 - MIN_PROBABILITY)
