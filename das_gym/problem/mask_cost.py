"""What any mask costs, for many masks at once: MACs, parameters, bytes and milliseconds all add up over units."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from das_gym.config import check_names
from das_gym.files import at_home, read_json
from das_gym.problem.cost_kinds import COST_KINDS, SAVED

if TYPE_CHECKING:
    from das_gym.problem.loading import Problem


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

        Rounded once, so that a mask that saves 20 of 100 MACs satisfies a budget of 0.2.
        """
        return (self.full - self.amounts(masks)) / self.full

    def without(self, layers: np.ndarray) -> MaskCost:
        """Return the cost of the model that is left, the new baseline, when (n_layers,) bool units are removed."""
        left = self.amounts(layers[None])[0].item()
        return MaskCost(left, left, self.savings[~layers], self.setting)

    @property
    def saves(self) -> np.ndarray:
        """(n_layers,) bool: units that cost more than their skip adapter."""
        return self.savings > 0

    @cached_property
    def range(self) -> tuple[float, float]:
        """Smallest and largest share that any mask saves."""
        low, high = self.saved(np.stack((~self.saves, self.saves)))
        return float(low), float(high)


def measure_cost(problem: Problem, setting: str, latency_batch: int = 1) -> MaskCost:
    """Return one kind of cost of a problem's masks; time is measured with `latency_batch` examples per forward pass."""
    return COST_KINDS[setting].measure(problem, latency_batch)


def given_costs(costs: Mapping[str, Any] | str | None) -> dict[str, MaskCost]:
    """Return the costs of masks by setting, as the argument `costs` of an environment gives them.

    These are the values of `MaskCost.as_dict` by keys of `SAVED`, or the path of a JSON file with them under `costs`.
    """
    read: Any = read_json(at_home(costs)) if isinstance(costs, str) else {"costs": costs or {}}
    given = read.get("costs", {}) if isinstance(read, Mapping) else None
    if not isinstance(given, Mapping):
        raise ValueError(f"`costs` is not a file of costs: got {costs}, expected a latency file that das_gym wrote")
    try:
        check_names(given, SAVED, "cost")
        return {setting: _given(setting, figures) for setting, figures in given.items()}
    except ValueError as error:
        raise ValueError(f"{costs}: {error}" if isinstance(costs, str) else str(error)) from error


def _given(setting: str, figures: Any) -> MaskCost:
    try:
        full, unskipped = float(figures["full"]), float(figures["unskipped"])
        savings = np.array(figures["savings"], dtype=float)
        if savings.ndim != 1 or not (full > 0 and np.isfinite([full, unskipped, *savings]).all()):
            raise ValueError("`savings` is no list, a number is not finite, or `full` is not above 0")
    except (KeyError, TypeError, ValueError, ArithmeticError) as error:
        expected = "finite numbers: `full` above 0, `unskipped`, and `savings` of each unit"
        raise ValueError(f"`costs.{setting}` is invalid ({error!r}): expected {expected}") from error
    return MaskCost(full, unskipped, savings, setting)
