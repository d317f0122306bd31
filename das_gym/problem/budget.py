"""What a mask must satisfy: exactly so many units skipped, or at least so much saved of what the full model costs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from das_gym.problem.mask_cost import SAVED, MaskCost, given_costs

Masks = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]

DEFAULT_SKIP_NUM = 4
"""The paper's k: layers to skip where nobody says how many."""


@dataclass(frozen=True, kw_only=True)
class BudgetSettings:
    """A budget as a person says it: how many units to skip, or the share of one cost to save. One of them, not more.

    Attributes:
        skip_num: Exactly how many layers to skip, at least 0. `auto` is 4 if no share to save is given. None sets no
            number.
        macs_saved: Least fraction of the MACs of the baseline, the full model without adapters, to save, 0..1, such as 0.12.
        latency_saved: Least fraction of the latency to save, 0..1, as measured on this machine.
        parameters_saved: Least fraction of the parameters to save, 0..1.
        memory_saved: Least fraction of the memory of the weights (bytes) to save, 0..1.
    """

    group: ClassVar[str] = "Budget"

    skip_num: int | Literal["auto"] | None = "auto"
    macs_saved: float | None = None
    latency_saved: float | None = None
    parameters_saved: float | None = None
    memory_saved: float | None = None

    @property
    def budget(self) -> dict[str, Any]:
        """The budget as an environment takes it: `skip_num`, and the share that is given."""
        saved = {name: getattr(self, name) for name in SAVED if getattr(self, name) is not None}
        if saved:
            return {"skip_num": None if self.skip_num == "auto" else self.skip_num, **saved}
        return {"skip_num": DEFAULT_SKIP_NUM if self.skip_num == "auto" else self.skip_num}


BUDGET_SETTINGS = ("skip_num", *SAVED)
"""The fields of `BudgetSettings`."""


@dataclass(frozen=True, eq=False)
class Budget:
    """Exactly `skip_num` units are skipped, or at least the share `saved` of a cost is saved; neither: any mask.

    Args:
        n_layers: Number of skippable units, at least 1.
        skip_num: 0..n_layers, or None.
        saved: Share of what the full model costs, from 0 to what the best mask saves, or None.
        cost: What masks cost; needed with `saved`.

    Raises:
        ValueError: both are given, a number outside its range, or no mask can satisfy it.
    """

    n_layers: int
    skip_num: int | None = None
    saved: float | None = None
    cost: MaskCost | None = None

    def __post_init__(self) -> None:
        if not is_whole(self.n_layers) or self.n_layers < 1:
            raise ValueError(f"n_layers={self.n_layers!r} is not allowed; give a whole number, at least 1 skippable layer")
        setting = "saved" if self.cost is None else self.cost.setting
        check_budget({"skip_num": self.skip_num, setting: self.saved}, self.n_layers)
        if self.saved is not None:
            self._check_reach(self.saved)

    def _check_reach(self, saved: float) -> None:
        if self.cost is None:
            raise ValueError("a budget by cost needs to know what masks cost: give cost=MaskCost.of(costs)")
        if self.cost.savings.shape != (self.n_layers,):
            raise ValueError(f"costs of {len(self.cost.savings)} layers; give those of the {self.n_layers} skippable ones")
        most = self.cost.range[1]
        if most < 0:
            raise ValueError(
                f"{self.cost.setting}={saved} is out of reach: with its adapters this model costs more than without, "
                "whatever is skipped; give skip_num"
            )
        if saved > most:
            reachable = math.floor(most * 1e4) / 1e4  # rounded down: who types it in is not refused again
            raise ValueError(
                f"{self.cost.setting}={saved} is out of reach: the most that any mask of this model saves is "
                f"{reachable:.4f} ({100 * reachable:.2f} %); ask for that or less"
            )

    @property
    def is_free(self) -> bool:
        """Whether every mask satisfies it."""
        return self.skip_num is None and self.saved is None

    @property
    def settings(self) -> dict[str, Any]:
        """As an environment takes it, in plain values: `skip_num`, and the share that is to be saved by its name."""
        skip_num = None if self.skip_num is None else int(self.skip_num)
        return {"skip_num": skip_num, **({} if self.cost is None or self.saved is None else {self.cost.setting: self.saved})}

    @property
    def known_costs(self) -> dict[str, Any]:
        """What an environment is given besides, so that it binds the same masks elsewhere: `costs`; empty for MACs."""
        if self.cost is None or self.cost.setting == "macs_saved":
            return {}
        return {"costs": {self.cost.setting: self.cost.as_dict()}}

    def as_dict(self) -> dict[str, Any]:
        """In plain values: `n_layers` and `settings`."""
        return {"n_layers": int(self.n_layers), **self.settings}

    def violations(self, masks: np.ndarray) -> np.ndarray:
        """(m,) by how much (0..1) each mask misses the budget: share of units, or of the cost; 0 = feasible."""
        if self.skip_num is not None:
            return np.abs(masks.sum(axis=1) - self.skip_num) / self.n_layers
        if self.saved is not None and self.cost is not None:
            return np.clip(self.saved - self.cost.saved(masks), 0.0, 1.0)
        return np.zeros(len(masks))

    def is_kept_by(self, masks: np.ndarray) -> Masks:
        """(m,) bool: which of (m, n_layers) masks satisfy it."""
        return self.violations(masks) == 0

    def left(self, masks: np.ndarray) -> np.ndarray:
        """(m,) 0..1, what is still to skip: share of units, or of the cost; without a budget all units not skipped."""
        if self.saved is not None:
            return self.violations(masks)
        count = self.n_layers if self.skip_num is None else self.skip_num
        return np.maximum(count - masks.sum(axis=1), 0) / self.n_layers

    @property
    def useful_layers(self) -> Masks:
        """(n_layers,) bool: units that serve the budget: all, but of a budget by cost those that save anything."""
        if self.saved is not None and self.cost is not None:
            return self.cost.saves
        return np.ones(self.n_layers, dtype=bool)

    def skip_highest(self, scores: np.ndarray) -> Masks:
        """(m, n_layers) masks of (m, n_layers) scores: units are skipped from the highest down, of equal ones the first.

        With `skip_num` so many; by cost as many as reach the saving, of those that save anything; without a
        budget those above 0.
        """
        if self.is_free:
            return scores > 0
        if self.skip_num is not None:
            highest = np.argsort(-scores, axis=1, kind="stable")[:, : self.skip_num]
            masks = np.zeros(scores.shape, dtype=bool)
            masks[np.arange(len(scores))[:, None], highest] = True
            return masks
        order = np.lexsort((-scores, np.broadcast_to(~self.useful_layers, scores.shape)), axis=1)
        ranks = np.argsort(order, axis=1)
        prefixes = ranks[:, None] < np.arange(self.n_layers + 1)[:, None]  # the 0, 1, ..., n highest of each row
        kept = self.is_kept_by(prefixes.reshape(-1, self.n_layers)).reshape(len(scores), -1)
        return prefixes[np.arange(len(scores)), kept.argmax(axis=1)]

    def describe(self) -> str:
        """In words."""
        if self.saved is not None and self.cost is not None:
            return f"at least {100 * self.saved:g} % of the {SAVED[self.cost.setting]} saved"
        return "any number of layers" if self.skip_num is None else f"exactly {self.skip_num} of {self.n_layers} layers"


