"""Scoring the masks of an environment with its model."""

from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any

import numpy as np

from das_gym.drawing.architecture import Architecture
from das_gym.engine.scores import Scores
from das_gym.envs.scoring import Scorer
from das_gym.problem.budget import MaskCost, given_costs, measure_cost, pick_budget
from das_gym.problem.config import warn_at_chance
from das_gym.problem.problem import Problem
from das_gym.problem.rewards import Objective, find_reward
from das_gym.problem.statistic_inputs import StatisticInputs, measure_activity
from das_gym.problem.statistics import DEFAULT_STATISTICS, check_statistics, compute_statistics, masks_needed
from das_gym.registration import TASKS
from das_gym.tables.build import data_hash


class EngineScorer(Scorer):
    """Scores masks with the engine, on the reward split; see `SkipEnv` for the arguments.

    Attributes:
        batch_size: Examples that score a mask.
        fixed_examples: The examples of `reward_batches="fixed"` and of the observation.
    """

    def __init__(
        self,
        problem: Problem,
        budget: Mapping[str, Any],
        reward: str | None = None,
        macs_price: float = 0.0,
        statistics: str | Iterable[str] | None = None,
        reward_examples: int | None = None,
        reward_batches: str = "fixed",
        costs: Mapping[str, Any] | str | None = None,
        latency_batch: int = 1,
    ) -> None:
        problem.backbone.origin.check_unchanged()
        wanted = problem.task.reward_examples if reward_examples is None else reward_examples
        self.draw_batches(reward_batches, wanted, len(problem.splits.reward))
        self.problem = problem
        self.latency_batch = latency_batch
        self._costs = given_costs(costs)
        bound = pick_budget(len(problem.layer_names), budget, self.cost_of)
        rewarded = find_reward(reward or TASKS[problem.task.name].reward)
        objective = Objective(bound, rewarded, self.cost_of("macs_saved"), macs_price)
        super().__init__(problem.layer_names, objective, DEFAULT_STATISTICS if statistics is None else statistics)
        # The task's order mixes images, so that a small number of examples is a fair sample.
        self._order = problem.task.shuffled_order(problem.splits.reward)
        self.fixed_examples = self._examples(np.arange(self.batch_size))

    def close(self) -> None:
        self.problem.evaluator.close()

    @property
    def fingerprint(self) -> str:
        return self.problem.backbone.base

    def data_hash(self) -> str:
        return data_hash(self.problem.task, self.fixed_examples)

    def warn_at_chance(self) -> None:
        score = self.full_model_info()["metric"]
        warn_at_chance(self.problem.backbone.origin.config, self.problem.task, self.fixed_examples, score, "reward")

    def cost_of(self, setting: str) -> MaskCost:
        if setting not in self._costs:
            self._costs[setting] = measure_cost(self.problem, setting, self.latency_batch)
        return self._costs[setting]

    def architecture(self) -> Architecture:
        return Architecture.from_layers(self.problem.vlp.layers, self.macs)

    def count_statistic_masks(self, names: Iterable[str]) -> int:
        return masks_needed(names, self.n_layers)

    def statistic(self, name: str) -> np.ndarray:
        return compute_statistics(check_statistics(name), self._inputs)[:, 0]

    @property
    def metric_name(self) -> str:
        return self.problem.task.metric_name

    def remember(self, masks: np.ndarray, scores: Scores) -> None:
        """Other batches than fixed ones move on with each step, and are scored again."""
        if self.reward_batches == "fixed":
            self.problem.evaluator.remember(masks, self.fixed_examples, scores)

    def measure(self, masks: np.ndarray, rng: np.random.Generator) -> Scores:
        places = self.next_examples(rng)
        return self._evaluate(masks, self.fixed_examples if self.reward_batches == "fixed" else self._examples(places))

    def score_examples(self, masks: np.ndarray, start: int, stop: int) -> Scores:
        return self.problem.evaluator.evaluate_each(masks, self.fixed_examples, block=(start, stop))

    def measure_fixed(self, masks: np.ndarray) -> Scores:
        return self._evaluate(masks, self.fixed_examples)

    def _evaluate(self, masks: np.ndarray, examples: tuple) -> Scores:
        return self.problem.evaluator.evaluate(masks, examples, divergences=self.objective.reward.needs_divergences)

    def _examples(self, places: np.ndarray) -> tuple:
        return tuple(self.problem.splits.reward[i] for i in self._order[places].tolist())

    @cached_property
    def _inputs(self) -> StatisticInputs:
        activity = measure_activity(self.problem.evaluator, self.fixed_examples)
        return StatisticInputs(self.problem.evaluator, self.problem.costs, self.fixed_examples, activity)
