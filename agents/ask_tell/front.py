"""One search for all budgets: the process of `bayes`, asked at each level of savings in turn.

1. The first masks are the two ends, nothing skipped and everything that saves anything, and ten random ones.
2. A Gaussian process (`das_gym.agents.ask_tell.gaussian_process`) explains the logarithms of the losses, whatever the masks
   save: what one budget teaches helps all others.
3. A mask is worth its expected improvement over the best scored mask that saves at least as much. The range of savings is
   divided into eight levels, and the best mask of each level is asked for in turn.
4. Every other turn looks only one step around the front: one layer more, one less, or one swapped for another.
5. With up to `MAX_LISTED_LAYERS` layers, all masks are candidates. With more, candidates are random masks, neighbours of the
   front, and masks found by climbing from both.
"""

from functools import partial
from typing import ClassVar

import numpy as np
from das_gym.agents.ask_tell.base import Agent, Seed
from das_gym.agents.ask_tell.gaussian_process import START_INDICES, MaskProcess, Posterior, expected_improvement, fit_step

from das_gym.problem.budget import Floats, Masks
from das_gym.problem.mask_space import MaskSpace, every_mask, flipped, front_rows
from das_gym.problem.rewards import MAX_LOSS

STARTUP_MASKS = 12
"""Number of masks, the ends among them, that are scored before the process chooses masks."""

LEVELS = 8
MAX_LISTED_LAYERS = 12
"""Up to this many layers, all masks are candidates."""

CANDIDATES = 400
"""Variances are computed for at most this many candidates per level."""

_POOL_DRAWS = 500
_CLIMBS = 3