def check_budget(budget: Mapping[str, Any], n_layers: int | None = None) -> None:
    """Refuse what is no budget of a model of `n_layers` skippable units, or of any model.

    Args:
        budget: `skip_num` and shares to save by name; None = not given, and so is `skip_num="auto"`.
        n_layers: How many units there are; None = nobody knows yet.

    Raises:
        ValueError: more than one is given; no whole number from 0 to `n_layers`; no share from 0 to 1.
    """
    given = {name: value for name, value in budget.items() if value is not None and (name, value) != ("skip_num", "auto")}
    if len(given) > 1:
        *first, last = (f"{name}={value}" for name, value in given.items())
        many, out = ("both", "one of them") if len(given) == 2 else ("all", "all but one")
        raise ValueError(f"{', '.join(first)} and {last} are {many} given; a mask is bound by one budget: leave {out} out")
    skip_num = given.pop("skip_num", None)
    if skip_num is not None and not (is_whole(skip_num) and 0 <= skip_num <= (skip_num if n_layers is None else n_layers)):
        if n_layers is None:
            raise ValueError(f"skip_num={skip_num!r} is not allowed; give a whole number from 0 on, or None")
        raise ValueError(
            f"skip_num={skip_num!r}: the model has {n_layers} skippable layers; use 0..{n_layers}, a whole number, or None"
        )
    for name, saved in given.items():
        if not (is_from_zero(saved) and saved <= 1):
            raise ValueError(f"{name}={saved!r} is not allowed; give a share from 0 to 1, such as 0.12 for 12 %")


def pick_budget(n_layers: int, budget: Mapping[str, Any], cost_of: Callable[[str], MaskCost]) -> Budget:
    """The budget of an environment or a search.

    Args:
        n_layers: Number of skippable units.
        budget: Fields of `BudgetSettings`; `skip_num="auto"`, or a field left out, is 4 units at most, or what shares leave.
        cost_of: What masks cost, by a key of `SAVED`; asked for no other than the one that is to be saved.

    Raises:
        ValueError: what `check_budget` or `Budget` refuses.
    """
    check_budget(budget, n_layers)
    saved = {name: budget[name] for name in SAVED if budget.get(name) is not None}
    if saved:
        ((setting, share),) = saved.items()
        return Budget(n_layers, saved=share, cost=cost_of(setting))
    skip_num = budget.get("skip_num", "auto")
    return Budget(n_layers, min(DEFAULT_SKIP_NUM, n_layers) if skip_num == "auto" else skip_num)


def keeps_budget(budget: Mapping[str, Any], mask: Sequence[int], macs_saved: float) -> bool:
    """Whether a mask that was scored keeps a budget, by what a record tells.

    Args:
        budget: As an environment takes it, and whatever else; what is missing or None binds nothing. A share of another cost
            than MACs comes with `costs`.
        mask: 0/1 a unit.
        macs_saved: Share of MACs that it saves.
    """
    if budget.get("skip_num") is not None and sum(mask) != budget["skip_num"]:
        return False
    for name in SAVED:
        if budget.get(name) is not None:
            row = np.array([mask], dtype=bool)
            saved = macs_saved if name == "macs_saved" else given_costs(budget["costs"])[name].saved(row)[0]
            if saved < budget[name]:
                return False
    return True


def is_from_zero(value: Any) -> bool:
    """Whether it is a number from 0 on, and not infinite."""
    return isinstance(value, Real) and not isinstance(value, bool) and 0 <= float(value) < math.inf


def is_whole(value: Any) -> bool:
    """Whether it is a whole number."""
    return isinstance(value, Integral) and not isinstance(value, bool)
