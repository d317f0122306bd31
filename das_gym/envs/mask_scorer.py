"""Scores masks with the engine: the scorer of environments with a model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any

import numpy as np

from das_gym.drawing.architecture import Architecture
from das_gym.engine.scores import Scores
from das_gym.envs.scoring import Scorer
from das_gym.problem.budget import pick_budget
from das_gym.problem.loading import Problem
from das_gym.problem.mask_cost import MaskCost, given_costs, measure_cost
from das_gym.problem.rewards import Objective, find_reward
from das_gym.problem.statistic_inputs import StatisticInputs, measure_activity
from das_gym.problem.statistics import check_statistics, compute_statistics, masks_needed
from das_gym.tables.shipped_losses import shipped_losses


class MaskScorer(Scorer):
    """Scores masks with the engine, on the reward split.

    Attributes:
        batch_size: Examples that score a mask.
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
        wanted = problem.task.reward_examples if reward_examples is None else reward_examples
        self.draw_batches(reward_batches, wanted, len(problem.splits.reward))
        self.problem, self.latency_batch, self._costs = problem, latency_batch, given_costs(costs)
        bound = pick_budget(len(problem.layer_names), budget, self.cost_of)
        objective = Objective(bound, find_reward(reward), self.cost_of("macs_saved"), macs_price)
        super().__init__(problem.layer_names, objective, statistics)
        # The task's order mixes images, so that a small number of examples is a fair sample.
        self._order = problem.task.order(problem.splits.reward)
        self._fixed = self._examples(np.arange(self.batch_size))

    def close(self) -> None:
        """Stop the evaluator's workers, if there are any."""
        self.problem.evaluator.close()

    def cost_of(self, setting: str) -> MaskCost:
        """Return a cost that was given, cached, counted or measured; see `Scorer.cost_of`."""
        if setting not in self._costs:
            self._costs[setting] = measure_cost(self.problem, setting, self.latency_batch)
        return self._costs[setting]

    @property
    def fixed_examples(self) -> tuple:
        """The examples of `reward_batches="fixed"` and of the observation."""
        return self._fixed[: self.batch_size]

    def architecture(self) -> Architecture:
        """See `Scorer.architecture`."""
        return Architecture.of_layers(self.problem.vlp.layers, self.macs)

    def masks_for(self, names: Iterable[str]) -> int:
        """See `Scorer.masks_for`."""
        return masks_needed(names, self.n_layers)

    def observation(self) -> np.ndarray:
        """Return the statistics, which are measured once; see `Scorer.observation`."""
        return self._observation.copy()

    def statistic(self, name: str) -> np.ndarray:
        """Measure a statistic on the fixed examples; see `Scorer.statistic`."""
        return compute_statistics(check_statistics(name), self._inputs)[:, 0]

    def measure(self, masks: np.ndarray, rng: np.random.Generator) -> Scores:
        """Score masks in one engine call; see `Scorer.measure`."""
        examples = self.fixed_examples
        if self.reward_batches != "fixed":
            examples = self._examples(self.next_places(rng))
        return self._evaluate(masks, examples)

    def measure_fixed(self, masks: np.ndarray) -> Scores:
        """Score masks on the fixed examples; see `Scorer.measure_fixed`."""
        return self._evaluate(masks, self.fixed_examples)

    def _evaluate(self, masks: np.ndarray, examples: tuple) -> Scores:
        return self.problem.evaluator.evaluate(masks, examples, divergences=self.objective.reward.needs_divergences)

    def _examples(self, places: np.ndarray) -> tuple:
        return tuple(self.problem.splits.reward[i] for i in self._order[places].tolist())

    @cached_property
    def _observation(self) -> np.ndarray:
        return compute_statistics(self.statistics, self._inputs).reshape(-1)

    @cached_property
    def _inputs(self) -> StatisticInputs:
        """The inputs of statistics. Masks that several statistics need are scored once."""
        evaluator, examples = self.problem.evaluator, self.fixed_examples
        activity = measure_activity(evaluator, examples)
        return StatisticInputs(evaluator, self.problem.costs, examples, activity, shipped_losses(self.problem, examples))
