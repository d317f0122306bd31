"""Leave one out, once or again after every removal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from das_gym.agents.ask_tell.best_seen import BestSeen

from das_gym.config import convert, read_array
from das_gym.problem.budget import Floats, Masks
from das_gym.problem.mask_space import MaskSpace


class Greedy(BestSeen):
    """Greedy removal, re-evaluated: SLEB (arXiv 2402.09025), whose name it has too.

    SLEB scores each block by the loss without it and without those already gone, and removes the least missed one, again and
    again: its third metric, which is this; its second, without the re-evaluation, is `LeaveOneOut`. A round scores the
    current mask with each further layer skipped, and the best of these is the next mask, until the budget is kept: for 4 of
    12 layers 12 + 11 + 10 + 9 = 42 masks. All but those of the last round skip too little, so the environment must take any
    mask (`free_budget`); each counts as an evaluation. Asked for its answer before, it adds the layers whose removal was
    scored best.

    Args:
        space: The masks to choose from.
        seed: Not used: nothing is drawn.
    """

    free_budget: ClassVar[bool] = True
    draws: ClassVar[bool] = False
    rounds: ClassVar[int | None] = None

    def __init__(self, space: MaskSpace, seed: int | np.random.Generator | None = None) -> None:
        super().__init__(space, seed)
        self.current = np.zeros(self.n_layers, dtype=bool)
        self.rounds_done = 0
        self._scores = np.full(self.n_layers, -np.inf)

    @property
    def done(self) -> bool:
        """Whether its answer will change no more."""
        return bool(self.space.contains(self.current[None])[0]) or self.rounds_done in (self.rounds, self.n_layers)

    def ask(self, n: int) -> Masks:
        """(m, n_layers) masks of this round that were not told yet, in layer order; none when it is done."""
        return np.zeros((0, self.n_layers), dtype=bool) if self.done else self._missing()[:n]

    def tell(self, masks: Masks, rewards: Floats) -> None:
        """Remember the rewards; after the last mask of a round, take its best layer."""
        super().tell(masks, rewards)
        if self.done:
            return
        for layer in np.flatnonzero(~self.current).tolist():
            reward = self.reported.get(self._with(layer).tobytes())
            self._scores[layer] = self._scores[layer] if reward is None else reward
        if len(self._missing()) == 0:
            self.rounds_done += 1
            self.current = self._with(int(np.where(self.current, -np.inf, self._scores).argmax()))

    def best(self) -> Masks:
        """The best allowed mask told, or the one that the layers scored best so far would make of the current one."""
        if self.space.contains(self.current[None])[0] and self.reported:
            return super().best()
        return self.space.top(np.where(self.current, np.inf, self._scores))

    def state_dict(self) -> dict[str, Any]:
        """As `BestSeen.state_dict`, with where the removal is."""
        scores = [float(score) if np.isfinite(score) else None for score in self._scores]
        current = np.flatnonzero(self.current).tolist()
        return {**super().state_dict(), "current": current, "rounds_done": self.rounds_done, "scores": scores}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """As `Agent.load_state_dict`."""
        super().load_state_dict(state)
        self.current = np.isin(np.arange(self.n_layers), convert("current", state["current"], list[int]))
        self.rounds_done = convert("rounds_done", state["rounds_done"], int)
        scores = convert("scores", state["scores"], list[float | None])
        known = read_array("scores", [0.0 if score is None else score for score in scores], (self.n_layers,))
        self._scores = np.where([score is None for score in scores], -np.inf, known)

    def _with(self, layer: int) -> Masks:
        mask = self.current.copy()
        mask[layer] = True
        return mask

    def _missing(self) -> Masks:
        masks = [self._with(layer) for layer in np.flatnonzero(~self.current).tolist()]
        return np.array([mask for mask in masks if mask.tobytes() not in self.reported], dtype=bool).reshape(
            -1, self.n_layers
        )


class LeaveOneOut(Greedy):
    """The layers whose removal alone was scored best: n_layers masks."""

    rounds: ClassVar[int | None] = 1

    def best(self) -> Masks:
        """The layers whose removal alone was scored best."""
        return self.space.top(self._scores)
