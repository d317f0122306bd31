"""The constraint on a mask: a number of units to skip, or a share of what the full model costs to save.

MACs, parameters, bytes and milliseconds all add up over units (`MaskCost`). A kind of cost that a budget can limit is one
entry of `COST_KINDS` and one field of `BudgetSettings`.
"""

from __future__ import annotations

import math
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from das_gym.commands.settings import Settings
from das_gym.files import expand_home, read_json
from das_gym.names import check_names

if TYPE_CHECKING:
    from das_gym.problem.problem import Problem

DEFAULT_SKIP_NUM = 4
"""The paper's k: layers to skip unless a budget is given."""

Masks = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class MaskCost:
    """The cost of any mask, by one measure.

    Attributes:
        full: Cost of the full model without adapters, to which savings are relative.
        unskipped: Cost of the full model with its adapters.
        savings: (n_layers,) int64 or float64, the cost that skipping each unit takes off `unskipped`.
        setting: Its key in `SAVED`, such as `macs_saved`.
    """

    full: float
    unskipped: float
    savings: np.ndarray
    setting: str = "macs_saved"

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, as `costs` of an environment takes them: `full`, `unskipped`, `savings`."""
        return {"full": self.full, "unskipped": self.unskipped, "savings": self.savings.tolist()}

    def amounts(self, masks: np.ndarray) -> np.ndarray:
        """Return the (m,) costs of (m, n_layers) bool masks: int64, or float64 for milliseconds."""
        return self.unskipped - masks.astype(np.int64) @ self.savings

    def saved(self, masks: np.ndarray) -> np.ndarray:
        """Return the share of `full` that each mask saves, (m,) float64; negative if adapters cost more than is skipped.

        Divided last, so that a mask that saves 20 of 100 MACs satisfies a budget of 0.2: 1 - 80 / 100 is a little less.
        """
        return (self.full - self.amounts(masks)) / self.full

    @property
    def saves(self) -> np.ndarray:
        """(n_layers,) bool: units that cost more than their skip adapter."""
        return self.savings > 0

    @cached_property
    def range(self) -> tuple[float, float]:
        """The smallest and largest share that any mask saves."""
        low, high = self.saved(np.stack((~self.saves, self.saves)))
        return float(low), float(high)


@dataclass(frozen=True)
class CostKind:
    """A cost of which a budget can ask for a share.

    Attributes:
        word: What is saved, in words.
        measure: Called with a problem and the batch size for timing; returns the cost of its masks.
        counted: Whether it is counted, not timed: the same on every machine.
    """

    word: str
    measure: Callable[[Problem, int], MaskCost]
    counted: bool = True


def _latency(problem: Problem, batch: int) -> MaskCost:
    # By name, since it imports torch, which environments from tables must not.
    return pkgutil.resolve_name("das_gym.problem.latency:unit_latencies")(problem, batch).cost


COST_KINDS: dict[str, CostKind] = {
    "macs_saved": CostKind("MACs", lambda problem, _: problem.costs.macs_cost),
    "latency_saved": CostKind("latency", _latency, counted=False),
    "parameters_saved": CostKind("parameters", lambda problem, _: problem.costs.parameters_cost),
    # Bytes of the weights in the type in which they are loaded. Activations and key-value caches depend on the input.
    "memory_saved": CostKind("memory", lambda problem, _: problem.costs.memory),
}
"""Every cost by the setting that asks for a share of it."""

SAVED = {setting: kind.word for setting, kind in COST_KINDS.items()}
"""The settings that ask for a share of a cost, and the word for what each saves."""


@dataclass(frozen=True, kw_only=True)
class BudgetSettings(Settings, group="Budget"):
    """A budget as a user gives it: how many units to skip, or the share of one cost to save. At most one of them.

    Attributes:
        skip_num: Exactly how many layers to skip, at least 0. `auto` is 4 if no share to save is given. None sets no
            number.
        macs_saved: Least fraction of the MACs of the baseline, the full model without adapters, to save, 0..1, such as 0.12.
        latency_saved: Least fraction of the latency to save, 0..1, as measured on this machine.
        parameters_saved: Least fraction of the parameters to save, 0..1.
        memory_saved: Least fraction of the memory of the weights (bytes) to save, 0..1.
    """

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


def measure_cost(problem: Problem, setting: str, latency_batch: int = 1) -> MaskCost:
    """Return one kind of cost of a problem's masks; time is measured with `latency_batch` examples per forward pass."""
    return COST_KINDS[setting].measure(problem, latency_batch)


