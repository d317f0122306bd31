"""Remove the layer that is missed least: once for all layers, or again after each removal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from das_gym.agents.ask_tell.base import Agent

from das_gym.config import convert, read_array
from das_gym.problem.budget import Floats, Masks
from das_gym.problem.mask_space import MaskSpace


class Greedy(Agent):
    """Greedy removal with re-evaluation: SLEB (arXiv 2402.09025).

    A round scores the current mask with each further layer skipped. The best of these is the next mask, until the budget is
    satisfied: for 4 of 12 layers 12 + 11 + 10 + 9 = 42 masks. All but those of the last round skip too little, so the
    environment has to accept any mask (`free_budget`), and each counts as an evaluation. If the search ends early, the
    answer adds the layers whose removal scored best so far.

    Args:
        space: The masks to choose from.
        seed: Not used.
    """

    free_budget: ClassVar[bool] = True
    draws: ClassVar[bool] = False
    max_rounds: ClassVar[int | None] = None

    def __init__(self, space: MaskSpace, seed: int | np.random.Generator | None = None) -> None:
        super().__init__(space, seed)
        self.current = np.zeros(self.n_layers, dtype=bool)
        self.rounds = 0
        self._scores = np.full(self.n_layers, -np.inf)  # reward of the current mask with each layer skipped in addition

    @property
    def done(self) -> bool:
        """Whether its answer is final."""
        return bool(self.space.contains(self.current[None])[0]) or self.rounds in (self.max_rounds, self.n_layers)

    def ask(self, n: int) -> Masks:
        """Return the masks of this round that were not scored yet, in layer order; none when it is done."""
        return self._unscored()[: 0 if self.done else n]

    def tell(self, masks: Masks, rewards: Floats) -> None:
        """Remember the rewards. After the last mask of a round, skip its best layer."""
        super().tell(masks, rewards)
        if self.done:
            return
        for layer, mask in self._candidates().items():
            self._scores[layer] = self.rewards.get(mask.tobytes(), self._scores[layer])
        if len(self._unscored()) == 0:
            self.rounds += 1
            self.current[int(np.where(self.current, -np.inf, self._scores).argmax())] = True

    def best(self) -> Masks:
        """Return the best mask, or what the layers scored best so far make of the current mask."""
        if self.space.contains(self.current[None])[0] and self.rewards:
            return super().best()
        return self.space.top(np.where(self.current, np.inf, self._scores))

    def state_dict(self) -> dict[str, Any]:
        """Return `Agent.state_dict` with the current mask and round."""
        scores = [float(score) if np.isfinite(score) else None for score in self._scores]
        current = np.flatnonzero(self.current).tolist()
        return {**super().state_dict(), "current": current, "rounds": self.rounds, "scores": scores}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue exactly where `state_dict` was called."""
        super().load_state_dict(state)
        self.current = np.isin(np.arange(self.n_layers), convert("current", state["current"], list[int]))
        self.rounds = convert("rounds", state["rounds"], int)
        scores = convert("scores", state["scores"], list[float | None])
        known = read_array("scores", [0.0 if score is None else score for score in scores], (self.n_layers,))
        self._scores = np.where([score is None for score in scores], -np.inf, known)

    def _candidates(self) -> dict[int, Masks]:
        """Return the masks of this round by the layer that each skips in addition."""
        layers = np.flatnonzero(~self.current).tolist()
        return {layer: self.current | (np.arange(self.n_layers) == layer) for layer in layers}

    def _unscored(self) -> Masks:
        masks = [mask for mask in self._candidates().values() if mask.tobytes() not in self.rewards]
        return np.array(masks, dtype=bool).reshape(-1, self.n_layers)


class LeaveOneOut(Greedy):
    """The layers whose removal alone scores best: n_layers masks.

    Args:
        space: The masks to choose from.
        seed: Not used.
    """

    max_rounds: ClassVar[int | None] = 1

    def best(self) -> Masks:
        """Return the layers whose removal alone scored best."""
        return self.space.top(self._scores)
