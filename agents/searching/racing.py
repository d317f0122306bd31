"""Racing: score a mask on a few examples first, and stop as soon as it is clearly worse than the best mask so far.

A turn's masks are scored on the first stage of the reward examples, then on more of them. After each stage, a mask's losses
are compared with those of the incumbent, the best mask that was scored on all examples, example by example: their mean
difference d has the standard error s, with the correction for a finite population. If d - z * s still leaves the mask with a
smaller reward than the incumbent, it is dropped, and `tell` gets the reward of the incumbent's loss plus d.

Often few examples carry the difference of two masks, and the first stage may hold none of them: then d and s are both wrong.
So the variance in s is a mean of the sample's, and of the median variance of differences between an incumbent and the masks
scored on all examples so far, which counts as `PRIOR_EXAMPLES` examples.

This is a race as in F-Race (Birattari et al. 2002), against the incumbent alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from das_gym.commands.settings import convert
from das_gym.envs.scoring import Scorer
from das_gym.files import read_array
from das_gym.problem.budget import Floats, Masks
from das_gym.problem.mask_space import MaskSpace

STAGES = (1 / 8, 1 / 4, 1 / 2)
"""Shares of the reward examples after which masks are compared with the incumbent."""

STANDARD_ERRORS = 2.5
"""A mask is dropped if its loss is worse than the incumbent's by more than this many standard errors."""

PRIOR_EXAMPLES = 125
"""Weight, in examples, of the median variance of earlier differences in the variance of a mask's difference."""

MIN_EXAMPLES = 60
"""A stage with fewer examples is left out: its standard error would be too uncertain."""


class Raced(NamedTuple):
    """The outcome of a race of m masks.

    Attributes:
        rewards: (m,); of a dropped mask the reward of its estimated loss.
        scores: Numbers by name, `SCORES` among them, (m,) each.
        shares: (m,) in (0..1]: the share of the reward examples that each mask was scored on; 1 stands for all.
    """

    rewards: Floats
    scores: Mapping[str, np.ndarray]
    shares: Floats | float = 1.0


@dataclass(frozen=True)
class Incumbent:
    """The best mask so far: its reward, and its loss on each example, (n_examples,)."""

    reward: float
    losses: Floats


class Race:
    """Scores the masks of a search by racing.

    Masks within the budget race against the best of them. Other masks race against the best that skips as many units: a mask
    that skips fewer is better, but no answer.

    Args:
        scorer: Scores masks on single examples; its `racing_examples` is not None.
        space: The masks within the budget.
        stages: Rising shares of the examples, below 1.
        z, least: See `STANDARD_ERRORS` and `MIN_EXAMPLES`.
    """

    def __init__(
        self,
        scorer: Scorer,
        space: MaskSpace,
        stages: Sequence[float] = STAGES,
        z: float = STANDARD_ERRORS,
        least: int = MIN_EXAMPLES,
    ) -> None:
        assert scorer.racing_examples is not None
        self.scorer = scorer
        self.space = space
        self.n_examples = scorer.racing_examples
        counts = [round(share * self.n_examples) for share in stages]
        self.ends = [count for count in counts if count >= least] + [self.n_examples]
        self.z = z
        self._incumbents: dict[str, Incumbent] = {}
        self._variances: list[float] = []  # of differences between an incumbent and masks scored on all examples

    def score(self, masks: Masks) -> Raced:
        """Return the outcome of a race of (m, n_layers) masks, and remember the best of those scored on all examples."""
        groups = self._groups(masks)
        losses, metrics, seen = self._run(masks, groups)
        means = [self._estimate(group, row[:count]) for group, row, count in zip(groups, losses, seen, strict=True)]
        shown = [row[:count].mean() for row, count in zip(metrics, seen, strict=True)]
        rewards, scores = self.scorer.rewards_and_info(masks, np.array(means), np.array(shown))
        for row in np.flatnonzero(seen == self.n_examples):
            self._learn(groups[row], Incumbent(float(rewards[row]), losses[row]))
        return Raced(rewards, scores, seen / self.n_examples)

    def _run(self, masks: Masks, groups: Sequence[str]) -> tuple[Floats, Floats, np.ndarray]:
        """Return (m, n_examples) losses and metrics, and how many of the first examples each mask was scored on, (m,)."""
        losses, metrics = np.zeros((2, len(masks), self.n_examples))
        seen = np.zeros(len(masks), dtype=np.int64)
        racing = np.arange(len(masks))
        start = 0
        for end in self.ends:
            found = self.scorer.score_examples(masks[racing], start, end)
            losses[racing, start:end] = np.where(np.isfinite(found.losses), found.losses, np.inf)
            metrics[racing, start:end] = found.metrics
            seen[racing] = end
            beaten = [self._is_beaten(masks[row], groups[row], losses[row, :end]) for row in racing.tolist()]
            racing = racing[~np.array(beaten)]
            start = end
            if not len(racing):
                break
        return losses, metrics, seen

    def state_dict(self) -> dict[str, Any]:
        """Return the incumbents and the variances as plain JSON values."""
        found = {group: {"reward": each.reward, "losses": each.losses.tolist()} for group, each in self._incumbents.items()}
        return {"incumbents": found, "variances": list(self._variances)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue exactly where `state_dict` was called."""
        self._incumbents = {
            group: Incumbent(float(each["reward"]), read_array("losses", each["losses"], (self.n_examples,)))
            for group, each in state["incumbents"].items()
        }
        self._variances = convert("variances", state["variances"], list[float])

    def _groups(self, masks: Masks) -> list[str]:
        """Return which masks are compared with each other: those within the budget, others by the units that they skip."""
        allowed = self.space.contains(masks)
        counts = masks.sum(axis=1)
        return ["answers" if is_answer else str(count) for is_answer, count in zip(allowed, counts, strict=True)]

    def _is_beaten(self, mask: Masks, group: str, losses: Floats) -> bool:
        """Return True if a mask with these losses on the first examples is clearly worse than the incumbent."""
        count = len(losses)
        incumbent = self._incumbents.get(group)
        if incumbent is None or count == self.n_examples:
            return False
        differences = losses - incumbent.losses[:count]
        if not np.isfinite(differences).all():
            return True
        variance = differences.var(ddof=1)
        if self._variances:
            variance = (count * variance + PRIOR_EXAMPLES * np.median(self._variances)) / (count + PRIOR_EXAMPLES)
        error = np.sqrt(variance / count * (1 - count / self.n_examples))
        at_best = self._estimate(group, losses, self.z * error)
        rewards, _ = self.scorer.rewards_and_info(mask[None], np.array([at_best]), np.zeros(1))
        return bool(rewards[0] < incumbent.reward)

    def _estimate(self, group: str, losses: Floats, margin: float = 0.0) -> float:
        """Return the mean loss of a mask; of a dropped one, the incumbent's plus the mean difference, less a margin."""
        if len(losses) == self.n_examples:
            return float(losses.mean())
        known = self._incumbents[group].losses
        estimate = known.mean() + (losses - known[: len(losses)]).mean() - margin
        # No loss may be below those of single examples: rewards do not expect negative ones.
        return float(max(estimate, min(known.min(), losses.min())))

    def _learn(self, group: str, found: Incumbent) -> None:
        """Learn from a mask that was scored on all examples: it may be the next incumbent."""
        if not np.isfinite(found.losses).all():
            return
        known = self._incumbents.get(group)
        if known is not None:
            self._variances.append(float((found.losses - known.losses).var(ddof=1)))
        if known is None or found.reward > known.reward:
            self._incumbents[group] = found
