"""The default agent: a Gaussian process over masks that asks for the mask with the largest expected improvement.

1. Rewards are replaced by the normal scores of their ranks: exp(-loss), -loss and any other increasing function of them
   give the same search among up to 29 layers (see 10), and one bad mask distorts nothing.
2. A Gaussian process explains the scores by effects of single layers, pairs and triples (`gaussian_process.py`): skipping
   is nearly additive, not quite, and which mask is best depends on the rest.
3. The variance of each order and of the noise is learned: each ask takes one step on a grid up the marginal likelihood.
4. The first masks are random ones that skip no more than the budget asks for. From then on the agent asks for the mask
   within the budget with the largest expected improvement over the best score.
5. For the next mask of a turn the process pretends to have observed the previous one at its mean, so the masks differ.
6. An ask takes some milliseconds: the process is exact, with one point per scored mask.
7. No mask comes twice, so a small set of masks is exhausted in the end.
8. Where the masks are too many to list, candidates are random ones and those on climbs of the posterior mean.
9. The answer is the best scored mask; with noisy rewards (`noisy=True`), the one with the highest posterior mean.
10. From 30 layers on, half of a score is the standardized logarithm of the reward (or the reward itself, where one is not
    positive): ranks alone forget how far apart the best masks are, and the agent needs long to distinguish them.
11. Under a budget by cost, masks skip few layers or many. Skipping nothing is then assumed to be better than any mask, and
    skipping everything worse, unless the scored masks say the opposite. Nothing else is assumed about a model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from statistics import NormalDist
from typing import Any, ClassVar

import numpy as np
from das_gym.agents.ask_tell.base import Agent
from das_gym.agents.ask_tell.gaussian_process import (
    GRID,
    START,
    MaskProcess,
    Process,
    climb,
    expected_improvement,
    read_indices,
)

from das_gym.problem.budget import Floats, Masks
from das_gym.problem.mask_space import MaskSpace, flipped
from das_gym.tables.ranks import average_ranks

LISTED = 5000
"""Up to this many masks within the budget are all candidates."""

CANDIDATES = 1000
"""Variances are computed for this many candidates with the highest means."""

MANY = 30
"""From this many layers on scores use logarithms, too: they gain nothing at 24 layers, but at 36 and 72."""

_POOL_DRAWS = 100
_CLIMBS = 4
_MOVES_PER_STEP = 100


class Bayes(Agent):
    """Bayesian optimization: a Gaussian process over masks, with expected improvement. The default.

    Args:
        space: The masks to choose from.
        seed: Seed, or the generator to draw from.
        noisy: Whether the reward of a mask depends on when it is scored (`reward_batches` other than "fixed").

    Attributes:
        drawn: Number of random masks before the process chooses.
        nothing, everything: Scores that are assumed for skipping nothing and everything under a budget by cost, in standard
            deviations of the known scores.
        doubt: The assumption is dropped while the process predicts that skipping everything is better than skipping nothing
            by this many standard deviations.
        grid: Variances that the process may have.
        start: Where in `grid` learning begins.
        logarithms: Weight of the logarithm in a score, from `MANY` layers on.
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
            raise ValueError(f"`noisy` is not allowed: got {noisy!r}, expected True or False")
        self.noisy = noisy
        self.indices = list(self.start)

    def ask(self, n: int) -> Masks:
        """Return (m, n_layers) masks that were not scored before, m = n while there are enough."""
        if len(self.rewards) < self.drawn:
            return self.space.distinct(n, lambda: self.space.sample(self.rng), self.rng, self.rewards)
        masks, scores = self._observations()
        process = self._fit(masks, scores)
        candidates = self._candidates(process)
        if len(candidates) <= n:
            return candidates
        best, posterior = self._incumbent(process, scores[: len(self.rewards)]), process.posterior(candidates)
        chosen: list[int] = []
        for _ in range(n):
            gain = expected_improvement(posterior.mean, posterior.variance, best)
            gain[chosen] = -1.0
            chosen.append(int(gain.argmax()))
            posterior.observe(chosen[-1])
        return candidates[chosen]

    def best(self) -> Masks:
        """Return the best scored mask; with noisy rewards, the one with the highest posterior mean."""
        if not self.noisy or not self.rewards:
            return super().best()
        masks = self.scored_masks()
        return masks[self._process(*self._observations(), self.indices).mean(masks).argmax()].copy()

    def state_dict(self) -> dict[str, Any]:
        """Return `Agent.state_dict` with the learned variances."""
        return {**super().state_dict(), "indices": self.indices}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue exactly where `state_dict` was called."""
        super().load_state_dict(state)
        self.indices = read_indices(state["indices"], self.grid)

    def _observations(self) -> tuple[Masks, Floats]:
        """Return masks and scores: the scored ones and, under a budget by cost, the two ends unless they were scored."""
        masks, scores = self.scored_masks(), self._scores(list(self.rewards.values()))
        if self.space.skip_num is not None:
            return masks, scores
        ends = np.stack((np.zeros(self.n_layers, dtype=bool), np.ones(self.n_layers, dtype=bool)))
        nothing, everything = self._process(masks, scores, self.indices).mean(ends)
        if everything > nothing + self.doubt:
            return masks, scores
        unscored = [end.tobytes() not in self.rewards for end in ends]
        assumed = np.array([self.nothing, self.everything])[unscored]
        return np.concatenate((masks, ends[unscored])), np.concatenate((scores, assumed))

    def _scores(self, rewards: list[float]) -> Floats:
        """Return what the process explains of (m,) rewards."""
        if self.n_layers < MANY or not self.logarithms:
            return normal_scores(rewards)
        return self.logarithms * log_scores(rewards) + (1.0 - self.logarithms) * normal_scores(rewards)

    def _fit(self, masks: Masks, scores: Floats) -> Process:
        """Learn the variances, and return the process that observed `scores`."""
        process, self.indices = climb(partial(self._process, masks, scores), self.indices, self.grid)
        return process

    def _process(self, masks: Masks, scores: Floats, indices: Sequence[int]) -> MaskProcess:
        return MaskProcess(masks, scores, indices)

    def _incumbent(self, process: Process, scores: Floats) -> float:
        """Return the value that an improvement has to exceed: the best of the (m,) known scores."""
        del process
        return float(scores.max())

    def _candidates(self, process: Process) -> Masks:
        """Return the (m, n_layers) unscored masks with the highest means."""
        masks = self.space.masks if (self.space.size or LISTED + 1) <= LISTED else self._pool(process)
        fresh = masks[[mask.tobytes() not in self.rewards for mask in masks]]
        if len(fresh) > CANDIDATES:
            fresh = fresh[np.argsort(-process.mean(fresh), kind="stable")[:CANDIDATES]]
        return fresh

    def _pool(self, process: Process) -> Masks:
        """Return random masks and climbs from the best of them and the best scored ones: masks are too many to list."""
        masks, rewards = self.scored_masks(), np.array(list(self.rewards.values()))
        allowed = self.space.contains(masks)
        starts = masks[allowed][np.argsort(-rewards[allowed], kind="stable")[:_CLIMBS]]
        drawn = self.space.distinct(_POOL_DRAWS, lambda: self.space.sample(self.rng), self.rng, self.rewards)
        found = [drawn]
        for mask in (*starts, *drawn[np.argsort(-process.mean(drawn), kind="stable")[:_CLIMBS]]):
            found += self._climb(mask, process)
        distinct = {mask.tobytes(): mask for masks in found for mask in masks}
        return np.array(list(distinct.values()), dtype=bool).reshape(len(distinct), self.n_layers)

    def _climb(self, mask: Masks, process: Process) -> list[Masks]:
        """Move to the best neighbour until the posterior mean peaks; return the best neighbours of each step."""
        found, height = [], -np.inf
        while len(moves := self.space.moves(mask)):
            means = process.flip_means(mask)[tuple(moves.T)]
            best = np.argsort(-means, kind="stable")[:_MOVES_PER_STEP]
            found.append(flipped(mask, moves[best]))
            if means[best[0]] <= height + 1e-12:
                break
            mask, height = found[-1][0], means[best[0]]
        return found


def normal_scores(rewards: list[float]) -> Floats:
    """Return the quantiles of the standard normal distribution at the ranks of rewards; equal rewards share theirs."""
    middles = (average_ranks(np.array(rewards)) + 0.5) / len(rewards)
    return np.array([NormalDist().inv_cdf(middle) for middle in middles])


def log_scores(rewards: list[float]) -> Floats:
    """Return the standardized logarithms of rewards (rewards themselves where one is not positive); 0 if all are equal."""
    values = np.array(rewards)
    values = np.log(values) if (values > 0).all() else values
    values = values - values.max()  # equal values become exactly 0, whatever rounding does to their mean
    return (values - values.mean()) / max(float(values.std()), 1e-12)
