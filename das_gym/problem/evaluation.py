"""How well a model does on examples: its score with an interval, and its loss."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from das_gym.engine.evaluator import Evaluator
from das_gym.intervals import mean_interval
from das_gym.models.base import VLP
from das_gym.names import check_names
from das_gym.registration import METRICS, MODELS, find_class
from das_gym.tasks.base import Task


@dataclass(frozen=True, repr=False)
class Evaluation:
    """How well a model does.

    Attributes:
        score: Mean metric of the examples, 0..1: of generated answers where the task has such.
        low, high: Its 95 % interval.
        loss: Mean loss, nats.
        n: Number of examples.
        metric: Name of the metric.
        numbers: Further numbers of the task, such as `perplexity`, by name.
    """

    score: float
    low: float
    high: float
    loss: float
    n: int
    metric: str
    numbers: dict[str, float] = field(default_factory=dict)

    def __repr__(self) -> str:
        interval = f"[{100 * self.low:.2f}, {100 * self.high:.2f}]"
        return f"{self.metric} {100 * self.score:.2f} % {interval}, loss {self.loss:.4f} nats, {self.n:,} examples"


def evaluate_full(
    vlp: VLP, task: Task, evaluator: Evaluator, examples: Sequence[Any], metric: str | None = None
) -> Evaluation:
    """Return how well a model does with nothing skipped.

    Args:
        vlp: The model.
        task: The task of the examples.
        evaluator: Scores masks of the model; used where it does not answer in words.
        examples: At least one.
        metric: Score of answers in words, a key of `das_gym.registration.METRICS`; None is the task's own.
    """
    in_words = evaluate_in_words(vlp, task, examples, "full model", metric)
    if in_words is not None:
        return in_words
    scores = evaluator.evaluate_each(np.zeros((1, len(vlp.layers)), dtype=bool), examples)
    numbers = task.summary(examples, scores.losses[0], scores.metrics[0])
    low, high = mean_interval(scores.metrics[0])
    return Evaluation(numbers[task.metric_name], low, high, numbers["loss"], len(examples), task.metric_name, numbers)


def evaluate_in_words(
    vlp: VLP, task: Task, examples: Sequence[Any], title: str, metric: str | None = None
) -> Evaluation | None:
    """Return how well a model with a language head does, without the layers that were removed; None for other models.

    Args:
        vlp: The model.
        task: The task of the examples.
        examples: At least one.
        title: Names the model in progress bars.
        metric: As for `evaluate_full`.
    """
    if metric is not None:
        check_names([metric], METRICS, "metric", own=True)
    entry = next((each for each in MODELS.values() if each.score and isinstance(vlp, find_class(each.vlp))), None)
    if entry is not None:
        name = metric or task.metric_name
        found = find_class(entry.score)(vlp, task, examples, title, metric).quality
        numbers = {} if found.perplexity is None else {"perplexity": found.perplexity}
        return Evaluation(
            found.score, found.low, found.high, found.loss, len(examples), name, numbers | (found.others or {})
        )
    if metric is not None:
        raise ValueError(f"`metric` is not supported: got {metric}, but the task {task.name} has no answers in words")
    return None