class FrontSearch(Agent):
    """Agent that asks for masks of all budgets (see the module). Rewards are `neg_loss`: minus the loss in nats.

    Args:
        space: A space with a budget by cost, else ValueError. The front is of this cost, whatever share is to be saved.
    """

    free_budget: ClassVar[bool] = True

    def __init__(self, space: MaskSpace, seed: Seed = None) -> None:
        super().__init__(space, seed)
        if space.budget.cost is None:
            raise ValueError(
                "`space` has no cost: a front needs a budget by cost, such as Budget(n_layers, saved=0.0, cost=...)"
            )
        self.saved = space.budget.cost.saved
        self.indices = list(START_INDICES)
        self._level = 0
        self._turns = 0
        singles = self.saved(np.eye(self.n_layers, dtype=bool))
        nothing = np.zeros((1, self.n_layers), dtype=bool)
        self.ends = np.concatenate((nothing, [singles > self.saved(nothing)[0]]))
        low, high = np.sort(self.saved(self.ends)).tolist()
        self._edges = np.linspace(low, high, LEVELS + 1)[1:-1]

    def ask(self, n: int) -> Masks:
        """Return (m, n_layers) masks to score next, distinct and new; m < n only if no more exist."""
        if len(self.rewards) < min(STARTUP_MASKS, 2**self.n_layers):
            return self.random_masks(min(n, STARTUP_MASKS - len(self.rewards)))
        masks = self.scored_masks()
        losses = -np.array(list(self.rewards.values()))
        losses[losses >= MAX_LOSS] = np.inf  # `neg_loss` bounds losses that are not finite
        values = log_goodness(losses)
        process, self.indices = fit_step(partial(MaskProcess, masks, values), self.indices)
        saved = self.saved(masks)
        rows = front_rows(saved, losses)
        near = self._new(neighbours(masks[rows]))
        local = self._turns % 2 == 1 and len(near) >= n
        candidates = near if local else self._candidates(process, masks[rows], near)
        self._turns += 1
        if not len(candidates):
            return candidates
        # the best value among scored masks that save at least as much; beyond the front the worst value
        best = np.append(values[rows], values.min())
        needed = best[np.searchsorted(saved[rows], self.saved(candidates), side="left")]
        return self._promising(n, process, candidates, needed)

    def random_masks(self, n: int) -> Masks:
        """Return (m, n_layers) new masks: the ends first, then random masks with a random number of layers."""
        found = {end.tobytes(): end for end in self.ends if end.tobytes() not in self.rewards}
        while len(found) < n and len(found) + len(self.rewards) < 2**self.n_layers:
            mask = self._draw()
            if mask.tobytes() not in self.rewards:
                found.setdefault(mask.tobytes(), mask)
        return np.array(list(found.values())[:n], dtype=bool)

    def _draw(self) -> Masks:
        count = int(self.rng.integers(0, self.n_layers, endpoint=True))
        return np.isin(np.arange(self.n_layers), self.rng.permutation(self.n_layers)[:count])

    def _new(self, masks: Masks) -> Masks:
        """Return the masks that were not scored, each once."""
        masks = distinct(masks)
        return masks[[mask.tobytes() not in self.rewards for mask in masks]]

    def _candidates(self, process: MaskProcess, front: Masks, near: Masks) -> Masks:
        if self.n_layers <= MAX_LISTED_LAYERS:
            return self._new(every_mask(self.n_layers))
        pool = np.concatenate((near, front, [self._draw() for _ in range(_POOL_DRAWS)]))
        for _ in range(_CLIMBS):
            expected = front_rows(self.saved(pool), -process.mean(pool))
            pool = distinct(np.concatenate((pool, neighbours(pool[expected]))))
        return self._new(pool)

    def _promising(self, n: int, process: MaskProcess, candidates: Masks, needed: Floats) -> Masks:
        """Choose candidates level by level, each as if the previous one had been observed at its mean."""
        levels = np.searchsorted(self._edges, self.saved(candidates), side="right")
        order = np.argsort(needed - process.mean(candidates), kind="stable")
        rows = np.sort(np.concatenate([order[levels[order] == level][:CANDIDATES] for level in range(LEVELS)]))
        posterior = process.posterior(candidates[rows])
        levels = levels[rows]
        needed = needed[rows]
        chosen: list[int] = []
        while len(chosen) < min(n, len(rows)):
            chosen.append(self._next(posterior, levels, needed, chosen))
            posterior.observe(chosen[-1])
        return posterior.masks[chosen]

    def _next(self, posterior: Posterior, levels: np.ndarray, needed: Floats, chosen: list[int]) -> int:
        """Return the best candidate of the next level that has one."""
        gain = expected_improvement(posterior.mean - needed, posterior.variance, 0.0)
        gain[chosen] = -1.0
        for _ in range(LEVELS):
            here = np.flatnonzero((levels == self._level) & (gain >= 0))
            self._level = (self._level + 1) % LEVELS
            if len(here):
                return int(here[gain[here].argmax()])
        raise RuntimeError("no candidate is left")


def log_goodness(losses: Floats) -> Floats:
    """Return the standardized negative logarithms of (m,) losses: larger is better.

    Losses grow by factors when layers are removed, and a front spans all of them. Losses that are not finite count as the
    worst finite one.
    """
    finite = np.isfinite(losses)
    if not finite.any():
        return np.zeros(len(losses))
    known = np.where(finite, losses, losses[finite].max())
    above = known - min(float(known.min()), 0.0)  # the loss of a custom task may be negative
    logs = -np.log(above + 1e-3 * float(np.median(above)) + 1e-12)
    return (logs - logs.mean()) / max(float(logs.std()), 1e-9)


def distinct(masks: Masks) -> Masks:
    """Return each of (m, n_layers) masks once, in the order of their bits; much faster than np.unique by rows."""
    packed = np.ascontiguousarray(np.packbits(masks, axis=1))
    keys = packed.view(np.dtype((np.void, packed.shape[1]))).ravel()
    return masks[np.unique(keys, return_index=True)[1]]


def neighbours(masks: Masks) -> Masks:
    """Return (n, n_layers): all masks with one layer more, less or swapped than one of (m, n_layers) `masks`, each once."""
    one, other = np.triu_indices(masks.shape[1])
    found = []
    for mask in masks:
        moves = (one == other) | (mask[one] != mask[other])
        found.append(flipped(mask, np.stack((one[moves], other[moves]), axis=1)))
    return distinct(np.concatenate(found))
