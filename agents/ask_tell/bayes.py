"""The default agent: Gaussian processes over masks, and the mask with the largest expected improvement.

1. The score of a mask is half the normal score of its reward's rank, half the standardized logarithm of the reward (the
   reward itself, where one is not positive). Ranks keep one bad mask from distorting the rest; logarithms keep how far apart
   the best masks are.
2. The first masks are random ones that skip no more than the budget asks for, and each layer about as often. Where masks are
   too many to list, and skip twelve layers or more, smaller ones come first: they skip a sixth as many, and each layer once.
   If a model has a few essential layers, most random masks of a quarter of the layers skip one of these and score alike;
   small masks find them. They are outside the budget (`free_budget`), and are forgotten once there are as many others as
   layers.
3. Two Gaussian processes explain the scores. One has effects of single layers, pairs and triples, each order with its own
   variance (`MaskProcess`): skipping is nearly additive, not quite. The other learns how much each layer matters
   (`AgreementProcess`). Each ask improves the settings of both a little, and then trusts the one with the larger likelihood.
   That one may be overconfident, so the other one chooses where the first expects an improvement of less than
   `NEGLIGIBLE_IMPROVEMENT`, and in every third turn if masks are too many to list.
4. The agent asks for the mask within the budget whose score is expected to exceed the best posterior mean by most. For the
   next mask of a turn the process pretends to have observed the previous one at its mean, so the masks differ.
5. Where the masks are too many to list, candidates are random ones and those on climbs of the posterior mean.
6. No mask comes twice, so a small set of masks is exhausted in the end.
7. Under a budget by cost, masks skip few layers or many. Skipping nothing is then assumed to be better than any mask, and
   skipping everything worse, unless the scored masks say the opposite. Nothing else is assumed about a model.

An ask takes milliseconds. With more than `FULL_FIT_OBSERVATIONS` masks, the settings change little from turn to turn, and an
ask improves only one of the processes, by one step.
"""

from collections.abc import Sequence
from functools import partial
from statistics import NormalDist
from typing import ClassVar

import numpy as np
from das_gym.agents.ask_tell.base import Agent, Seed, masks_of_keys
from das_gym.agents.ask_tell.gaussian_process import (
    GRID,
    START_INDICES,
    AgreementLearner,
    GaussianProcess,
    MaskProcess,
    expected_improvement,
    fit_step,
)

from das_gym.intervals import average_ranks
from das_gym.problem.budget import Floats, Masks
from das_gym.problem.mask_space import MaskSpace, flipped

STARTUP_MASKS = 6
"""Number of random masks within the budget that are scored before the processes choose masks."""

SMALL_MASK_DIVISOR = 6
"""Small masks skip this fraction, 1 / 6, of the layers that the budget asks for, if that is two layers or more."""

SCORE_OF_FULL_MODEL = 2.5
SCORE_WITHOUT_LAYERS = -8.0
"""Scores assumed under a budget by cost, in standard deviations of the known scores, until such masks are scored."""

ASSUMPTION_MARGIN = 1.0
"""Nothing is assumed while the process predicts that the score without layers is higher by more than this."""

MAX_LISTED_MASKS = 5000
"""If no more masks than this are within the budget, all are candidates."""

LISTED_CANDIDATES = 1000
POOL_CANDIDATES = 500
"""Numbers of candidates, those with the highest means, whose variances are computed: of listed masks, and of a pool."""

FULL_FIT_OBSERVATIONS = 120
"""Up to this many observations, an ask fits every setting of the first process, and takes all steps of the second."""

GRADIENT_STEPS = 4

NEGLIGIBLE_IMPROVEMENT = 0.05
"""Where masks are listed, the less likely process chooses if the other expects no larger improvement than this."""

TURNS_PER_OTHER_PROCESS = 3
"""Where masks are too many to list, the less likely process chooses in one of this many turns."""

_POOL_DRAWS = 100
_CLIMBS = 3
_MOVES_PER_STEP = 40


