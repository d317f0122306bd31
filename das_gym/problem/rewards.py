"""Rewards of masks by name, and the objective: a reward with a budget and a price."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from das_gym.names import add_entry, brief, check_names
from das_gym.problem.budget import Budget, MaskCost, is_non_negative

if TYPE_CHECKING:
    from das_gym.engine.scores import Scores

MAX_LOSS = 1e4
"""Losses and divergences beyond count as this many nats where a reward would otherwise be unbounded."""

TOLERANCE = 1e-6
"""Rewards may exceed their bounds by this much, as rounding does, without a warning."""

PRICE_FORMULA = "+ macs_price * macs_saved (the share of the full model's MACs that the mask saves)"
"""What `macs_price` adds to any reward."""


@dataclass(frozen=True)
class Reward:
    """The reward of a feasible mask.

    Attributes:
        name: Its name.
        low, high: Its bounds, without what `macs_price` adds.
        compute: Maps the `Scores` of m masks to (m,) float rewards, deterministically. Its docstring begins with the formula
            and the range.
        needs_divergences: Whether it reads `Scores.divergences`.
        needs_full_loss: Whether it reads `Scores.full_loss`.
        of_losses: Whether it depends on the loss only, and falls as the loss rises. Searches then compare masks example by
            example, and stop scoring a mask that is clearly worse.
    """

    name: str
    low: float
    high: float
    compute: Callable[[Scores], np.ndarray]
    needs_divergences: bool = False
    needs_full_loss: bool = False
    of_losses: bool = False

    @property
    def formula(self) -> str:
        """Its formula in one line, from the docstring of `compute`."""
        return (inspect.getdoc(self.compute) or self.name).partition("\n")[0].rstrip(".")

    @property
    def range(self) -> str:
        """Its bounds as text, such as `0..1`, without what `macs_price` adds."""
        return f"{self.low:g}..{self.high:g}"


def exp_neg_loss(scores: Scores) -> np.ndarray:
    """Return exp(-loss), 0..1: the paper's reward."""
    return np.exp(-scores.losses)


def neg_loss(scores: Scores) -> np.ndarray:
    """Return -loss in nats, -10,000..0. Losses above 10,000 count as 10,000."""
    return -np.minimum(scores.losses, MAX_LOSS)


def perplexity_ratio(scores: Scores) -> np.ndarray:
    """Return exp(loss of the full model - loss), the full model's perplexity divided by the subnet's.

    Range: 0..2, 1 for the full model.

    The default for text. `exp_neg_loss`, the reciprocal of the perplexity, has differences of hundredths there, small next
    to a price of MACs; `neg_loss` is dominated by ruined models. The ratio orders masks as both do, is about 0 for any
    ruined model, and is comparable between models and texts.
    """
    if scores.full_loss is None:
        raise ValueError("perplexity_ratio needs the loss of the full model, which was not measured: set `Scores.full_loss`")
    with np.errstate(over="ignore"):
        return np.minimum(np.exp(scores.full_loss - scores.losses), 2.0)


def metric(scores: Scores) -> np.ndarray:
    """Return the task's metric, 0..1."""
    return scores.metrics


def neg_kl(scores: Scores) -> np.ndarray:
    """Return -KL(full model || masked model) in nats, -10,000..0. It needs no labels."""
    if scores.divergences is None:
        raise ValueError("neg_kl needs divergences, which were not measured; evaluate with divergences=True")
    return -np.clip(scores.divergences, 0.0, MAX_LOSS)  # rounding may leave a divergence a little below 0


REWARDS: dict[str, Reward] = {
    reward.name: reward
    for reward in (
        Reward("exp_neg_loss", 0.0, 1.0, exp_neg_loss, of_losses=True),
        Reward("neg_loss", -MAX_LOSS, 0.0, neg_loss, of_losses=True),
        Reward("perplexity_ratio", 0.0, 2.0, perplexity_ratio, needs_full_loss=True, of_losses=True),
        Reward("metric", 0.0, 1.0, metric),
        Reward("neg_kl", -MAX_LOSS, 0.0, neg_kl, needs_divergences=True),
    )
}
"""Every reward by name; a price per MAC may be added, see `PRICE_FORMULA`."""


