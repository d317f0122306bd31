"""Baselines: random masks, all masks, and removal of the layer that is missed least, once for all layers or repeated."""

from typing import ClassVar

import numpy as np
from das_gym.agents.ask_tell.base import Agent, Seed

from das_gym.problem.budget import Floats, Masks
from das_gym.problem.mask_space import MaskSpace


class RandomSearch(Agent):
    """Random masks, no mask twice; the baseline to beat."""

    races: ClassVar[bool] = True

    def ask(self, n: int) -> Masks:
        return self.space.distinct(n, lambda: self.space.sample(self.rng), self.rng, self.rewards)


class Exhaustive(Agent):
    """Every mask within the budget, in the order of `MaskSpace.masks`."""

    draws: ClassVar[bool] = False

    def __init__(self, space: MaskSpace, seed: Seed = None) -> None:
        super().__init__(space, seed)
        self._masks = space.masks

    def ask(self, n: int) -> Masks:
        return self._masks[len(self.rewards) : len(self.rewards) + n].copy()


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
        """Return this round's (m, n_layers) masks that were not scored yet, in layer order; m = 0 when it is done."""
        _, _, unscored = self._replay()
        return unscored[:n]

    def best(self) -> Masks:
        """Return the best mask, or the current mask with the layers added that scored best so far."""
        current, scores, _ = self._replay()
        if self.rewards and self.space.contains(current[None])[0]:
            return super().best()
        return self.space.top(np.where(current, np.inf, scores))

    def _replay(self) -> tuple[Masks, Floats, Masks]:
        """Return the current mask, each layer's latest reward of skipping it in addition, and the round's unscored masks."""
        # Stored rewards are the only state, so a resumed search cannot disagree with them.
        current = np.zeros(self.n_layers, dtype=bool)
        scores = np.full(self.n_layers, -np.inf)
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
        _, scores, _ = self._replay()
        return self.space.top(scores)
