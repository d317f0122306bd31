"""Rewards and budgets, by name."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from numbers import Real
from typing import Any

import numpy as np

from das_gym.config import check_names
from das_gym.problem.costs import Costs

MAX_LOSS = 1e4
"""Losses and divergences beyond count as this many nats where a reward would otherwise be unbounded."""

PRICE_FORMULA = "+ macs_price * macs_saved (the share of the full model's MACs that the mask saves)"
"""What `macs_price` adds to any reward."""


@dataclass(frozen=True)
class Measured:
    """What m masks did on the reward examples.

    Attributes:
        losses: (m,) float64, nats; inf where the loss was not a number.
        metrics: (m,) float64, 0..1.
        divergences: (m,) float64, KL(full model || mask) in nats; NaN where nobody asked for it.
    """

    losses: np.ndarray
    metrics: np.ndarray
    divergences: np.ndarray


@dataclass(frozen=True)
class Reward:
    """What a feasible mask earns.

    Attributes:
        name: How it is asked for.
        low, high: Its bounds, without a price.
        compute: From `Measured` to rewards (m,). Its docstring begins with the formula and says the range. Every reward is
            deterministic.
        needs_divergences: Whether it reads `Measured.divergences`.
    """

    name: str
    low: float
    high: float
    compute: Callable[[Measured], np.ndarray]
    needs_divergences: bool = False

    @property
    def formula(self) -> str:
        """What it is, in a line."""
        return (inspect.getdoc(self.compute) or self.name).partition("\n")[0].rstrip(".")

    @property
    def range(self) -> str:
        """From its lowest to its highest value, without a price: `0..1`."""
        return f"{self.low:g}..{self.high:g}"


def exp_neg_loss(measured: Measured) -> np.ndarray:
    """exp(-loss), the paper's reward.

    Range: 0..1.
    """
    return np.exp(-measured.losses)


def neg_loss(measured: Measured) -> np.ndarray:
    """-loss, in nats; losses beyond 10,000 count as that.

    Range: -10000..0.
    """
    return -np.minimum(measured.losses, MAX_LOSS)


def metric(measured: Measured) -> np.ndarray:
    """The task's metric.

    Range: 0..1.
    """
    return measured.metrics


def neg_kl(measured: Measured) -> np.ndarray:
    """-KL(full model || mask), in nats, needs no labels; 0 = the full model's answers, beyond 10,000 counts as that.

    Range: -10000..0.
    """
    return -np.clip(measured.divergences, 0.0, MAX_LOSS)  # rounding may leave a divergence a little below 0


REWARDS: dict[str, Reward] = {
    reward.name: reward
    for reward in (
        Reward("exp_neg_loss", 0.0, 1.0, exp_neg_loss),
        Reward("neg_loss", -MAX_LOSS, 0.0, neg_loss),
        Reward("metric", 0.0, 1.0, metric),
        Reward("neg_kl", -MAX_LOSS, 0.0, neg_kl, needs_divergences=True),
    )
}
"""Every reward by name; each may have a price per MAC beside it, see `PRICE_FORMULA`."""


def find_reward(name: str) -> Reward:
    """The reward of that name.

    Raises:
        ValueError: there is none; names the nearest.
    """
    check_names([name], REWARDS, "reward")
    return REWARDS[name]


@dataclass(frozen=True, eq=False)
class LayerMacs:
    """MACs of any mask, for many masks at once: they are additive over layers.

    Attributes:
        full: MACs of the full model without adapters, an example: what savings refer to.
        unskipped: MACs of the model with adapters and nothing skipped.
        savings: (n_layers,) int64, MACs that skipping each layer takes off `unskipped`.
    """

    full: int
    unskipped: int
    savings: np.ndarray

    @classmethod
    def of(cls, costs: Costs) -> LayerMacs:
        """Those of a model."""
        kept = costs.layer_macs + costs.parallel_macs
        return cls(costs.macs_full, costs.base_macs + costs.head_macs + int(kept.sum()), kept - costs.skip_macs)

    def macs(self, masks: np.ndarray) -> np.ndarray:
        """(m,) int64 MACs of (m, n_layers) bool masks."""
        return self.unskipped - masks.astype(np.int64) @ self.savings

    def saved(self, masks: np.ndarray) -> np.ndarray:
        """(m,) float64 share of `full` that each mask saves; negative where adapters cost more than it skips.

        Rounded once, so that a mask that saves 20 of 100 MACs keeps a budget of 0.2.
        """
        return (self.full - self.macs(masks)) / self.full

    @property
    def saves(self) -> np.ndarray:
        """(n_layers,) bool: layers that cost more than their skip adapter."""
        return self.savings > 0

    @cached_property
    def range(self) -> tuple[float, float]:
        """Smallest and largest share that any mask saves."""
        low, high = self.saved(np.stack((~self.saves, self.saves)))
        return float(low), float(high)


@dataclass(frozen=True, eq=False)
class Budget:
    """Exactly `skip_num` layers are skipped, or at least the share `macs_saved` of the MACs is saved; neither: any mask.

    Args:
        n_layers: Number of skippable layers.
        skip_num: 0..n_layers, or None.
        macs_saved: Share of the full model's MACs, from 0 to what the best mask saves, or None.
        macs: What masks cost; needed with `macs_saved`.

    Raises:
        ValueError: both are given, or no mask can satisfy it.
    """

    n_layers: int
    skip_num: int | None = None
    macs_saved: float | None = None
    macs: LayerMacs | None = None

    def __post_init__(self) -> None:
        if self.skip_num is not None and self.macs_saved is not None:
            raise ValueError(
                f"skip_num={self.skip_num} and macs_saved={self.macs_saved} are both given; a mask is bound by one budget: "
                "leave one of them out"
            )
        if self.skip_num is not None:
            self._check_count(self.skip_num)
        if self.macs_saved is not None:
            self._check_saving(self.macs_saved)

    def _check_count(self, skip_num: Any) -> None:
        if isinstance(skip_num, bool) or not isinstance(skip_num, (int, np.integer)):
            raise ValueError(f"skip_num={skip_num!r} is not a whole number; use 0..{self.n_layers}, or None for any number")
        if not 0 <= skip_num <= self.n_layers:
            raise ValueError(f"skip_num={skip_num}: the model has {self.n_layers} skippable layers; use 0..{self.n_layers}")

    def _check_saving(self, macs_saved: Any) -> None:
        if self.macs is None:
            raise ValueError("a budget in MACs needs to know what masks cost: give macs=LayerMacs.of(costs)")
        most = self.macs.range[1]
        reachable = math.floor(most * 1e4) / 1e4  # rounded down: who types it in is not refused again
        largest = f"the most that any mask of this model saves is {reachable:.4f} ({100 * reachable:.2f} %)"
        if not _from_zero(macs_saved):
            raise ValueError(f"macs_saved={macs_saved!r} is no share of MACs; give one such as 0.12; {largest}")
        if macs_saved > most:
            hint = "it is a share, not a percentage; " if macs_saved > 1 else ""
            raise ValueError(f"macs_saved={macs_saved} is out of reach: {hint}{largest}; ask for that or less")

    def violations(self, masks: np.ndarray) -> np.ndarray:
        """(m,) by how much (0..1) each mask misses the budget: share of layers, or of MACs; 0 = feasible."""
        if self.skip_num is not None:
            return np.abs(masks.sum(axis=1) - self.skip_num) / self.n_layers
        if self.macs_saved is not None and self.macs is not None:
            return np.clip(self.macs_saved - self.macs.saved(masks), 0.0, 1.0)
        return np.zeros(len(masks))

    def left(self, masks: np.ndarray) -> np.ndarray:
        """(m,) 0..1, what is still to skip: share of layers, or of MACs; without a budget all layers not skipped."""
        if self.macs_saved is not None:
            return self.violations(masks)
        count = self.n_layers if self.skip_num is None else self.skip_num
        return np.maximum(count - masks.sum(axis=1), 0) / self.n_layers

    def describe(self) -> str:
        """In words."""
        if self.macs_saved is not None:
            return f"at least {100 * self.macs_saved:g} % of the MACs saved"
        return "any number of layers" if self.skip_num is None else f"exactly {self.skip_num} of {self.n_layers} layers"


@dataclass(frozen=True, eq=False)
class Objective:
    """Budget, reward and price together: what a mask earns.

    reward(mask) + macs_price * macs_saved(mask)   where the budget is kept
    low - violation(mask)                          elsewhere

    Args:
        budget: What a mask must satisfy.
        reward: What it earns.
        macs: What it costs.
        macs_price: What saving all MACs of the full model would be worth, in units of the reward, at least 0.

    Raises:
        ValueError: a price that is no number from 0 on.
    """

    budget: Budget
    reward: Reward
    macs: LayerMacs
    macs_price: float = 0.0

    def __post_init__(self) -> None:
        if not _from_zero(self.macs_price):
            raise ValueError(
                f"macs_price={self.macs_price!r} is not allowed; give a number from 0 on: the worth of saving all MACs"
            )

    @property
    def low(self) -> float:
        """No feasible mask earns less."""
        return self.reward.low + self.macs_price * self.macs.range[0]

    @property
    def high(self) -> float:
        """No mask earns more."""
        return self.reward.high + self.macs_price * self.macs.range[1]

    def rewards(self, masks: np.ndarray, measured: Measured) -> np.ndarray:
        """(m,) float64: what each of (m, n_layers) masks earns; never NaN.

        Where a reward cannot be computed (no finite loss), it is the lowest. A mask off the budget earns less than every
        feasible one, and the less the further off, so that an agent that starts far away finds its way.
        """
        violations = self.budget.violations(masks)
        with np.errstate(over="ignore"):
            earned = np.nan_to_num(self.reward.compute(measured), nan=self.reward.low)
        earned = np.clip(earned, self.reward.low, self.reward.high) + self.macs_price * self.macs.saved(masks)
        below = np.minimum(self.low - violations, np.nextafter(self.low, -np.inf))
        return np.where(violations > 0, below, earned)


def _from_zero(value: Any) -> bool:
    """Whether it is a number from 0 on, and not infinite."""
    return isinstance(value, Real) and not isinstance(value, bool) and 0 <= float(value) < math.inf


def pick_budget(n_layers: int, skip_num: int | str | None, macs_saved: float | None, macs: LayerMacs) -> Budget:
    """The budget of an environment, whose `skip_num="auto"` means 4 layers unless `macs_saved` is given."""
    if skip_num == "auto":
        skip_num = min(4, n_layers) if macs_saved is None else None
    return Budget(n_layers, skip_num, macs_saved, macs)  # type: ignore[arg-type]  # another text is refused there
