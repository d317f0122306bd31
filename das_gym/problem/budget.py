"""What a mask must satisfy: exactly so many layers skipped, or at least so many of the MACs saved."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from das_gym.problem.costs import Costs

Masks = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]

DEFAULT_SKIP_NUM = 4
"""The paper's k: layers to skip where nobody says how many."""


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
        n_layers: Number of skippable layers, at least 1.
        skip_num: 0..n_layers, or None.
        macs_saved: Share of the full model's MACs, from 0 to what the best mask saves, or None.
        macs: What masks cost; needed with `macs_saved`.

    Raises:
        ValueError: both are given, a number outside its range, or no mask can satisfy it.
    """

    n_layers: int
    skip_num: int | None = None
    macs_saved: float | None = None
    macs: LayerMacs | None = None

    def __post_init__(self) -> None:
        if not _is_whole(self.n_layers) or self.n_layers < 1:
            raise ValueError(f"n_layers={self.n_layers!r} is not allowed; give a whole number, at least 1 skippable layer")
        check_budget(self.skip_num, self.macs_saved, self.n_layers)
        if self.macs_saved is not None:
            self._check_reach(self.macs_saved)

    def _check_reach(self, macs_saved: float) -> None:
        if self.macs is None:
            raise ValueError("a budget in MACs needs to know what masks cost: give macs=LayerMacs.of(costs)")
        if self.macs.savings.shape != (self.n_layers,):
            raise ValueError(f"MACs of {len(self.macs.savings)} layers; give those of the {self.n_layers} skippable ones")
        most = self.macs.range[1]
        if macs_saved > most:
            reachable = math.floor(most * 1e4) / 1e4  # rounded down: who types it in is not refused again
            raise ValueError(
                f"macs_saved={macs_saved} is out of reach: the most that any mask of this model saves is {reachable:.4f} "
                f"({100 * reachable:.2f} %); ask for that or less"
            )

    @property
    def is_free(self) -> bool:
        """Whether every mask satisfies it."""
        return self.skip_num is None and self.macs_saved is None

    def as_dict(self) -> dict[str, Any]:
        """In plain values: `n_layers`, `skip_num`, `macs_saved`."""
        skip_num = None if self.skip_num is None else int(self.skip_num)
        return {"n_layers": int(self.n_layers), "skip_num": skip_num, "macs_saved": self.macs_saved}

    def violations(self, masks: np.ndarray) -> np.ndarray:
        """(m,) by how much (0..1) each mask misses the budget: share of layers, or of MACs; 0 = feasible."""
        if self.skip_num is not None:
            return np.abs(masks.sum(axis=1) - self.skip_num) / self.n_layers
        if self.macs_saved is not None and self.macs is not None:
            return np.clip(self.macs_saved - self.macs.saved(masks), 0.0, 1.0)
        return np.zeros(len(masks))

    def keeps(self, masks: np.ndarray) -> Masks:
        """(m,) bool: which of (m, n_layers) masks satisfy it."""
        return self.violations(masks) == 0

    def left(self, masks: np.ndarray) -> np.ndarray:
        """(m,) 0..1, what is still to skip: share of layers, or of MACs; without a budget all layers not skipped."""
        if self.macs_saved is not None:
            return self.violations(masks)
        count = self.n_layers if self.skip_num is None else self.skip_num
        return np.maximum(count - masks.sum(axis=1), 0) / self.n_layers

    @property
    def serving(self) -> Masks:
        """(n_layers,) bool: layers that serve the budget: all, but under `macs_saved` those that save anything."""
        if self.macs_saved is not None and self.macs is not None:
            return self.macs.saves
        return np.ones(self.n_layers, dtype=bool)

    def highest(self, scores: np.ndarray) -> Masks:
        """(m, n_layers) masks of (m, n_layers) scores: layers are skipped from the highest down, of equal ones the first.

        With `skip_num` so many; with `macs_saved` as many as reach the saving, of those that save anything; without a
        budget those above 0.
        """
        if self.is_free:
            return scores > 0
        order = np.lexsort((-scores, np.broadcast_to(~self.serving, scores.shape)), axis=1)
        ranks = np.argsort(order, axis=1)
        if self.skip_num is not None:
            return ranks < self.skip_num
        prefixes = ranks[:, None] < np.arange(self.n_layers + 1)[:, None]  # the 0, 1, ..., n highest of each row
        kept = self.keeps(prefixes.reshape(-1, self.n_layers)).reshape(len(scores), -1)
        return prefixes[np.arange(len(scores)), kept.argmax(axis=1)]

    def describe(self) -> str:
        """In words."""
        if self.macs_saved is not None:
            return f"at least {100 * self.macs_saved:g} % of the MACs saved"
        return "any number of layers" if self.skip_num is None else f"exactly {self.skip_num} of {self.n_layers} layers"


def check_budget(skip_num: Any, macs_saved: Any, n_layers: int | None = None) -> None:
    """Refuse what is no budget of a model of `n_layers` skippable layers, or of any model.

    Raises:
        ValueError: both are given; no whole number from 0 to `n_layers`; no share from 0 to 1.
    """
    if skip_num is not None and macs_saved is not None:
        raise ValueError(
            f"skip_num={skip_num} and macs_saved={macs_saved} are both given; a mask is bound by one budget: "
            "leave one of them out"
        )
    if skip_num is not None and not (_is_whole(skip_num) and 0 <= skip_num <= (skip_num if n_layers is None else n_layers)):
        if n_layers is None:
            raise ValueError(f"skip_num={skip_num!r} is not allowed; give a whole number from 0 on, or None")
        raise ValueError(
            f"skip_num={skip_num!r}: the model has {n_layers} skippable layers; use 0..{n_layers}, a whole number, or None"
        )
    if macs_saved is not None and not (is_from_zero(macs_saved) and macs_saved <= 1):
        raise ValueError(f"macs_saved={macs_saved!r} is not allowed; give a share from 0 to 1, such as 0.12 for 12 %")


def pick_budget(n_layers: int, skip_num: int | str | None, macs_saved: float | None, macs: LayerMacs | None) -> Budget:
    """The budget of an environment or a search, whose `skip_num="auto"` means 4 layers unless `macs_saved` is given."""
    if skip_num == "auto":
        skip_num = min(DEFAULT_SKIP_NUM, n_layers) if macs_saved is None else None
    return Budget(n_layers, skip_num, macs_saved, macs)  # type: ignore[arg-type]  # another text is refused there


def is_from_zero(value: Any) -> bool:
    """Whether it is a number from 0 on, and not infinite."""
    return isinstance(value, Real) and not isinstance(value, bool) and 0 <= float(value) < math.inf


def _is_whole(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)
