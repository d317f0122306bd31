"""The kinds of budgets: one entry of `COST_KINDS` and one field of `BudgetSettings` each."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

if TYPE_CHECKING:
    from das_gym.problem.loading import Problem
    from das_gym.problem.mask_cost import MaskCost


@dataclass(frozen=True)
class CostKind:
    """A cost of which a budget can ask for a share.

    Attributes:
        setting: The setting that asks for it.
        word: What is saved, in words.
        measure: From a problem, and the examples per forward pass where time is measured, to the cost of its masks.
        counted: Whether it is the same on every machine, so that tables hold it.
    """

    setting: str
    word: str
    measure: Callable[[Problem, int], MaskCost]
    counted: bool = True


def _latency(problem: Problem, batch: int) -> MaskCost:
    # By name, since it imports torch, which environments from tables must not.
    return pkgutil.resolve_name("das_gym.problem.unit_latency:latency_of")(problem, batch).cost


COST_KINDS: dict[str, CostKind] = {
    kind.setting: kind
    for kind in (
        CostKind("macs_saved", "MACs", lambda problem, _: problem.costs.macs_cost),
        CostKind("latency_saved", "latency", _latency, counted=False),
        CostKind("parameters_saved", "parameters", lambda problem, _: problem.costs.parameters_cost),
        # Bytes of the weights in the type in which they are loaded. Activations and key-value caches depend on the input.
        CostKind("memory_saved", "memory", lambda problem, _: problem.costs.memory),
    )
}
"""Every cost by its setting."""

SAVED = {setting: kind.word for setting, kind in COST_KINDS.items()}
"""The settings that ask for a share of a cost, and the word for what each saves."""

DEFAULT_SKIP_NUM = 4
"""The paper's k: layers to skip unless a budget is given."""


@dataclass(frozen=True, kw_only=True)
class BudgetSettings:
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
