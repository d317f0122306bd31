"""The problem of a front search: loss and metric of any mask, and the fraction of the cost that it saves."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
from das_gym.agents.pareto.record import ScoredMasks
from das_gym.agents.searching.environment import make_scored, observed_statistics

from das_gym.config import check_names
from das_gym.problem.budget import Floats, Masks
from das_gym.problem.front import hypervolume, reference_point
from das_gym.problem.mask_cost import SAVED
from das_gym.registration import MODELS, entry_of


class FrontProblem:
    """An environment of das_gym without a budget, and a cost to save.

    Attributes:
        layer_names: Names in mask order.
        cost: The cost of masks.
        max_saved: The largest fraction that any mask saves.
        table: The table behind the environment, or None.
        reads: What the model reads: `pairs` or `prompts`.
    """

    def __init__(self, env_id: str, env_kwargs: Mapping[str, Any], cost: str = "MACs") -> None:
        check_names([cost], SAVED.values(), "cost")
        batches = env_kwargs.get("reward_batches", "fixed")
        if batches != "fixed":
            raise ValueError(f"`reward_batches` has to be 'fixed' for a front: got {batches!r}")
        self._env = make_scored(env_id, {"skip_num": None}, env_kwargs)
        self.scorer = self._env.scorer
        self.table = getattr(self.scorer, "table", None)
        self.layer_names: tuple[str, ...] = tuple(self._env.layer_names)
        self.n_layers = len(self.layer_names)
        self.cost = self.scorer.cost_of(next(setting for setting, word in SAVED.items() if word == cost))
        self.max_saved = float(self.cost.range[1])
        entry = entry_of(self._env.spec.id)
        assert entry is not None  # `make_scored` rejects other environments
        self.reads = MODELS[entry.model].reads
        if self.max_saved <= 0:
            raise ValueError(f"no mask of this model saves {cost}: adapters cost more than layers. Give another `cost`")
        self._rng = np.random.default_rng(0)

    @cached_property
    def statistics(self) -> dict[str, Floats]:
        """Statistic name to (n_layers,) values, measured on first use."""
        return observed_statistics(self._env, self._env.reset()[0])

    @property
    def metric_name(self) -> str:
        """Name of `ScoredMasks.metrics`."""
        return self.scorer.problem.task.metric_name if self.table is None else self.table.meta.metric_name

    def score(self, masks: Masks) -> ScoredMasks:
        """Score (m, n_layers) masks in one call of the engine."""
        info = self.scorer.score(masks, self._rng).info
        return ScoredMasks(masks, self.cost.saved(masks), info["loss"].astype(np.float64), info["metric"].astype(np.float64))

    def hypervolume_share(self, scored: ScoredMasks) -> float | None:
        """Return the fraction of the true front's hypervolume that the masks cover; None without a table."""
        if self.table is None:
            return None
        masks, losses = self.table.masks, self.table.values("loss", self.scorer.split)
        saved = self.cost.saved(masks)
        reference = reference_point(saved, losses)
        return hypervolume(scored.saved, scored.losses, reference) / hypervolume(saved, losses, reference)
