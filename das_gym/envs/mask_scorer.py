"""Scores from the engine: what the environment with a model asks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any

import numpy as np

from das_gym.config import check_names
from das_gym.drawing.architecture import Architecture
from das_gym.engine.scores import Scores
from das_gym.envs.scoring import REWARD_BATCHES, Scorer, next_places
from das_gym.problem.budget import pick_budget
from das_gym.problem.loading import Problem
from das_gym.problem.mask_cost import MaskCost, given_costs
from das_gym.problem.rewards import Objective, find_reward
from das_gym.problem.statistic_inputs import StatisticInputs, measure_activity
from das_gym.problem.statistics import check_statistics, compute_statistics, masks_needed
from das_gym.problem.unit_latency import cost_of
from das_gym.tables.shipped_losses import shipped_losses


class MaskScorer(Scorer):
    """Scores masks with the engine, on the reward split.

    Args:
        problem: Model, task and data.
        budget: What binds masks, see `pick_budget`.
        reward: Name of the reward.
        macs_price: What saving all MACs would be worth, in units of the reward.
        statistics: Names of the layer statistics to observe.
        reward_examples: Examples that score a mask, None = the task's own number; at most all of the reward split are used.
        reward_batches: `fixed` (always the same), `cycle` (the next ones at every step that scores, around the
            split) or `resample` (drawn anew at every such step).
        costs: What masks cost where that is known, see `given_costs`; what is not is counted or measured.
        latency_batch: Examples that run at a time when latency is measured.
    """

    def __init__(
        self,
        problem: Problem,
        budget: Mapping[str, Any],
        reward: str,
        macs_price: float,
        statistics: str | Iterable[str],
        reward_examples: int | None,
        reward_batches: str,
        costs: Mapping[str, Any] | str | None = None,
        latency_batch: int = 1,
    ) -> None:
        check_names([reward_batches], REWARD_BATCHES, "reward_batches")
        reward_examples = problem.task.reward_examples if reward_examples is None else reward_examples
        if reward_examples < 1:
            raise ValueError(f"reward_examples={reward_examples}: a mask is scored on at least one example")
        self.problem, self.latency_batch, self._costs = problem, latency_batch, given_costs(costs)
        bound = pick_budget(len(problem.layer_names), budget, self.cost_of)
        objective = Objective(bound, find_reward(reward), MaskCost.of(problem.costs), macs_price)
        super().__init__(problem.layer_names, objective, statistics)
        self.reward_batches = reward_batches
        self.batch_size = min(reward_examples, len(problem.splits.reward))
        self._order = problem.task.order(problem.splits.reward)
        self._fixed = self._examples(np.arange(self.batch_size))
        self._observation: np.ndarray | None = None

    def close(self) -> None:
        """As `Scorer.close`: the evaluator's workers, where there are any."""
        self.problem.evaluator.close()

    def cost_of(self, setting: str) -> MaskCost:
        """As `Scorer.cost_of`; latency is measured where it is neither given nor kept from before."""
        return self._costs[setting] if setting in self._costs else cost_of(self.problem, setting, self.latency_batch)

    @property
    def fixed_examples(self) -> tuple:
        """What `fixed` scores on, and what the observation is measured on."""
        return self._fixed[: self.batch_size]

    def architecture(self) -> Architecture:
        """As `Scorer.architecture`."""
        return Architecture.of_layers(self.problem.vlp.layers, self.macs)

    def masks_for(self, names: Iterable[str]) -> int:
        """As `Scorer.masks_for`: what the statistics ask of the model, counted once a search."""
        return masks_needed(names, self.n_layers)

    def next_examples(self, rng: np.random.Generator) -> tuple:
        """The examples of the next step."""
        if self.reward_batches == "fixed":
            return self.fixed_examples
        chosen, self.position = next_places(self.reward_batches, self.batch_size, len(self._order), self.position, rng)
        return self._examples(chosen)

    def _examples(self, places: np.ndarray) -> tuple:
        """The examples at some places of the order."""
        return tuple(self.problem.splits.reward[i] for i in self._order[places].tolist())

    def observation(self) -> np.ndarray:
        """As `Scorer.observation`; measured once."""
        if self._observation is None:
            self._observation = compute_statistics(self.statistics, self._inputs).reshape(-1)
        return self._observation.copy()

    def statistic(self, name: str) -> np.ndarray:
        """As `Scorer.statistic`, on the fixed examples."""
        return compute_statistics(check_statistics(name), self._inputs)[:, 0]

    @cached_property
    def _inputs(self) -> StatisticInputs:
        """What statistics are computed from; masks that several ask for are scored once."""
        evaluator, examples = self.problem.evaluator, self.fixed_examples
        activity = measure_activity(evaluator, examples)
        return StatisticInputs(evaluator, self.problem.costs, examples, activity, shipped_losses(self.problem, examples))

    def measure(self, masks: np.ndarray, rng: np.random.Generator) -> Scores:
        """As `Scorer.measure`, in one engine call."""
        return self._evaluate(masks, self.next_examples(rng))

    def measure_unskipped(self) -> Scores:
        """As `Scorer.measure_unskipped`, on the fixed examples."""
        return self._evaluate(np.zeros((1, self.n_layers), dtype=bool), self.fixed_examples)

    def _evaluate(self, masks: np.ndarray, examples: tuple) -> Scores:
        return self.problem.evaluator.evaluate(masks, examples, divergences=self.objective.reward.needs_divergences)
