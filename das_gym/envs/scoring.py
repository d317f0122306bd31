"""What the single and the vector environment share: examples, budget, reward, observation."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from das_gym.problem import Problem, shuffled
from das_gym.rewards import Budget, find_reward, rewards_within
from das_gym.statistics import Measurements, check_statistics, compute_statistics, measure_activity

REWARD_BATCHES = ("fixed", "cycle", "resample")
INFO_KEYS = ("loss", "metric", "macs", "macs_saved", "n_skipped", "feasible", "evaluations")


@dataclass(frozen=True)
class ScoredMasks:
    """Rewards of m masks and what `info` says of them.

    Attributes:
        rewards: (m,) float64.
        info: INFO_KEYS, each to an (m,) array.
    """

    rewards: np.ndarray
    info: dict[str, np.ndarray]

    def row(self, index: int) -> dict[str, Any]:
        """The info of one mask, plain numbers."""
        return {key: values[index].item() for key, values in self.info.items()}


class MaskScorer:
    """Scores masks on the reward split.

    Args:
        problem: Model, task and data.
        skip_num: Budget: layers to skip, or None for any number.
        reward: Name of the reward.
        statistics: Names of the layer statistics to observe.
        reward_examples: Examples that score a mask; at most all of the reward split are used.
        reward_batches: `fixed` (always the same), `cycle` (the next ones at every step, around the
            split) or `resample` (drawn anew at every step).
    """

    def __init__(
        self,
        problem: Problem,
        skip_num: int | None,
        reward: str,
        statistics: Iterable[str],
        reward_examples: int,
        reward_batches: str,
    ) -> None:
        if reward_batches not in REWARD_BATCHES:
            raise ValueError(f"reward_batches={reward_batches!r} is unknown; choose one of {', '.join(REWARD_BATCHES)}")
        if reward_examples < 1:
            raise ValueError(f"reward_examples={reward_examples}: a mask is scored on at least one example")
        self.problem = problem
        self.budget = Budget(len(problem.vlp.layers), skip_num)
        self.reward = find_reward(reward)
        self.statistics = check_statistics(statistics)
        self.reward_batches = reward_batches
        self.examples = shuffled(problem.splits.reward)
        self.batch_size = min(reward_examples, len(self.examples))
        self.position = 0
        self.evaluations = 0
        self._observation: np.ndarray | None = None

    @property
    def fixed_examples(self) -> tuple:
        """What `fixed` scores on, and what the observation is measured on."""
        return self.examples[: self.batch_size]

    def next_examples(self, rng: np.random.Generator) -> tuple:
        """The examples of the next step."""
        if self.reward_batches == "fixed":
            return self.fixed_examples
        if self.reward_batches == "resample":
            chosen = rng.choice(len(self.examples), self.batch_size, replace=False)
        else:
            chosen = (self.position + np.arange(self.batch_size)) % len(self.examples)
            self.position = int((self.position + self.batch_size) % len(self.examples))
        return tuple(self.examples[i] for i in chosen)

    def observation(self) -> np.ndarray:
        """(n_layers * n_statistics,) float32: layer statistics of the unskipped model, layer by layer."""
        if self._observation is None:
            evaluator = self.problem.evaluator
            activity = measure_activity(evaluator, self.fixed_examples)
            measured = Measurements(evaluator, self.problem.costs, self.fixed_examples, activity)
            self._observation = compute_statistics(self.statistics, measured).reshape(-1)
        return self._observation.copy()

    @property
    def feature_names(self) -> tuple[str, ...]:
        """What each entry of the observation is: `<layer>/<statistic>`."""
        return tuple(f"{layer}/{s.name}" for layer in self.problem.layer_names for s in self.statistics)

    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """Lowest and highest observation, float32."""
        layers = len(self.problem.layer_names)
        low = np.tile([s.low for s in self.statistics], layers).astype(np.float32)
        high = np.tile([s.high for s in self.statistics], layers).astype(np.float32)
        return low, high

    def check(self, actions: Any, shape: tuple[int, ...]) -> np.ndarray:
        """Actions as a bool array of that shape.

        Raises:
            ValueError: another shape, or values other than 0 and 1.
        """
        array = np.asarray(actions)
        if array.shape != shape:
            raise ValueError(
                f"action of shape {array.shape}; give a skip mask of shape {shape}: one 0 (keep) or 1 (skip) a layer"
            )
        if array.dtype != bool and not np.isin(array, (0, 1)).all():
            raise ValueError(f"action {array.tolist()} holds other values than 0 (keep) and 1 (skip)")
        return array.astype(bool)

    def score(self, masks: np.ndarray, rng: np.random.Generator) -> ScoredMasks:
        """Score masks ((m, n_layers) bool) on the examples of the next step, in one engine call."""
        examples = self.next_examples(rng)
        feasible = self.budget.violations(masks) == 0
        losses, metrics = np.full(len(masks), np.inf), np.zeros(len(masks))
        if feasible.any():
            scores = self.problem.evaluator.evaluate(masks[feasible], examples)
            losses[feasible], metrics[feasible] = scores.losses, scores.metrics
        rewards = rewards_within(self.budget, self.reward, masks, losses, metrics)
        evaluations = self.evaluations + np.cumsum(feasible)
        self.evaluations = int(evaluations[-1])
        return ScoredMasks(rewards, self._info(masks, losses, metrics, feasible, evaluations))

    def unskipped(self) -> ScoredMasks:
        """The full model on the fixed examples, which is what `reset` tells; not counted as an evaluation."""
        mask = np.zeros((1, len(self.problem.layer_names)), bool)
        scores = self.problem.evaluator.evaluate(mask, self.fixed_examples)
        feasible = self.budget.violations(mask) == 0
        rewards = rewards_within(self.budget, self.reward, mask, scores.losses, scores.metrics)
        return ScoredMasks(rewards, self._info(mask, scores.losses, scores.metrics, feasible, np.array([self.evaluations])))

    def _info(
        self, masks: np.ndarray, losses: np.ndarray, metrics: np.ndarray, feasible: np.ndarray, evaluations: np.ndarray
    ) -> dict[str, np.ndarray]:
        costs = self.problem.costs
        return {
            "loss": losses,
            "metric": metrics,
            "macs": np.array([costs.macs(mask) for mask in masks], dtype=np.int64),
            "macs_saved": np.array([costs.macs_saved(mask) for mask in masks], dtype=np.float64),
            "n_skipped": masks.sum(axis=1).astype(np.int64),
            "feasible": feasible,
            "evaluations": evaluations.astype(np.int64),
        }
