"""One search for all budgets: `bayes`'s model of masks, asked at every level of saving in turn.

1. The first masks are the two ends, nothing skipped and all that saves anything, and ten random ones.
2. A Gaussian process (`das_gym.agents.ask_tell.gaussian_process`) explains the logarithms of the losses told, whatever
   the masks save: what one budget teaches serves all others.
3. A mask is worth what it is expected to take off the loss of the best mask told that saves at least as much. The range of
   savings is cut into eight levels, and each level has its best mask asked for in turn.
4. Every other turn looks only one step around the front: one layer more, one less, or one for another.
5. Few layers are listed whole; of many, candidates are random masks, the neighbours of the front, and what climbs from
   them towards the front that the process expects.

The cost stands behind one function, from masks to shares saved: MACs unless another is given.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
from das_gym.agents.ask_tell.gaussian_process import START, MaskProcess, Posterior, climb, expected_improvement, read_indices

from das_gym.config import convert
from das_gym.problem.budget import Floats, Masks
from das_gym.problem.front import front_rows
from das_gym.problem.mask_space import every_mask

DRAWN = 12
"""So many masks, the ends among them, are told before the process chooses."""

LEVELS = 8
LISTED = 12
"""Up to so many layers, all masks are candidates."""

CANDIDATES = 400
"""Of each level, variances are computed for so many candidates at most."""

_POOL_DRAWS = 500
_CLIMBS = 3

Saved = Callable[[Masks], Floats]


class FrontSearch:
    """Asks for masks of all budgets; the module says which.

    Args:
        n_layers: How many layers can be skipped, at least 1.
        saved: From (m, n_layers) masks to (m,) shares of the cost that they save.
        seed: Seed, or the generator to draw from.
    """

    def __init__(self, n_layers: int, saved: Saved, seed: int | np.random.Generator | None = None) -> None:
        self.n_layers = n_layers
        self.saved = saved
        self.rng = np.random.default_rng(seed)
        self.told: dict[bytes, float] = {}
        self.indices = list(START)
        self._level = 0
        self._turns = 0
        singles = saved(np.eye(n_layers, dtype=bool))
        nothing = np.zeros((1, n_layers), dtype=bool)
        self.ends = np.concatenate((nothing, [singles > saved(nothing)[0]]))
        low, high = np.sort(saved(self.ends)).tolist()
        self._edges = np.linspace(low, high, LEVELS + 1)[1:-1]

    @property
    def masks(self) -> Masks:
        """(m, n_layers) masks told, in order."""
        return np.frombuffer(b"".join(self.told), dtype=bool).reshape(len(self.told), self.n_layers)

    @property
    def losses(self) -> Floats:
        """(m,) their losses, nats."""
        return np.array(list(self.told.values()), dtype=np.float64)

    def front(self) -> Masks:
        """(p, n_layers) the front of what was told, from the least saved up."""
        return self.masks[front_rows(self.saved(self.masks), self.losses)]

    def ask(self, n: int) -> Masks:
        """(m, n_layers) masks to score next, distinct and none told before; m < n only where no more are left."""
        if len(self.told) < min(DRAWN, 2**self.n_layers):
            return self.random(min(n, DRAWN - len(self.told)))
        masks, values = self.masks, log_goodness(self.losses)
        process, self.indices = climb(partial(MaskProcess, masks, values), self.indices)
        saved = self.saved(masks)
        rows = front_rows(saved, self.losses)
        best = _Best(saved[rows], values[rows], float(values.min()))
        near = self._fresh(neighbours(masks[rows]))
        local = self._turns % 2 == 1 and len(near) >= n
        candidates = near if local else self._candidates(process, masks[rows], near)
        self._turns += 1
        return self._promising(n, process, candidates, best) if len(candidates) else candidates

    def tell(self, masks: Masks, losses: Floats) -> None:
        """Learn the losses of (m, n_layers) masks; one that is not finite is kept, and counts as the worst."""
        self.told.update(zip((mask.tobytes() for mask in np.asarray(masks, dtype=bool)), losses.tolist(), strict=True))

    def state_dict(self) -> dict[str, Any]:
        """All that the rest of the search depends on besides what was told, in plain JSON values."""
        return {"rng": self.rng.bit_generator.state, "indices": self.indices, "level": self._level, "turns": self._turns}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on exactly where `state_dict` was taken, once the same masks were told."""
        self.rng.bit_generator.state = state["rng"]
        self.indices = read_indices(state["indices"])
        self._level, self._turns = (convert(name, state[name], int) for name in ("level", "turns"))

    def random(self, n: int) -> Masks:
        """(m, n_layers) masks none of which was told: the ends first, then random ones of random numbers of layers."""
        found = {end.tobytes(): end for end in self.ends if end.tobytes() not in self.told}
        while len(found) < n and len(found) + len(self.told) < 2**self.n_layers:
            mask = self._draw()
            if mask.tobytes() not in self.told:
                found.setdefault(mask.tobytes(), mask)
        return np.array(list(found.values())[:n], dtype=bool)

    def _draw(self) -> Masks:
        count = int(self.rng.integers(0, self.n_layers, endpoint=True))
        return np.isin(np.arange(self.n_layers), self.rng.permutation(self.n_layers)[:count])

    def _fresh(self, masks: Masks) -> Masks:
        """Those of (m, n_layers) masks that were not told, each once."""
        masks = distinct(masks)
        return masks[[mask.tobytes() not in self.told for mask in masks]]

    def _candidates(self, process: MaskProcess, front: Masks, near: Masks) -> Masks:
        if self.n_layers <= LISTED:
            return self._fresh(every_mask(self.n_layers))
        pool = np.concatenate((near, front, [self._draw() for _ in range(_POOL_DRAWS)]))
        for _ in range(_CLIMBS):
            expected = front_rows(self.saved(pool), -process.mean(pool))
            pool = distinct(np.concatenate((pool, neighbours(pool[expected]))))
        return self._fresh(pool)

    def _promising(self, n: int, process: MaskProcess, candidates: Masks, best: _Best) -> Masks:
        """(m, n_layers) candidates, level by level; each is chosen as if the one before had been told at its mean."""
        saved = self.saved(candidates)
        levels, needed = np.searchsorted(self._edges, saved, side="right"), best.at(saved)
        promise = process.mean(candidates) - needed
        order = np.argsort(-promise, kind="stable")
        rows = np.sort(np.concatenate([order[levels[order] == level][:CANDIDATES] for level in range(LEVELS)]))
        posterior, levels, needed = process.posterior(candidates[rows]), levels[rows], needed[rows]
        chosen: list[int] = []
        while len(chosen) < min(n, len(rows)):
            chosen.append(self._next(posterior, levels, needed, chosen))
            posterior.observe(chosen[-1])
        return posterior.masks[chosen]

    def _next(self, posterior: Posterior, levels: np.ndarray, needed: Floats, chosen: list[int]) -> int:
        """The best candidate of the next level that has one left."""
        gain = expected_improvement(posterior.mean - needed, posterior.variance, 0.0)
        gain[chosen] = -1.0
        for _ in range(LEVELS):
            here = np.flatnonzero((levels == self._level) & (gain >= 0))
            self._level = (self._level + 1) % LEVELS
            if len(here):
                return int(here[gain[here].argmax()])
        raise RuntimeError("no candidate is left")


