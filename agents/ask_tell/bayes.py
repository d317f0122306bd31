"""Our own agent: a Gaussian process over masks that asks where it expects the largest improvement.

1. Rewards are replaced by the normal scores of their ranks: exp(-loss), -loss and any other rising function of them give
   the same search among up to 29 layers (see 10), and one bad mask bends nothing.
2. A Gaussian process explains the scores by effects of single layers, pairs and triples (`gaussian_process` beside this):
   skipping is nearly additive, not quite, and which mask is best depends on the rest.
3. How much each order counts, and noise, is learned: at each ask, one step on a grid up the marginal likelihood.
4. The first masks are random ones that skip no more than the budget asks for. From then on it asks for the allowed mask
   with the largest expected improvement over the best score.
5. For the next mask of a turn the process pretends to have seen that one, at its mean: the masks of a turn differ.
6. An ask takes some milliseconds: the process is exact, and has as many points as masks were told.
7. No mask comes twice, so a small set of masks is exhausted in the end.
8. Where the allowed masks are too many to list, candidates are random ones and what climbs in the posterior mean pass.
9. The answer is the best mask told; of noisy rewards (`noisy=True`), the mask told whose posterior mean is highest.
10. Among 30 layers and more, half of a score is the standardised logarithm of the reward (or the reward itself, where one is
   not positive): ranks alone forget how far apart the best masks are, and it takes long to tell them apart.
11. Under a budget by cost, where masks skip few layers or many, skipping nothing is taken to be better than any mask, and
   skipping everything worse, unless what was told says the opposite. Nothing else is assumed of a model, and not which
   layers are alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from statistics import NormalDist
from typing import Any, ClassVar

import numpy as np
from das_gym.agents.ask_tell.best_seen import BestSeen
from das_gym.agents.ask_tell.gaussian_process import (
    GRID,
    START,
    MaskProcess,
    Process,
    climb,
    expected_improvement,
    read_place,
)

from das_gym.problem.budget import Floats, Masks
from das_gym.problem.mask_space import MaskSpace, flipped
from das_gym.tables.ranks import average_ranks

LISTED = 5000
"""Up to so many allowed masks are all candidates."""

CANDIDATES = 1000
"""Of all candidates, variances are computed for so many with the highest means."""

MANY = 30
"""From so many layers on ranks alone are not enough: logarithms beside them gain nothing at 24, but at 36 and 72."""

_POOL_DRAWS = 100
_CLIMBS = 4
_AROUND = 100


class Bayes(BestSeen):
    """Ours: a Gaussian process over masks, asked for the largest expected improvement; the module says how.

    Args:
        space: The masks to choose from.
        seed: Seed, or the generator to draw from.
        noisy: Whether the reward of a mask depends on when it is scored (`reward_batches` other than "fixed").

    Attributes:
        drawn: So many masks are drawn at random before the process chooses.
        nothing, everything: Scores that skipping nothing and everything are given under a budget by cost, in standard
            deviations of those told.
        doubt: That is dropped while the masks told make skipping everything by so many standard deviations better than
            nothing.
        grid: Variances that the process may have.
        start: Where in `grid` learning begins.
        logarithms: Share of a score that is no rank, from `MANY` layers on.
    """

    drawn: ClassVar[int] = 6
    nothing: ClassVar[float] = 2.5
    everything: ClassVar[float] = -8.0
    doubt: ClassVar[float] = 1.0
    grid: Sequence[Sequence[float]] = GRID
    start: Sequence[int] = START
    logarithms: ClassVar[float] = 0.5

    def __init__(self, space: MaskSpace, seed: int | np.random.Generator | None = None, noisy: bool = False) -> None:
        super().__init__(space, seed)
        if not isinstance(noisy, bool):
            raise ValueError(f"noisy={noisy!r} is not allowed; give True or False")
        self.noisy = noisy
        self.place = list(self.start)

    def ask(self, n: int) -> Masks:
        """(m, n_layers) masks that were not told before, m = n while so many are left."""
        if len(self.reported) < self.drawn:
            return self.space.distinct(n, lambda: self.space.sample(self.rng), self.rng, self.reported)
        masks, scores = self._known()
        process = self._fit(masks, scores)
        return self._promising(n, process, self._to_exceed(process, scores[: len(self.reported)]))

    def best(self) -> Masks:
        """The best mask told, or the one that the process holds for the best."""
        if not self.noisy or not self.reported:
            return super().best()
        masks = self.reported_masks()
        return masks[self._process(*self._known(), self.place).mean(masks).argmax()].copy()

    def state_dict(self) -> dict[str, Any]:
        """As `BestSeen.state_dict`, with what was learned of the variances."""
        return {**super().state_dict(), "place": self.place}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """As `Agent.load_state_dict`."""
        super().load_state_dict(state)
        self.place = read_place(state["place"], self.grid)

    def _fit(self, masks: Masks, scores: Floats) -> Process:
        """The process, given the scores of masks, with what it learns of itself from them."""
        process, self.place = climb(partial(self._process, masks, scores), self.place, self.grid)
        return process

    def _process(self, masks: Masks, scores: Floats, place: Sequence[int]) -> MaskProcess:
        """The process whose variances are those at a place of `grid`."""
        return MaskProcess(masks, scores, place)

    def _known(self) -> tuple[Masks, Floats]:
        """Masks told and their scores; after them the two ends, under a budget by cost, as far as they were not told."""
        masks, scores = self.reported_masks(), self._scores(list(self.reported.values()))
        if self.space.skip_num is not None:
            return masks, scores
        ends = np.stack((np.zeros(self.n_layers, dtype=bool), np.ones(self.n_layers, dtype=bool)))
        nothing, everything = self._process(masks, scores, self.place).mean(ends)
        if everything > nothing + self.doubt:
            return masks, scores
        untold = [end.tobytes() not in self.reported for end in ends]
        given = np.array([self.nothing, self.everything])[untold]
        return np.concatenate((masks, ends[untold])), np.concatenate((scores, given))

    def _scores(self, rewards: list[float]) -> Floats:
        """(m,) what the process explains of (m,) rewards."""
        if self.n_layers < MANY or not self.logarithms:
            return normal_scores(rewards)
        return self.logarithms * log_scores(rewards) + (1.0 - self.logarithms) * normal_scores(rewards)

    def _to_exceed(self, process: Process, scores: Floats) -> float:
        """What an improvement is an improvement over, of the (m,) scores told: the best."""
        del process
        return float(scores.max())

    def _promising(self, n: int, process: Process, best: float) -> Masks:
        """(m, n_layers) candidates, m = n while so many are left; each is chosen as if the one before had been told."""
        candidates = self._candidates(process)
        if len(candidates) <= n:
            return candidates
        posterior = process.posterior(candidates)
        chosen: list[int] = []
        for _ in range(n):
            gain = expected_improvement(posterior.mean, posterior.variance, best)
            gain[chosen] = -1.0
            chosen.append(int(gain.argmax()))
            posterior.observe(chosen[-1])
        return candidates[chosen]

    def _candidates(self, process: Process) -> Masks:
        """(m, n_layers) masks worth a closer look, none of which was told."""
        masks = self.space.masks if (self.space.size or LISTED + 1) <= LISTED else self._pool(process)
        fresh = masks[[mask.tobytes() not in self.reported for mask in masks]]
        if len(fresh) > CANDIDATES:
            fresh = fresh[np.argsort(-process.mean(fresh), kind="stable")[:CANDIDATES]]
        return fresh

    def _pool(self, process: Process) -> Masks:
        """Candidates where the allowed masks are too many: random ones, and what climbs from them and the best told pass."""
        told, rewards = self.reported_masks(), np.array(list(self.reported.values()))
        allowed = self.space.contains(told)
        starts = told[allowed][np.argsort(-rewards[allowed], kind="stable")[:_CLIMBS]]
        drawn = self.space.distinct(_POOL_DRAWS, lambda: self.space.sample(self.rng), self.rng, self.reported)
        found = [drawn]
        for mask in (*starts, *drawn[np.argsort(-process.mean(drawn), kind="stable")[:_CLIMBS]]):
            found += self._climbed(mask, process)
        distinct = {mask.tobytes(): mask for masks in found for mask in masks}
        return np.array(list(distinct.values()), dtype=bool).reshape(len(distinct), self.n_layers)

    def _climbed(self, mask: Masks, process: Process) -> list[Masks]:
        """The best masks around each that a climb passes, one move a step, up to a peak of the posterior mean."""
        found, height = [], -np.inf
        while len(moves := self.space.moves(mask)):
            means = process.flip_means(mask)[tuple(moves.T)]
            best = np.argsort(-means, kind="stable")[:_AROUND]
            found.append(flipped(mask, moves[best]))
            if means[best[0]] <= height + 1e-12:
                break
            mask, height = found[-1][0], means[best[0]]
        return found


def normal_scores(rewards: list[float]) -> Floats:
    """(m,) quantiles of the standard normal distribution at the ranks of (m,) rewards; equal rewards share theirs."""
    middles = (average_ranks(np.array(rewards)) + 0.5) / len(rewards)
    return np.array([NormalDist().inv_cdf(middle) for middle in middles])


def log_scores(rewards: list[float]) -> Floats:
    """(m,) logarithms of (m,) rewards, or rewards where one is not positive, with mean 0 and deviation 1; equal ones: 0."""
    values = np.array(rewards)
    values = np.log(values) if (values > 0).all() else values
    values = values - values.max()
    return (values - values.mean()) / max(float(values.std()), 1e-12)
