"""The part of every environment and search that turns masks into rewards and `info`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from das_gym.commands.settings import convert
from das_gym.drawing.architecture import Architecture
from das_gym.engine.scores import Scores
from das_gym.names import check_names
from das_gym.problem.budget import Budget, Floats, MaskCost
from das_gym.problem.rewards import Objective
from das_gym.problem.statistics import STATISTICS, check_statistics

if TYPE_CHECKING:
    from das_gym.tables.table import SubnetTable

INFO_KEYS = ("loss", "metric", "macs", "macs_saved", "n_skipped", "feasible", "evaluations")
REWARD_BATCHES = ("fixed", "cycle", "resample")


Info = dict[str, np.ndarray]
"""`info` of m masks or episodes, each value with m rows."""


class Scorer(ABC):
    """Scores the masks of an environment, and of a search on it. A subclass provides the numbers: the engine, or a table.

    Attributes:
        layer_names: Names of the skippable units, in mask order.
        macs_full: MACs of one example through the full model.
        scores_examples: Whether masks can be scored on single examples; a table of means holds none.
        evaluations: Masks scored so far, including those for the observation; masks off the budget are not scored.
        position: The next example, where `reward_batches="cycle"`.
        table: The table that scores are looked up in; None if a model is scored.
        reported: The cost that the budget limits, by its setting, for `info`; empty without such a budget.
        rng: Draws the examples of a search; an environment passes its own generator to `score`.
    """

    scores_examples: ClassVar[bool] = True
    table: SubnetTable | None = None
    position: int
    reward_batches: str = "fixed"
    batch_size: int

    def __init__(self, layer_names: tuple[str, ...], objective: Objective, statistics: str | Iterable[str]) -> None:
        self.layer_names = layer_names
        self.macs_full = int(objective.macs.full)
        self.objective = objective
        self.statistics = check_statistics(statistics)
        limited = objective.budget.cost
        self.reported = {} if limited is None else {limited.setting: limited}
        self.restart()

    @abstractmethod
    def measure(self, masks: np.ndarray, rng: np.random.Generator) -> Scores:
        """Return the scores of (m, n_layers) bool masks, m >= 0, on the examples of the next step."""

    @abstractmethod
    def measure_fixed(self, masks: np.ndarray) -> Scores:
        """Return the scores of (m, n_layers) bool masks on the fixed examples, on which `reset` reports the full model."""

    def score_examples(self, masks: np.ndarray, start: int, stop: int) -> Scores:
        """Return (m, stop - start) losses and metrics of (m, n_layers) masks on a block of the fixed reward examples."""
        raise NotImplementedError

    @abstractmethod
    def cost_of(self, setting: str) -> MaskCost:
        """Return the cost of masks by a key of `das_gym.problem.budget.SAVED`; ValueError if it is unknown."""

    @abstractmethod
    def statistic(self, name: str) -> np.ndarray:
        """Return (n_layers,) float32: a layer statistic of the full model by name, observed or not."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """The fingerprint of the model; empty if a table does not say it."""

    @abstractmethod
    def data_hash(self) -> str:
        """Return a hash of the reward examples; empty if a table does not say it."""

    @property
    def origin(self) -> dict[str, Any]:
        """What is scored, as records of searches hold it: the settings of the problem of a table, and the fingerprint."""
        settings = {} if self.table is None else self.table.meta.settings
        return {"table_settings": settings, "fingerprint": self.fingerprint}

    @property
    @abstractmethod
    def metric_name(self) -> str:
        """What `metrics` measure: `accuracy`, ..."""

    @abstractmethod
    def architecture(self) -> Architecture:
        """Return the layers as `render` shows them."""

    def warn_at_chance(self) -> None:  # noqa: B027 - the scores of a table are what they are
        """Score the full model, and warn where it is no better than chance on the reward examples."""

    def count_statistic_masks(self, names: Iterable[str]) -> int:
        """Return how many masks are scored for layer statistics by name; 0 where they are known."""
        return 0

    def close(self) -> None:  # noqa: B027 - there may be nothing to release
        """Release resources outside of this process."""

    def layout(self) -> dict[str, Any]:
        """Return the fields of a record of a search from `units` to `fingerprint`."""
        statistics = {name: values.tolist() for name, values in self.layer_statistics.items()}
        return {"units": self.architecture().units, "statistics": statistics, **self.origin}

    @property
    def racing_examples(self) -> int | None:
        """Number of reward examples if rewards depend on `score_examples` alone, so that masks can race; else None."""
        can_race = self.scores_examples and self.reward_batches == "fixed" and self.objective.reward.of_losses
        return self.batch_size if can_race else None

    def rewards_and_info(self, masks: np.ndarray, losses: np.ndarray, metrics: np.ndarray) -> tuple[np.ndarray, Info]:
        """Return what `score` returns for (m,) mean losses and metrics of `score_examples`; no evaluation is counted."""
        scores = Scores(losses, metrics, None, self.full_loss)
        feasible = self.budget.is_feasible(masks)
        evaluations = np.full(len(masks), self.evaluations)
        return self.objective.rewards(masks, scores), self._info(masks, scores, feasible, evaluations)

    def remember(self, masks: np.ndarray, scores: Scores) -> None:  # noqa: B027 - a table is quick
        """Take the scores of (m, n_layers) masks from a record, so that the model need not score them again."""

    def observation(self) -> np.ndarray:
        """Return (n_layers * n_statistics,) float32: layer statistics of the full model, layer by layer; a copy."""
        return self._observation.copy()

    @cached_property
    def _observation(self) -> np.ndarray:
        return np.stack([self.statistic(each.name) for each in self.statistics], axis=1).reshape(-1)

    @cached_property
    def layer_statistics(self) -> LayerStatistics:
        """Layer statistics of the full model by name, (n_layers,) float64: those observed, and others on demand."""
        columns = self._observation.reshape(self.n_layers, -1).astype(np.float64)
        observed = {each.name: columns[:, index] for index, each in enumerate(self.statistics)}
        return LayerStatistics(observed, self.statistic)

    @property
    def observation_masks(self) -> int:
        """Number of masks that are scored for the observed statistics."""
        return self.count_statistic_masks(statistic.name for statistic in self.statistics)

    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the lowest and the highest observation, (n_layers * n_statistics,) float32 each."""
        low = np.tile([s.low for s in self.statistics], self.n_layers).astype(np.float32)
        high = np.tile([s.high for s in self.statistics], self.n_layers).astype(np.float32)
        return low, high

    @property
    def feature_names(self) -> tuple[str, ...]:
        """Names of the observation's entries: `<layer>/<statistic>`."""
        return tuple(f"{layer}/{s.name}" for layer in self.layer_names for s in self.statistics)

    @property
    def n_layers(self) -> int:
        """Number of skippable layers."""
        return len(self.layer_names)

    @property
    def budget(self) -> Budget:
        """The constraint on a mask."""
        return self.objective.budget

    @property
    def macs(self) -> MaskCost:
        """The MACs of masks."""
        return self.objective.macs

    def draw_batches(self, reward_batches: str, size: int, total: int) -> None:
        """Set that `size` of `total` examples, which `reward_batches` chooses, score a mask; ValueError for none."""
        check_names([reward_batches], REWARD_BATCHES, "reward_batches")
        if size < 1:
            raise ValueError(f"`reward_examples` is out of range: got {size}, expected at least 1")
        self.reward_batches = reward_batches
        self.batch_size = min(size, total)
        self.total = total

    def next_examples(self, rng: np.random.Generator) -> np.ndarray:
        """Return (size,) int64 indices into the reward split: the examples that score the masks of the next step."""
        size = self.batch_size
        if self.reward_batches == "fixed":
            return np.arange(size)
        if self.reward_batches == "resample":
            return rng.choice(self.total, size, replace=False)
        # Around the split: the last batch is filled up with the first examples.
        first = self.position
        self.position = (first + size) % self.total
        return (first + np.arange(size)) % self.total

    def restart(self, seed: int = 0) -> None:
        """Restart the reward examples and the count of evaluations, as `reset(seed=...)` does; `seed` is that of `rng`."""
        self.rng = np.random.default_rng(seed)
        self.evaluations: int = self.observation_masks
        self.position = 0

    def get_state(self) -> dict[str, Any]:
        """Return what determines the next examples, as JSON values."""
        return {"evaluations": self.evaluations, "position": self.position, "rng": self.rng.bit_generator.state}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Restore what `get_state` returned."""
        self.rng.bit_generator.state = state["rng"]
        self.evaluations = convert("evaluations", state["evaluations"], int)
        self.position = convert("position", state["position"], int)

    def score(
        self, masks: np.ndarray, rng: np.random.Generator | None = None, ended: np.ndarray | None = None
    ) -> tuple[np.ndarray, Info]:
        """Return the rewards of the masks whose episodes have ended, from one call of `measure`.

        Args:
            masks: (m, n_layers) bool, True = skipped.
            rng: Draws the examples, where they are drawn; not if no mask is scored. None = the scorer's own.
            ended: (m,) bool, False = still being chosen: reward 0, not scored. None = all have ended.

        Returns:
            (m,) float64 rewards, and info with `INFO_KEYS` and costs. A mask that is not scored has loss inf and metric 0.
        """
        ended = np.ones(len(masks), dtype=bool) if ended is None else ended
        feasible = self.budget.is_feasible(masks)
        # Masks off the budget are never evaluated: they cost no time, and their loss cannot be learned from.
        scored = feasible & ended
        losses, metrics, divergences = (np.full(len(masks), value) for value in (np.inf, 0.0, np.inf))
        if scored.any():
            found = self.measure(masks[scored], rng or self.rng)
            losses[scored] = found.losses
            metrics[scored] = found.metrics
            # The engine computes divergences only for rewards that need them.
            divergences[scored] = np.nan if found.divergences is None else found.divergences
        scores = Scores(losses, metrics, divergences, self.full_loss)
        rewards = np.where(ended, self.objective.rewards(masks, scores), 0.0)
        return rewards, self._info(masks, scores, feasible, self._count(scored))

    def score_one(self, masks: np.ndarray, rng: np.random.Generator, ended: bool) -> tuple[float, dict[str, Any]]:
        """Score one mask, (1, n_layers): return what `score` returns as plain numbers."""
        rewards, info = self.score(masks, rng, np.array([ended]))
        return float(rewards[0]), first_row(info)

    @cached_property
    def full_loss(self) -> float | None:
        """The loss of the full model on the fixed examples, nats, if the reward reads it; not counted as an evaluation."""
        if not self.objective.reward.needs_full_loss:
            return None
        return float(self.measure_fixed(np.zeros((1, self.n_layers), dtype=bool)).losses[0])

    def full_model_info(self) -> dict[str, Any]:
        """Return the info of the full model as plain numbers; it does not count as an evaluation."""
        mask = np.zeros((1, self.n_layers), dtype=bool)
        feasible = self.budget.is_feasible(mask)
        return first_row(self._info(mask, self.measure_fixed(mask), feasible, np.array([self.evaluations])))

    def _count(self, scored: np.ndarray) -> np.ndarray:
        """Return (m,) int64 evaluations after each of m masks, as if one environment had scored them in turn."""
        evaluations = self.evaluations + np.cumsum(scored)
        self.evaluations = int(evaluations[-1])
        return evaluations

    def _info(self, masks: np.ndarray, scores: Scores, feasible: np.ndarray, evaluations: np.ndarray) -> Info:
        info = {
            "loss": scores.losses,
            "metric": scores.metrics,
            "macs": self.macs.amounts(masks),
            "macs_saved": self.macs.saved(masks),
            "n_skipped": masks.sum(axis=1).astype(np.int64),
            "feasible": feasible,
            "evaluations": evaluations.astype(np.int64),
        }
        return info | {setting: cost.saved(masks) for setting, cost in self.reported.items()}


def first_row(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Return the first row of each array: a plain number where it is one."""
    return {key: values[0].item() if values.ndim == 1 else values[0] for key, values in arrays.items()}


class LayerStatistics(dict[str, Floats]):
    """Name to (n_layers,) values of the observed statistics; `measure` gives other `STATISTICS` when they are looked up."""

    def __init__(self, observed: Mapping[str, Floats], measure: Callable[[str], np.ndarray]) -> None:
        super().__init__(observed)
        self._measure = cache(lambda name: np.asarray(measure(name), dtype=np.float64))

    def __contains__(self, name: object) -> bool:
        return super().__contains__(name) or name in STATISTICS

    def __missing__(self, name: str) -> Floats:
        return self._measure(name)