def given_costs(costs: Mapping[str, Any] | str | None) -> dict[str, MaskCost]:
    """Return the costs of masks by setting, as the argument `costs` of an environment gives them.

    These are the values of `MaskCost.as_dict` by keys of `SAVED`, or the path of a JSON file with them under `costs`.
    """
    source = f"{costs}: " if isinstance(costs, str) else ""
    try:
        given = read_json(expand_home(costs))["costs"] if isinstance(costs, str) else costs or {}
        check_names(given, SAVED, "cost")
        return {setting: _given(setting, figures) for setting, figures in given.items()}
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{source}`costs` are invalid: {error}") from error


def _given(setting: str, figures: Mapping[str, Any]) -> MaskCost:
    try:
        full = float(figures["full"])
        unskipped = float(figures["unskipped"])
        savings = np.array(figures["savings"], dtype=float)
        if savings.ndim != 1 or not (full > 0 and np.isfinite([full, unskipped, *savings]).all()):
            raise ValueError("`savings` is not a list, a number is not finite, or `full` is not above 0")
    except (KeyError, TypeError, ValueError, ArithmeticError) as error:
        raise ValueError(
            f"`{setting}` is not a cost: got {figures!r:.100}, expected finite `full` above 0, `unskipped` and `savings`"
        ) from error
    return MaskCost(full, unskipped, savings, setting)


@dataclass(frozen=True, eq=False)
class Budget:
    """A constraint: exactly `skip_num` units are skipped, or at least the share `saved` of a cost is saved, or neither.

    Args:
        n_layers: Number of skippable units.
        skip_num: 0..n_layers, or None.
        saved: Share of what the full model costs, from 0 to the largest that any mask saves, or None.
        cost: The cost that `saved` is a share of, of masks of `n_layers` units; needed with `saved`.

    Raises:
        ValueError: Both are given, a number is out of range, or no mask can satisfy it.

    Example:
        >>> import numpy as np
        >>> Budget(n_layers=4, skip_num=2).is_feasible(np.array([[1, 1, 0, 0], [1, 0, 0, 0]], dtype=bool))
        array([ True, False])
    """

    n_layers: int
    skip_num: int | None = None
    saved: float | None = None
    cost: MaskCost | None = None

    def __post_init__(self) -> None:
        if not is_whole(self.n_layers) or self.n_layers < 1:
            raise ValueError(f"`n_layers` is out of range: got {self.n_layers!r}, expected a whole number of at least 1")
        setting = "saved" if self.cost is None else self.cost.setting
        check_budget({"skip_num": self.skip_num, setting: self.saved}, self.n_layers)
        if self.saved is None:
            return
        if self.cost is None or self.cost.savings.shape != (self.n_layers,):
            given = "none" if self.cost is None else f"that of {len(self.cost.savings)} units"
            raise ValueError(f"`costs` do not fit `{setting}`: got {given}, expected the cost of {self.n_layers} units")
        most = self.cost.range[1]
        if self.saved > most:
            reachable = math.floor(most * 1e4) / 1e4  # rounded down, so that the number in the message is accepted
            raise ValueError(
                f"`{setting}` is out of reach: got {self.saved}, but masks of this model save at most {reachable:.4f} "
                f"({100 * reachable:.2f} %). Ask for that or less, or give `skip_num`."
            )

    @property
    def is_free(self) -> bool:
        """Whether every mask satisfies it."""
        return self.skip_num is None and self.saved is None

    @property
    def settings(self) -> dict[str, Any]:
        """Keyword arguments of an environment with this budget: `skip_num`, and a share to save such as `macs_saved`."""
        skip_num = None if self.skip_num is None else int(self.skip_num)
        return {"skip_num": skip_num, **({} if self.cost is None or self.saved is None else {self.cost.setting: self.saved})}

    def as_dict(self) -> dict[str, Any]:
        """Return plain values: `n_layers` and `settings`."""
        return {"n_layers": int(self.n_layers), **self.settings}

    def violations(self, masks: np.ndarray) -> np.ndarray:
        """Return how far (m, n_layers) masks miss the budget: (m,) float64 shares of the units or the cost, 0 = feasible."""
        if self.skip_num is not None:
            return np.abs(masks.sum(axis=1) - self.skip_num) / self.n_layers
        if self.saved is not None and self.cost is not None:
            return np.clip(self.saved - self.cost.saved(masks), 0.0, 1.0)
        return np.zeros(len(masks))

    def is_feasible(self, masks: np.ndarray) -> Masks:
        """Return (m,) bool: which of (m, n_layers) masks satisfy it."""
        return self.violations(masks) == 0

    def remaining(self, masks: np.ndarray) -> np.ndarray:
        """Return what is left of the budget: (m,) float64 shares of the cost, or of the units if none is to be saved."""
        if self.saved is not None:
            return self.violations(masks)
        count = self.n_layers if self.skip_num is None else self.skip_num
        return np.maximum(count - masks.sum(axis=1), 0) / self.n_layers

    @property
    def useful_layers(self) -> Masks:
        """(n_layers,) bool: units whose skipping helps to satisfy the budget; with `saved`, those that save any cost."""
        if self.saved is not None and self.cost is not None:
            return self.cost.saves
        return np.ones(self.n_layers, dtype=bool)

    def skip_highest(self, scores: np.ndarray) -> Masks:
        """Return (m, n_layers) bool masks that skip the units with the highest of (m, n_layers) scores.

        Of equal scores, the first unit's comes first. With `skip_num`, that many units are skipped. With `saved`, units that
        save any cost are skipped until the share is reached. Without a budget, all units with a score above 0 are skipped.
        """
        if self.is_free:
            return scores > 0
        if self.skip_num is not None:
            highest = np.argsort(-scores, axis=1, kind="stable")[:, : self.skip_num]
            masks = np.zeros(scores.shape, dtype=bool)
            masks[np.arange(len(scores))[:, None], highest] = True
            return masks
        # `lexsort` sorts by its last key first: units that save something come before the others.
        order = np.lexsort((-scores, np.broadcast_to(~self.useful_layers, scores.shape)), axis=1)
        ranks = np.argsort(order, axis=1)
        prefixes = ranks[:, None] < np.arange(self.n_layers + 1)[:, None]  # the 0, 1, ..., n highest of each row
        kept = self.is_feasible(prefixes.reshape(-1, self.n_layers)).reshape(len(scores), -1)
        return prefixes[np.arange(len(scores)), kept.argmax(axis=1)]

    def describe(self) -> str:
        """Return the budget in words, such as `exactly 4 of 12 layers`."""
        if self.saved is not None and self.cost is not None:
            return f"at least {100 * self.saved:g} % of the {SAVED[self.cost.setting]} saved"
        return "any number of layers" if self.skip_num is None else f"exactly {self.skip_num} of {self.n_layers} layers"