def register_reward(reward: Reward) -> None:
    """Add a reward: environments, tables and commands then take its name.

    Raises:
        TypeError: `reward` is not a `Reward`.
        ValueError: The name is not allowed or already registered, or the bounds are not finite numbers with low < high.

    Complete example: `examples/own_reward.py`.
    """
    add_bounded(REWARDS, reward, Reward)


def add_bounded(registry: dict[str, Any], entry: Any, kind: type[Any]) -> None:
    """Add a user's reward or statistic to a registry; TypeError or ValueError as in `register_reward`."""
    what = kind.__name__.lower()
    if not isinstance(entry, kind):
        raise TypeError(f"`{what}` is not a {kind.__name__}: got {entry!r}, expected das_gym.{kind.__name__}(name, ...)")
    if not -np.inf < entry.low < entry.high < np.inf:
        got = f"low={entry.low}, high={entry.high}"
        raise ValueError(f"{what} {entry.name!r} has invalid bounds: got {got}, expected finite numbers with low < high")
    add_entry(registry, entry.name, entry, what)


def find_reward(name: str) -> Reward:
    """Return a reward by its name, a key of `REWARDS`; ValueError for another."""
    check_names([name], REWARDS, "reward", own=True)
    return REWARDS[name]


@dataclass(frozen=True, eq=False)
class Objective:
    """The reward of any mask, from budget, reward and price.

    reward(mask) + macs_price * macs_saved(mask)   if the budget is kept
    low - violation(mask)                          otherwise

    Args:
        budget: The constraint on a mask.
        reward: The reward of a feasible mask.
        macs: The MACs of masks.
        macs_price: Reward for saving all MACs of the full model, at least 0; see `PRICE_FORMULA`.
    """

    budget: Budget
    reward: Reward
    macs: MaskCost
    macs_price: float = 0.0

    def __post_init__(self) -> None:
        if not is_non_negative(self.macs_price):
            raise ValueError(f"`macs_price` is out of range: got {self.macs_price!r}, expected a number of at least 0")

    @property
    def low(self) -> float:
        """Lower bound of the rewards of feasible masks: the reward's own, and the price of the smallest saving."""
        return self.reward.low + self.macs_price * self.macs.range[0]

    @property
    def high(self) -> float:
        """Upper bound of the rewards of masks: the reward's own, and the price of the largest saving."""
        return self.reward.high + self.macs_price * self.macs.range[1]

    def _computed(self, scores: Scores) -> np.ndarray:
        """Return what the reward computes, (m,) float64; ValueError for anything else."""
        with np.errstate(over="ignore"):
            given = self.reward.compute(scores)
        try:
            values = np.asarray(given, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise ValueError(f"reward {self.reward.name!r} did not return numbers: got {brief(given)}") from error
        if values.shape != scores.losses.shape:
            raise ValueError(
                f"reward {self.reward.name!r} returned the wrong shape: got {values.shape}, expected {scores.losses.shape}, "
                "one number for each mask"
            )
        return values

    def rewards(self, masks: np.ndarray, scores: Scores) -> np.ndarray:
        """Return (m,) float64: the rewards of (m, n_layers) masks; never NaN, but the lowest where one cannot be computed.

        A mask outside the budget has a lower reward than every feasible one. The reward falls with the distance, so that an
        agent that starts far away finds its way.
        """
        violations = self.budget.violations(masks)
        earned = np.nan_to_num(self._computed(scores), nan=self.reward.low)
        outside = (earned > self.reward.high + TOLERANCE) | (earned < self.reward.low - TOLERANCE)
        if np.any(outside & np.isfinite(scores.losses)):
            # Without the value: Python shows equal warnings once.
            warnings.warn(
                f"the reward {self.reward.name!r} has values outside of its bounds {self.reward.range}, which are clipped: "
                "agents cannot tell these masks apart. Declare `low` and `high` of the `Reward` wide enough",
                stacklevel=2,
            )
        earned = np.clip(earned, self.reward.low, self.reward.high) + self.macs_price * self.macs.saved(masks)
        # A tiny violation is lost in the rounding of a low of -10,000.
        below = np.minimum(self.low - violations, np.nextafter(self.low, -np.inf))
        return np.where(violations > 0, below, earned)
