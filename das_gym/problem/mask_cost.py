"""What masks cost: MACs, parameters, bytes and milliseconds all add up over units.

A kind of cost that a budget can limit is one entry of `COST_KINDS` and one field of `BudgetSettings`.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from das_gym.commands.settings import Settings
from das_gym.files import at_home, read_json
from das_gym.names import check_names

if TYPE_CHECKING:
    from das_gym.problem.loading import Problem

DEFAULT_SKIP_NUM = 4
"""The paper's k: layers to skip unless a budget is given."""


@dataclass(frozen=True, eq=False)
class MaskCost:
    """The cost of any mask, by one measure.

    Attributes:
        full: The full model without adapters: the baseline of savings.
        unskipped: The full model with its adapters.
        savings: (n_layers,) int64 or float64, what skipping each unit takes off `unskipped`.
        setting: The key of `SAVED` that asks for a share of it.
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
        """Return (m,) float64: the share of `full` that each mask saves, negative where adapters cost more than it skips.

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
    return pkgutil.resolve_name("das_gym.problem.latency:latency_of")(problem, batch).cost


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
class BudgetSettings(Settings):
    """A budget as a user gives it: how many units to skip, or the share of one cost to save. At most one of them.

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


def measure_cost(problem: Problem, setting: str, latency_batch: int = 1) -> MaskCost:
    """Return one kind of cost of a problem's masks; time is measured with `latency_batch` examples per forward pass."""
    return COST_KINDS[setting].measure(problem, latency_batch)


def given_costs(costs: Mapping[str, Any] | str | None) -> dict[str, MaskCost]:
    """Return the costs of masks by setting, as the argument `costs` of an environment gives them.

    These are the values of `MaskCost.as_dict` by keys of `SAVED`, or the path of a JSON file with them under `costs`.
    """
    source = f"{costs}: " if isinstance(costs, str) else ""
    try:
        given = read_json(at_home(costs))["costs"] if isinstance(costs, str) else costs or {}
        check_names(given, SAVED, "cost")
        return {setting: _given(setting, figures) for setting, figures in given.items()}
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{source}`costs` are invalid: {error}") from error


def _given(setting: str, figures: Mapping[str, Any]) -> MaskCost:
    try:
        full, unskipped = float(figures["full"]), float(figures["unskipped"])
        savings = np.array(figures["savings"], dtype=float)
        if savings.ndim != 1 or not (full > 0 and np.isfinite([full, unskipped, *savings]).all()):
            raise ValueError("`savings` is not a list, a number is not finite, or `full` is not above 0")
    except (KeyError, TypeError, ValueError, ArithmeticError) as error:
        raise ValueError(f"`{setting}` needs finite `full` above 0, `unskipped` and `savings` ({error!r})") from error
    return MaskCost(full, unskipped, savings, setting)
