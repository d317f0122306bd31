"""What any mask costs, for many masks at once: MACs, parameters, bytes and milliseconds all add up over units."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from das_gym.config import check_names
from das_gym.files import at_home, read_json

if TYPE_CHECKING:
    from das_gym.problem.costs import Costs

SAVED = {
    "macs_saved": "MACs",
    "latency_saved": "latency",
    "parameters_saved": "parameters",
    "memory_saved": "memory",
}
"""The settings that ask for a share of a cost, and the word for what each saves.

MACs, see `das_gym.problem.costs`; latency, as this machine measured it, see `das_gym.problem.unit_latency`; parameters;
and memory: the bytes of the weights in the type in which they are loaded. What else a model takes while it answers
(activations, a decoder's keys and values) depends on what it is asked, and is not in it.
"""


@dataclass(frozen=True, eq=False)
class MaskCost:
    """What any mask costs, by one measure.

    Attributes:
        full: The full model without adapters: what savings refer to.
        unskipped: The model with adapters and nothing skipped.
        savings: (n_layers,) int64 or float64, what skipping each unit takes off `unskipped`.
        setting: The key of `SAVED` that asks for a share of it.
    """

    full: float
    unskipped: float
    savings: np.ndarray
    setting: str = "macs_saved"

    @classmethod
    def of(cls, costs: Costs, setting: str = "macs_saved") -> MaskCost:
        """Those of a model, by any measure that needs no clock."""
        if setting == "memory_saved":
            return costs.memory
        if setting == "parameters_saved":
            kept, skipped = costs.layer_parameters + costs.parallel_parameters, costs.skip_parameters
            base, full = costs.base_parameters + costs.head_parameters, costs.parameters_full
        else:
            kept, skipped = costs.layer_macs + costs.parallel_macs, costs.skip_macs
            base, full = costs.base_macs + costs.head_macs, costs.macs_full
        return cls(full, base + int(kept.sum()), kept - skipped, setting)

    def as_dict(self) -> dict[str, Any]:
        """In plain values, as `costs` of an environment takes them: `full`, `unskipped`, `savings`."""
        return {"full": self.full, "unskipped": self.unskipped, "savings": self.savings.tolist()}

    def amounts(self, masks: np.ndarray) -> np.ndarray:
        """(m,) what (m, n_layers) bool masks cost: int64, milliseconds float64."""
        return self.unskipped - masks.astype(np.int64) @ self.savings

    def saved(self, masks: np.ndarray) -> np.ndarray:
        """(m,) float64 share of `full` that each mask saves; negative where adapters cost more than it skips.

        Rounded once, so that a mask that saves 20 of 100 MACs keeps a budget of 0.2.
        """
        return (self.full - self.amounts(masks)) / self.full

    def without(self, layers: np.ndarray) -> MaskCost:
        """That of the model that is left, which is then the full one, when (n_layers,) bool units are skipped for good."""
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


def given_costs(costs: Mapping[str, Any] | str | None) -> dict[str, MaskCost]:
    """What masks cost, by the setting that asks for it, as `costs` of an environment gives it.

    Args:
        costs: From keys of `SAVED` to what `MaskCost.as_dict` gives, or the path of a JSON file with that under `costs`.

    Raises:
        ValueError: another key, or figures that are no costs.
        FileNotFoundError: no such file.
    """
    read: Any = read_json(at_home(costs)) if isinstance(costs, str) else {"costs": costs or {}}
    given = read.get("costs", {}) if isinstance(read, Mapping) else None
    if not isinstance(given, Mapping):
        raise ValueError(f"costs={costs} holds no object of costs; give the file of a latency that was measured")
    try:
        check_names(given, SAVED, "cost")
        return {setting: _given(setting, figures) for setting, figures in given.items()}
    except ValueError as error:
        raise ValueError(f"{costs}: {error}" if isinstance(costs, str) else str(error)) from error


def _given(setting: str, figures: Any) -> MaskCost:
    """One cost, as `MaskCost.as_dict` gives it."""
    try:
        full, unskipped = float(figures["full"]), float(figures["unskipped"])
        savings = np.array(figures["savings"], dtype=float)
    except (KeyError, TypeError, ValueError, ArithmeticError) as error:
        raise ValueError(f"costs.{setting} is no cost ({error!r}): give full, unskipped, savings of each unit") from error
    if savings.ndim != 1 or not (full > 0 and np.isfinite([full, unskipped, *savings]).all()):
        raise ValueError(f"costs.{setting} is no cost: give finite numbers, full above 0, and savings, one a unit")
    return MaskCost(full, unskipped, savings, setting)
