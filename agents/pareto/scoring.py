"""What a front search asks: loss and metric of any mask, and the share of the cost that it saves."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
from das_gym.agents.pareto.record import Scored
from das_gym.agents.searching.environment import make_scored, observed_statistics

from das_gym.config import check_names
from das_gym.problem.budget import Budget, Floats, Masks
from das_gym.problem.front import hypervolume, reference_point
from das_gym.problem.mask_cost import SAVED
from das_gym.problem.mask_space import MaskSpace
from das_gym.registration import ENVIRONMENTS


class FrontProblem:
    """An environment of das_gym without a budget. All that is known here of the cost is `saved`, `most` and `within`.

    Args:
        env_id: Its id.
        env_kwargs: Its settings besides the budget.
        cost: What is to be saved, one of the words of `das_gym.problem.mask_cost.SAVED`.

    Raises:
        ValueError: its examples change from step to step, it has no scorer, or nothing can be saved.
    """

    def __init__(self, env_id: str, env_kwargs: Mapping[str, Any], cost: str = "MACs") -> None:
        check_names([cost], SAVED.values(), "cost")
        changing = env_kwargs.get("reward_batches", "fixed")
        if changing != "fixed":
            raise ValueError(f"reward_batches={changing!r} gives a mask now this loss, now that; a front needs 'fixed'")
        env = make_scored(env_id, {"skip_num": None}, env_kwargs)
        self._env, self.scorer = env, env.scorer
        self.cost = self.scorer.cost_of(next(setting for setting, word in SAVED.items() if word == cost))
        if self.most <= 0:
            raise ValueError(f"no mask of this model saves {cost}: its adapters cost more than layers; give another cost")
        self.layer_names: tuple[str, ...] = tuple(env.layer_names)
        self._rng = np.random.default_rng(0)

    @cached_property
    def statistics(self) -> dict[str, Floats]:
        """Statistic name to (n_layers,) values, as agents are told them; measured when first asked for."""
        return observed_statistics(self._env, self._env.reset()[0])

    @property
    def model(self) -> str:
        """Whose layers they are, a key of `das_gym.registration.MODELS`."""
        name = self._env.spec.id.rpartition(":")[2]
        return next(entry.model for entry in ENVIRONMENTS.values() if name in (entry.id, entry.tabular_id))

    @property
    def metric_name(self) -> str:
        """What `Scored.metrics` are."""
        return self.scorer.problem.task.metric_name if self.table is None else self.table.meta.metric_name

    @property
    def n_layers(self) -> int:
        """How many layers can be skipped."""
        return len(self.layer_names)

    @property
    def table(self) -> Any:
        """The table that answers, or None."""
        return getattr(self.scorer, "table", None)

    def saved(self, masks: Masks) -> Floats:
        """(m,) share of the cost that each of (m, n_layers) masks saves; negative where adapters cost more."""
        return self.cost.saved(masks)

    @property
    def most(self) -> float:
        """The largest share that any mask saves."""
        return float(self.cost.range[1])

    def within(self, share: float) -> MaskSpace:
        """The masks that save at least `share`, for rules that need a budget."""
        return MaskSpace(Budget(self.n_layers, saved=share, cost=self.cost))

    def score(self, masks: Masks) -> Scored:
        """Scores of (m, n_layers) masks, from one call of the engine."""
        info = self.scorer.score(masks, self._rng).info
        return Scored(masks, self.saved(masks), info["loss"].astype(np.float64), info["metric"].astype(np.float64))

    def hypervolume_share(self, scored: Scored) -> float | None:
        """The share of the true front's hypervolume that those masks cover; None where no table knows it."""
        if self.table is None:
            return None
        masks, losses = self.table.masks, self.table.values("loss", self.scorer.split)
        saved = self.saved(masks)
        reference = reference_point(saved, losses)
        return hypervolume(scored.saved, scored.losses, reference) / hypervolume(saved, losses, reference)
