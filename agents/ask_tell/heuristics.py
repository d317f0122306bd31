"""Pruning heuristics: rules that choose one mask from measurements of the full model, without a search."""

from typing import ClassVar

import numpy as np
from das_gym.agents.ask_tell.base import Agent, Seed, Statistics

from das_gym.names import check_names
from das_gym.problem.budget import Floats, Masks
from das_gym.problem.mask_space import MaskSpace


class Heuristic(Agent):
    """Base class of agents that propose one mask, `best()`, and are then done."""

    draws: ClassVar[bool] = False

    def ask(self, n: int) -> Masks:
        """Return the heuristic's only mask, (1, n_layers); after it was scored, no mask, (0, n_layers)."""
        return np.zeros((0, self.n_layers), dtype=bool) if self.rewards else self.best()[None]


class Uniform(Heuristic):
    """Layers spread evenly over the model: every n/k-th layer in mask order, starting half a step in.

    With a budget by cost, k is the smallest number of layers that satisfies the budget when spread this way.
    """

    def best(self) -> Masks:
        masks = np.zeros((self.n_layers + 1, self.n_layers), dtype=bool)
        for count in range(1, self.n_layers + 1):
            masks[count, ((np.arange(count) + 0.5) * self.n_layers / count).astype(int)] = True
        return masks[self.space.contains(masks).argmax()]  # skipping everything satisfies any budget by cost


class BlockInfluence(Heuristic):
    """The layers with the least block influence, 1 - E cos(h_in, h_out) over tokens: ShortGPT (arXiv 2403.03853).

    METER's layers are measured within their own streams, and ranked together. Another `statistic` gives the pruning papers'
    one-shot ranking by that statistic; `leave_one_out` has the model score n_layers + 1 masks, which count as evaluations.

    Args:
        statistics: Layer statistics.
        statistic: The statistic to rank by; the lowest values are skipped.
    """

    preferences: Floats

    def __init__(
        self,
        space: MaskSpace,
        seed: Seed = None,
        statistics: Statistics | None = None,
        statistic: str = "block_influence_tokens",
    ) -> None:
        super().__init__(space, seed)
        known = statistics or {}
        if statistic not in known:  # a search measures more statistics than `known` lists, when they are looked up
            check_names([statistic], known, "statistic")
        self.statistics_read = (statistic,)
        self.preferences = -np.asarray(known[statistic], dtype=np.float64)

    def best(self) -> Masks:
        return self.space.top(self.preferences)
