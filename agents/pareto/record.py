"""The record of a front search: `front.json`, with every scored mask."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from das_gym.agents.searching.record import plain_numbers

from das_gym.problem.budget import Floats, Masks
from das_gym.problem.front import front_rows, hypervolume, reference_point
from das_gym.problem.mask_space import skipped_names
from das_gym.runs import library_versions
from das_gym.trust import imported_plugins

FORMAT = 1
RECORD = "front.json"


@dataclass(frozen=True, eq=False)
class ScoredMasks:
    """Masks with their scores on the reward split.

    Attributes:
        masks: (m, n_layers) bool, True = skipped.
        saved: (m,) fraction of the cost that each saves.
        losses: (m,) nats; inf if a loss is not finite.
        metrics: (m,) 0..1.
    """

    masks: Masks
    saved: Floats
    losses: Floats
    metrics: Floats

    def rows(self, chosen: Any) -> ScoredMasks:
        """Return some of them."""
        return ScoredMasks(self.masks[chosen], self.saved[chosen], self.losses[chosen], self.metrics[chosen])

    @classmethod
    def joined(cls, parts: Iterable[ScoredMasks]) -> ScoredMasks:
        """Concatenate several."""
        every = list(parts)
        return cls(*(np.concatenate([getattr(part, name) for part in every]) for name in cls.__dataclass_fields__))

    def record(self) -> dict[str, Any]:
        """Return plain JSON values, None for a loss that is not finite."""
        columns = {name: getattr(self, name).tolist() for name in ("saved", "metrics")}
        return {"masks": self.masks.astype(int).tolist(), "losses": plain_numbers(self.losses), **columns}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> ScoredMasks:
        """Read what `record` returned."""
        losses = [np.inf if loss is None else loss for loss in record["losses"]]
        columns = (np.array(values, dtype=np.float64) for values in (record["saved"], losses, record["metrics"]))
        return cls(np.array(record["masks"], dtype=bool), *columns)


@dataclass(frozen=True, eq=False)
class FrontResult:
    """The result of a front search.

    Attributes:
        settings: Settings of the search, as plain values.
        env_id: The environment.
        env_kwargs: Its settings.
        cost: The cost of which `saved` is a fraction.
        layer_names: Names in mask order.
        searched: What the search scored, the full model first.
        baselines: Heuristic name to its masks, from few layers to many.
        hypervolume_share: Fraction of the true front's hypervolume, from a table; None if unknown.
        keeps_a_layer: Whether a mask of all layers is no point, since nothing would be left of the model.
    """

    settings: Mapping[str, Any]
    env_id: str
    env_kwargs: Mapping[str, Any]
    cost: str
    layer_names: tuple[str, ...]
    searched: ScoredMasks
    baselines: Mapping[str, ScoredMasks] = field(default_factory=dict)
    hypervolume_share: float | None = None
    keeps_a_layer: bool = False

    @property
    def front(self) -> ScoredMasks:
        """The Pareto front of all scored masks, the smallest saving first: points 0, 1, ..."""
        every = ScoredMasks.joined([self.searched, *self.baselines.values()])
        if self.keeps_a_layer:
            every = every.rows(~every.masks.all(axis=1))
        return every.rows(front_rows(every.saved, every.losses))

    def record(self) -> dict[str, Any]:
        """Return the content of `front.json`."""
        front, searched = self.front, self.searched
        reference = reference_point(searched.saved, searched.losses)
        points = [
            {
                "point": number,
                "mask": mask.astype(int).tolist(),
                "skipped_layers": skipped_names(self.layer_names, mask),
                "saved": float(front.saved[number]),
                "loss": float(front.losses[number]),
                "metric": float(front.metrics[number]),
            }
            for number, mask in enumerate(front.masks)
        ]
        names = ("settings", "env_id", "env_kwargs", "cost", "hypervolume_share")
        return {
            "format": FORMAT,
            **{name: getattr(self, name) for name in names},
            "layer_names": list(self.layer_names),
            "evaluations": len(searched.masks),
            "points": points,
            "reference": dict(zip(("saved", "loss"), reference, strict=True)),
            "hypervolume": hypervolume(front.saved, front.losses, reference),
            "searched": searched.record(),
            "baselines": {name: scored.record() for name, scored in self.baselines.items()},
            "plugins": imported_plugins(),
            "versions": library_versions(),
        }
