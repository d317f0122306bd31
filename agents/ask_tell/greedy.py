"""Remove the layer that is missed least: once for all layers, or again after each removal."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from das_gym.agents.ask_tell.base import Agent

from das_gym.problem.budget import Floats, Masks


class Greedy(Agent):
    """Greedy removal with re-evaluation: SLEB (arXiv 2402.09025).

    A round scores the current mask with each further layer skipped. The best of these is the next mask, until the budget is
    satisfied: for 4 of 12 layers 12 + 11 + 10 + 9 = 42 masks. All but those of the last round skip too little, so the
    environment has to accept any mask (`free_budget`), and each counts as an evaluation. If the search ends early, the
    answer adds the layers whose removal scored best so far.
    """

    free_budget: ClassVar[bool] = True
    draws: ClassVar[bool] = False
    max_rounds: ClassVar[int | None] = None

    def ask(self, n: int) -> Masks:
        """Return the masks of this round that were not scored yet, in layer order; none when it is done."""
        return self._replay()[2][:n]

    def best(self) -> Masks:
        """Return the best mask, or the current mask with the layers added that scored best so far."""
        current, scores, _ = self._replay()
        if self.rewards and self.space.contains(current[None])[0]:
            return super().best()
        return self.space.top(np.where(current, np.inf, scores))

    def _replay(self) -> tuple[Masks, Floats, Masks]:
        """Replay the rounds from the stored rewards, which are the complete state of the search.

        Returns:
            The current mask; for each layer the latest reward of skipping it in addition; the unscored masks of this round.
        """
        # Stored rewards are the only state, so a resumed search cannot disagree with them.
        current, scores = np.zeros(self.n_layers, dtype=bool), np.full(self.n_layers, -np.inf)
        nothing = np.zeros((0, self.n_layers), dtype=bool)
        rounds = 0
        while rounds not in (self.max_rounds, self.n_layers) and not self.space.contains(current[None])[0]:
            layers = np.flatnonzero(~current)
            candidates = current | np.eye(self.n_layers, dtype=bool)[layers]
            known = np.array([mask.tobytes() in self.rewards for mask in candidates])
            scores[layers[known]] = [self.rewards[mask.tobytes()] for mask in candidates[known]]
            if not known.all():
                return current, scores, candidates[~known]
            current[int(np.where(current, -np.inf, scores).argmax())] = True
            rounds += 1
        return current, scores, nothing


class LeaveOneOut(Greedy):
    """The layers whose removal alone scores best: n_layers masks."""

    max_rounds: ClassVar[int | None] = 1

    def best(self) -> Masks:
        """Return the layers whose removal alone scored best."""
        return self.space.top(self._replay()[1])
