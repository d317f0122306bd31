"""The layout of a model's units in figures and HTML pages: stages in a row, a lane for each kind of unit."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from das_gym.models.base import Layer
    from das_gym.problem.budget import MaskCost
    from das_gym.tables.table import SubnetTable


@dataclass(frozen=True)
class Unit:
    """The place of a unit.

    Attributes:
        name: As masks name it, such as `text.3`.
        lane: Its row: the name without numbers, `text`.
        label: Its label within the lane: the numbers, `3`.
        stage: Its column, from 0 on.
        share: Share of the full model's MACs that skipping it saves; None if unknown.
    """

    name: str
    lane: str
    label: str
    stage: int
    share: float | None


@dataclass(frozen=True)
class Architecture:
    """The units of a model, in mask order."""

    units: tuple[Unit, ...]

    @classmethod
    def from_names(
        cls, names: Sequence[str], stages: Sequence[int] | None = None, macs: MaskCost | None = None
    ) -> Architecture:
        """Return the architecture of units by name, with their stages (each its own if None) and their costs, if known."""
        shares = [None] * len(names) if macs is None else (np.maximum(macs.savings, 0) / macs.full).tolist()
        places = range(len(names)) if stages is None else stages
        return cls(tuple(Unit(n, *_split(n), p, s) for n, p, s in zip(names, places, shares, strict=True)))

    @classmethod
    def from_layers(cls, layers: Iterable[Layer], macs: MaskCost | None = None) -> Architecture:
        """Return the architecture of a model's units."""
        layers = tuple(layers)
        return cls.from_names([layer.name for layer in layers], [layer.stage for layer in layers], macs)

    @classmethod
    def from_table(cls, table: SubnetTable) -> Architecture:
        """Return the architecture of a table, whose statistic `depth` determines the stages."""
        stages = None
        if "depth" in table.meta.statistics:
            stages = np.unique(table.statistic("depth"), return_inverse=True)[1].tolist()
        return cls.from_names(table.meta.layer_names, stages, table.layer_macs)

    @property
    def lanes(self) -> tuple[str, ...]:
        """The lanes in the order of their first units."""
        return tuple(dict.fromkeys(unit.lane for unit in self.units))

    @property
    def stages(self) -> tuple[tuple[int, ...], ...]:
        """The numbers of the units of each stage."""
        places = sorted({unit.stage for unit in self.units})
        return tuple(tuple(i for i, unit in enumerate(self.units) if unit.stage == place) for place in places)

    def lines(self, mask: Sequence[bool] | np.ndarray) -> list[str]:
        """Return a line per stage: `stage 2: keep text.2 (4.1 %), SKIP image.2 (9.0 %)`."""
        return [
            f"stage {number}: " + ", ".join(_word(self.units[i], bool(mask[i])) for i in indices)
            for number, indices in enumerate(self.stages)
        ]


def _split(name: str) -> tuple[str, str]:
    """Return lane and label of a unit: `decoder.3.mlp` is number 3 of the lane `decoder.mlp`."""
    parts = name.split(".")
    words = [part for part in parts if not part.isdecimal()]
    return ".".join(words) or "units", ".".join(part for part in parts if part.isdecimal()) or name


def _word(unit: Unit, skipped: bool) -> str:
    share = "" if unit.share is None else f" ({100 * unit.share:.1f} %)"
    return f"{'SKIP' if skipped else 'keep'} {unit.name}{share}"