def check_budget(budget: Mapping[str, Any], n_layers: int | None = None) -> None:
    """Raise a ValueError for more than one budget, or one out of range; None and `skip_num="auto"` mean none."""
    given = {name: value for name, value in budget.items() if value is not None and (name, value) != ("skip_num", "auto")}
    if len(given) > 1:
        both = " and ".join(f"{name}={value}" for name, value in given.items())
        raise ValueError(f"more than one budget: got {both}, expected one. Leave the others out.")
    for name, value in given.items():
        if name != "skip_num":
            if not (is_non_negative(value) and value <= 1):
                raise ValueError(f"`{name}` is out of range: got {value!r}, expected a share from 0 to 1, such as 0.12")
        elif not is_whole(value) or value < 0 or (n_layers is not None and value > n_layers):
            most = "at least 0" if n_layers is None else f"from 0 to {n_layers}, the number of skippable layers"
            raise ValueError(f"`skip_num` is out of range: got {value!r}, expected an integer {most}, or None")


def pick_budget(
    n_layers: int, budget: Mapping[str, Any], cost_of: Callable[[str], MaskCost], max_skipped: int | None = None
) -> Budget:
    """Return the budget of `n_layers` units from fields of `BudgetSettings`; `cost_of` is called for the cost to save.

    Without a share to save, a missing or "auto" `skip_num` means 4, or `n_layers` or `max_skipped` if that is less.
    """
    check_budget({name: budget.get(name) for name in BUDGET_SETTINGS}, n_layers)
    saved = {name: budget[name] for name in SAVED if budget.get(name) is not None}
    if saved:
        ((setting, share),) = saved.items()
        return Budget(n_layers, saved=share, cost=cost_of(setting))
    skip_num = budget.get("skip_num", "auto")
    if skip_num == "auto":
        skip_num = min(DEFAULT_SKIP_NUM, n_layers, n_layers if max_skipped is None else max_skipped)
    return Budget(n_layers, skip_num)


def satisfies_budget(budget: Mapping[str, Any], mask: Sequence[int], macs_saved: float) -> bool:
    """Return True if a mask, 0 or 1 per layer, satisfies the budget in an environment's arguments (with `costs`)."""
    if budget.get("skip_num") is not None and sum(mask) != budget["skip_num"]:
        return False
    for name in SAVED:
        if budget.get(name) is not None:
            row = np.array([mask], dtype=bool)
            saved = macs_saved if name == "macs_saved" else given_costs(budget["costs"])[name].saved(row)[0]
            if saved < budget[name]:
                return False
    return True


def is_non_negative(value: Any) -> bool:
    """Return True for a finite number of at least 0; False for a bool."""
    return isinstance(value, Real) and not isinstance(value, bool) and 0 <= float(value) < math.inf


def is_whole(value: Any) -> bool:
    """Return True for an integer, also one of numpy; False for a bool."""
    return isinstance(value, Integral) and not isinstance(value, bool)