class Bayes(Agent):
    """Bayesian optimization: Gaussian processes over masks, with expected improvement. The default agent.

    Example:
        >>> import numpy as np
        >>> from das_gym.agents import Bayes, Budget, MaskSpace
        >>> agent, costs = Bayes(MaskSpace(Budget(n_layers=24, skip_num=6)), seed=0), np.linspace(0.0, 1.0, 24) ** 2
        >>> for _ in range(20):
        ...     masks = agent.ask(3)
        ...     agent.tell(masks, np.exp(-(masks @ costs)))
        >>> np.flatnonzero(agent.best())
        array([0, 1, 2, 3, 4, 5])
    """

    free_budget: ClassVar[bool] = True
    races: ClassVar[bool] = True

    def __init__(self, space: MaskSpace, seed: Seed = None) -> None:
        super().__init__(space, seed)
        self.indices = list(START_INDICES)
        self.learner = AgreementLearner(self.n_layers)
        self.turns = 1  # the first masks; each fit is one more

    def ask(self, n: int) -> Masks:
        small = self._small_masks(n)
        if len(small):
            return small
        allowed = self._allowed_masks()
        if len(allowed) < STARTUP_MASKS:
            return self._first_masks(n)
        masks, scores = self._observations()
        for process in self._fit(masks, scores):
            candidates = self._candidates(process)
            if len(candidates) <= n:
                return candidates
            # The best posterior mean, not the best score: no mask may ever reach a score that was good by chance.
            best = float(process.mean(allowed).max())
            posterior = process.posterior(candidates)
            gain = expected_improvement(posterior.mean, posterior.variance, best)
            if gain.max() > NEGLIGIBLE_IMPROVEMENT:
                break
        chosen: list[int] = []
        for _ in range(n):
            gain = expected_improvement(posterior.mean, posterior.variance, best)
            gain[chosen] = -1.0
            chosen.append(int(gain.argmax()))
            posterior.observe(chosen[-1])
        return candidates[chosen]

    def best(self) -> Masks:
        if len(self._allowed_masks()) == 0 and self.rewards:  # only small masks so far: the layers whose masks scored best
            rewards = np.array(list(self.rewards.values()))
            return self.space.top((rewards - rewards.min()) @ self.scored_masks())
        return super().best()

    @property
    def _is_listed(self) -> bool:
        return (self.space.size or MAX_LISTED_MASKS + 1) <= MAX_LISTED_MASKS

    def _allowed_masks(self) -> Masks:
        masks = self.scored_masks()
        return masks[self.space.contains(masks)]

    def _small_masks(self, n: int) -> Masks:
        """Return up to n small masks, until each layer was skipped; none where the answer skips few layers."""
        masks = np.zeros((0, self.n_layers), dtype=bool)
        size = self.space.top(np.zeros(self.n_layers)).sum() // SMALL_MASK_DIVISOR
        if size < 2 or self._is_listed or not self.free_budget:
            return masks
        skipped = self.scored_masks().sum(axis=0, dtype=float)
        while len(masks) < n and skipped.min() == 0.0:
            mask = np.zeros(self.n_layers, dtype=bool)
            mask[np.argsort(skipped + self.rng.random(self.n_layers))[:size]] = True
            masks = np.vstack((masks, mask))
            skipped += mask
        return masks

    def _first_masks(self, n: int) -> Masks:
        """Return random masks of the layers that were skipped least so far."""
        skipped = self.scored_masks().sum(axis=0, dtype=float)

        def draw() -> Masks:
            mask = self.space.top(self.rng.random(self.n_layers) - skipped)
            skipped[mask] += 1.0
            return mask

        return self.space.distinct(n, draw, self.rng, self.rewards)

    def _observations(self) -> tuple[Masks, Floats]:
        """Return masks and scores: the scored ones and, under a budget by cost, the two ends unless they were scored."""
        masks = self.scored_masks()
        rewards = np.array(list(self.rewards.values()))
        allowed = self.space.contains(masks)
        if allowed.sum() >= self.n_layers:
            masks = masks[allowed]
            rewards = rewards[allowed]
        scores = 0.5 * log_scores(rewards) + 0.5 * normal_scores(rewards)
        if self.space.skip_num is not None:
            return masks, scores
        ends = np.stack((np.zeros(self.n_layers, dtype=bool), np.ones(self.n_layers, dtype=bool)))
        nothing, everything = MaskProcess(masks, scores, self.indices).mean(ends)
        if everything > nothing + ASSUMPTION_MARGIN:
            return masks, scores
        unscored = [end.tobytes() not in self.rewards for end in ends]
        assumed = np.array([SCORE_OF_FULL_MODEL, SCORE_WITHOUT_LAYERS])[unscored]
        return np.concatenate((masks, ends[unscored])), np.concatenate((scores, assumed))

    def _fit(self, masks: Masks, scores: Floats) -> list[GaussianProcess]:
        """Improve the settings of both processes, and return the one to trust, and maybe one to replace it."""
        # Settings start from where the last ask left them, and one more reward changes them little: a step is enough.
        self.turns += 1
        axes = list(range(len(GRID)))
        steps = GRADIENT_STEPS
        if len(masks) > FULL_FIT_OBSERVATIONS:
            axes, steps = ([], 1) if self.turns % 2 else ([self.turns // 2 % len(GRID)], 0)
        process, self.indices = fit_step(partial(MaskProcess, masks, scores), self.indices, axes)
        other = self.learner.fit(masks, scores, steps)
        # Both observed the same scores, so their likelihoods are comparable.
        likelier, less_likely = (process, other) if process.log_likelihood > other.log_likelihood else (other, process)
        if self._is_listed:
            return [likelier, less_likely]
        return [likelier if self.turns % TURNS_PER_OTHER_PROCESS else less_likely]

    def _candidates(self, process: GaussianProcess) -> Masks:
        """Return the (m, n_layers) unscored masks with the highest means."""
        means: Floats | None = None
        if self._is_listed:
            masks = self.space.masks
            most = LISTED_CANDIDATES
        else:
            masks, means = self._pool(process)
            most = POOL_CANDIDATES
        fresh = np.array([mask.tobytes() not in self.rewards for mask in masks], dtype=bool)
        if fresh.sum() <= most:
            return masks[fresh]
        means = process.mean(masks) if means is None else means
        return masks[np.argsort(np.where(fresh, -means, np.inf), kind="stable")[:most]]

    def _pool(self, process: GaussianProcess) -> tuple[Masks, Floats]:
        """Return masks with their means, where masks are too many to list.

        They are random masks, and those on climbs from the best of them and from the best scored ones.
        """
        masks = self.scored_masks()
        rewards = np.array(list(self.rewards.values()))
        allowed = self.space.contains(masks)
        starts = masks[allowed][np.argsort(-rewards[allowed], kind="stable")[:_CLIMBS]]
        drawn = self.space.distinct(_POOL_DRAWS, lambda: self.space.sample(self.rng), self.rng, self.rewards)
        means = process.mean(drawn)
        found = dict(zip((mask.tobytes() for mask in drawn), means, strict=True))
        for mask in (*starts, *drawn[np.argsort(-means, kind="stable")[:_CLIMBS]]):
            self._climb(mask, process, found)
        return masks_of_keys(found, self.n_layers), np.array(list(found.values()))

    def _climb(self, mask: Masks, process: GaussianProcess, found: dict[bytes, float]) -> None:
        """Move to the best neighbour until the posterior mean peaks; add the best neighbours of each step to `found`."""
        height = -np.inf
        while len(moves := self.space.moves(mask)):
            means = process.flip_means(mask)[tuple(moves.T)]
            best = np.argsort(-means, kind="stable")[:_MOVES_PER_STEP]
            neighbours = flipped(mask, moves[best])
            found.update(zip((each.tobytes() for each in neighbours), means[best], strict=True))
            if means[best[0]] <= height + 1e-12:  # rounding could make two masks better than each other, forever
                break
            mask = neighbours[0]
            height = means[best[0]]


def normal_scores(rewards: Sequence[float] | Floats) -> Floats:
    """Return (m,) quantiles of the standard normal distribution at the ranks of rewards; equal rewards share theirs."""
    middles = (average_ranks(np.array(rewards)) + 0.5) / len(rewards)
    return np.array([NormalDist().inv_cdf(middle) for middle in middles])


def log_scores(rewards: Sequence[float] | Floats) -> Floats:
    """Return (m,) standardized logarithms of rewards (rewards themselves if one is not positive); 0 if all are equal."""
    values = np.array(rewards)
    values = np.log(values) if (values > 0).all() else values
    values = values - values.max()  # equal values become exactly 0, whatever rounding does to their mean
    return (values - values.mean()) / max(float(values.std()), 1e-12)
