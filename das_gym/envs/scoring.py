"""What earns what: the part of every environment that turns masks into rewards and `info`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from das_gym.config import convert, read_array
from das_gym.drawing.architecture import Architecture
from das_gym.engine.scores import Scores
from das_gym.problem.budget import Budget
from das_gym.problem.mask_cost import MaskCost
from das_gym.problem.rewards import Objective
from das_gym.problem.statistics import check_statistics

REWARD_BATCHES = ("fixed", "cycle", "resample")
MOST_COUNTED = 2**53
"""Evaluations that a saved state may have counted: those beyond are no whole numbers of floats."""

INFO_KEYS = ("loss", "metric", "macs", "macs_saved", "n_skipped", "feasible", "evaluations")


@dataclass(frozen=True)
class Outcome:
    """What m masks get from an environment: rewards, and what `info` says of their `Scores`.

    Attributes:
        rewards: (m,) float64.
        info: INFO_KEYS, each to an (m,) array.
    """

    rewards: np.ndarray
    info: dict[str, np.ndarray]

    def row(self, index: int) -> dict[str, Any]:
        """The info of one mask, plain numbers."""
        return {key: values[index].item() for key, values in self.info.items()}


def next_places(
    reward_batches: str, batch_size: int, total: int, position: int, rng: np.random.Generator
) -> tuple[np.ndarray, int]:
    """Which of the reward examples, in their order, the next step scores on, and where the one after it begins.

    Args:
        reward_batches: One of `REWARD_BATCHES`.
        batch_size: How many.
        total: Of how many.
        position: Which is the next, where they are taken in turn.
        rng: Draws them, where they are drawn.
    """
    if reward_batches == "fixed":
        return np.arange(batch_size), position
    if reward_batches == "resample":
        return rng.choice(total, batch_size, replace=False), position
    return (position + np.arange(batch_size)) % total, int((position + batch_size) % total)


class Scorer(ABC):
    """Scores masks. A subclass says where numbers come from: the engine, a table.

    Args:
        layer_names: Names of the skippable layers, in mask order.
        objective: Budget, reward and price.
        statistics: Names of the layer statistics to observe.

    Attributes:
        evaluations: Masks scored so far, those for the observation among them; masks off the budget are not scored.
        position: Which example is the next, where they are taken in turn.
        improvements: The search so far: pairs of an evaluation at which the best reward rose, and that reward.
    """

    def __init__(self, layer_names: tuple[str, ...], objective: Objective, statistics: str | Iterable[str]) -> None:
        self.layer_names = layer_names
        self.objective = objective
        self.statistics = check_statistics(statistics)
        self.evaluations = self.observation_masks
        self.position = 0
        self.improvements: list[tuple[int, float]] = []

    @abstractmethod
    def measure(self, masks: np.ndarray, rng: np.random.Generator) -> Scores:
        """Losses, metrics and divergences of (m, n_layers) bool masks, m >= 0, on the examples of the next step."""

    @abstractmethod
    def measure_unskipped(self) -> Scores:
        """Those of the full model, alone, as `reset` tells them."""

    @abstractmethod
    def observation(self) -> np.ndarray:
        """(n_layers * n_statistics,) float32: layer statistics of the unskipped model, layer by layer; a copy."""

    @abstractmethod
    def statistic(self, name: str) -> np.ndarray:
        """(n_layers,) float32: a layer statistic of the unskipped model by name, observed or not.

        Raises:
            ValueError: an unknown name, or nobody can tell.
        """

    def masks_for(self, names: Iterable[str]) -> int:
        """Masks that are scored for layer statistics by name; 0 where a table knows them."""
        del names
        return 0

    @property
    def observation_masks(self) -> int:
        """Masks that are scored for the observation."""
        return self.masks_for(statistic.name for statistic in self.statistics)

    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """Lowest and highest observation, float32."""
        low = np.tile([s.low for s in self.statistics], self.n_layers).astype(np.float32)
        high = np.tile([s.high for s in self.statistics], self.n_layers).astype(np.float32)
        return low, high

    @property
    def feature_names(self) -> tuple[str, ...]:
        """What each entry of the observation is: `<layer>/<statistic>`."""
        return tuple(f"{layer}/{s.name}" for layer in self.layer_names for s in self.statistics)

    @property
    def n_layers(self) -> int:
        """How many layers can be skipped."""
        return len(self.layer_names)

    @property
    def budget(self) -> Budget:
        """What a mask must satisfy."""
        return self.objective.budget

    @property
    def macs(self) -> MaskCost:
        """The MACs of masks."""
        return self.objective.macs

    def architecture(self) -> Architecture:
        """Where the layers stand, as `render` shows them."""
        return Architecture.of(self.layer_names, macs=self.macs)

    @abstractmethod
    def cost_of(self, setting: str) -> MaskCost:
        """What masks cost, by a key of `SAVED`."""

    def close(self) -> None:  # noqa: B027 - a table has nothing there
        """Let go of what lies outside of this process."""

    def restart(self) -> None:
        """Begin the reward examples and the count of evaluations anew, as `reset(seed=...)` does."""
        self.evaluations, self.position = self.observation_masks, 0
        self.improvements = []

    def get_state(self) -> dict[str, Any]:
        """What the next scores depend on, JSON-able."""
        return {"evaluations": self.evaluations, "position": self.position, "improvements": list(self.improvements)}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Go on from where `get_state` was called."""
        self.evaluations = convert("evaluations", state["evaluations"], int | float)
        self.position = convert("position", state["position"], int)
        improvements = state.get("improvements", ())  # older states have none
        self.improvements = convert("improvements", improvements, list[tuple[int | float, float]])
        counts = [self.evaluations, *(at for at, _ in self.improvements)]
        if not all(0 <= count <= MOST_COUNTED for count in read_array("numbers of evaluations", counts, (len(counts),))):
            raise ValueError(f"a number of evaluations is not among 0..{MOST_COUNTED}")

    def score(self, masks: np.ndarray, rng: np.random.Generator, ended: np.ndarray | None = None) -> Outcome:
        """Rewards of the masks whose episodes have ended, from one call of `measure`.

        Args:
            masks: (m, n_layers) bool, True = skipped.
            rng: Draws the examples, where they are drawn.
            ended: (m,) bool, False = still being chosen: reward 0, not scored. None = all have ended.

        Returns:
            Their rewards and info. What is not scored has loss inf and metric 0. Where nothing is, no examples are drawn.
        """
        ended = np.ones(len(masks), dtype=bool) if ended is None else ended
        feasible = self.budget.is_kept_by(masks)
        scored = feasible & ended
        losses, metrics, divergences = (np.full(len(masks), value) for value in (np.inf, 0.0, np.inf))
        if scored.any():
            found = self.measure(masks[scored], rng)
            losses[scored], metrics[scored] = found.losses, found.metrics
            divergences[scored] = np.nan if found.divergences is None else found.divergences
        scores = Scores(losses, metrics, divergences)
        rewards = np.where(ended, self.objective.rewards(masks, scores), 0.0)
        return Outcome(rewards, self._info(masks, scores, feasible, self._count(rewards, scored)))

    def score_one(self, masks: np.ndarray, rng: np.random.Generator, ended: bool) -> tuple[float, dict[str, Any]]:
        """As `score`, of (1, n_layers) masks: the reward and the info, plain numbers."""
        outcome = self.score(masks, rng, np.array([ended]))
        return float(outcome.rewards[0]), outcome.row(0)

    def _count(self, rewards: np.ndarray, scored: np.ndarray) -> np.ndarray:
        """(m,) int64 evaluations after each of m masks; keeps where the best reward rose."""
        evaluations = self.evaluations + np.cumsum(scored)
        self.evaluations = int(evaluations[-1])
        best = self.best_so_far
        if rewards.max() > best:
            for at, reward in zip(evaluations[scored].tolist(), rewards[scored].tolist(), strict=True):
                if reward > best:
                    best = reward
                    self.improvements.append((at, reward))
        return evaluations

    @property
    def best_so_far(self) -> float:
        """The highest reward of a mask that was scored; -inf where none was."""
        return self.improvements[-1][1] if self.improvements else -np.inf

    def unskipped(self) -> Outcome:
        """The full model, which is what `reset` tells; not counted as an evaluation."""
        mask = np.zeros((1, self.n_layers), dtype=bool)
        scores, feasible = self.measure_unskipped(), self.budget.is_kept_by(mask)
        return Outcome(
            self.objective.rewards(mask, scores), self._info(mask, scores, feasible, np.array([self.evaluations]))
        )

    def unskipped_info(self) -> dict[str, Any]:
        """The info of the full model, plain numbers."""
        return self.unskipped().row(0)

    def _info(
        self, masks: np.ndarray, scores: Scores, feasible: np.ndarray, evaluations: np.ndarray
    ) -> dict[str, np.ndarray]:
        cost = self.budget.cost
        return {
            "loss": scores.losses,
            "metric": scores.metrics,
            "macs": self.macs.amounts(masks),
            "macs_saved": self.macs.saved(masks),
            "n_skipped": masks.sum(axis=1).astype(np.int64),
            "feasible": feasible,
            "evaluations": evaluations.astype(np.int64),
            **({} if cost is None else {cost.setting: cost.saved(masks)}),
        }