class _Best:
    """The front told so far, as values (larger is better) by saving.

    Args:
        saved: (p,) of the front, rising.
        values: (p,) of the front, falling.
        worst: Beyond the front.
    """

    def __init__(self, saved: Floats, values: Floats, worst: float) -> None:
        self._saved, self._values = saved, np.append(values, worst)

    def at(self, saved: Floats) -> Floats:
        """(m,) the best value told of what saves at least as much."""
        return self._values[np.searchsorted(self._saved, saved, side="left")]


def log_goodness(losses: Floats) -> Floats:
    """(m,) minus the logarithms of (m,) losses, with mean 0 and deviation 1: larger is better.

    Losses grow by factors when layers go, and a front spans all of them. What is not finite counts as the worst that is.
    """
    finite = np.isfinite(losses)
    if not finite.any():
        return np.zeros(len(losses))
    known = np.where(finite, losses, losses[finite].max())
    above = known - min(float(known.min()), 0.0)  # a loss of one's own may fall below 0
    logs = -np.log(above + 1e-3 * float(np.median(above)) + 1e-12)
    return (logs - logs.mean()) / max(float(logs.std()), 1e-9)


def distinct(masks: Masks) -> Masks:
    """Of (m, n_layers) masks each once, in the order of their bits; much faster than numpy's own by rows."""
    packed = np.ascontiguousarray(np.packbits(masks, axis=1))
    keys = packed.view(np.dtype((np.void, packed.shape[1]))).ravel()
    return masks[np.unique(keys, return_index=True)[1]]


def neighbours(masks: Masks) -> Masks:
    """(p, n_layers): of every mask, those with one layer more or less skipped, or one skipped for another, each once."""
    n = masks.shape[1]
    pairs = np.array([(i, i) for i in range(n)] + list(itertools.combinations(range(n), 2)), dtype=np.intp)
    changes = np.zeros((len(pairs), n), dtype=bool)
    np.put_along_axis(changes, pairs, True, axis=1)
    found = []
    for mask in masks:
        swaps = (pairs[:, 0] == pairs[:, 1]) | (mask[pairs[:, 0]] != mask[pairs[:, 1]])
        found.append(mask ^ changes[swaps])
    return distinct(np.concatenate(found))
