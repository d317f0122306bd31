"""Training a supernet: adapters and head of a frozen model, over random masks.

Afterwards any mask can be scored without training, which is what the environment does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from das_gym.adapt.step_loss import LearningRates, StepLoss
from das_gym.adapt.training import TRAINING_RANGES, Log, Trainer, adamw, check_ranges, polynomial_decay

from das_gym.data.splits import Splits
from das_gym.models.inputs import Processor
from das_gym.problem.config import ProblemConfig
from das_gym.problem.loading import AdaptedModel, load_backbone, load_splits, new_head, task_class
from das_gym.tasks.base import Task
from das_gym.tasks.labels import read_labels

PAIRS_PER_STEP = 96
"""Pairs of text and image that a step trains on, unless told otherwise."""


@dataclass(frozen=True)
class SupernetConfig:
    """Settings of supernet training; the defaults made the shipped supernet.

    Attributes:
        seed: Of new parameters, order of examples and masks.
        steps: Training steps.
        batch_size: Examples a step, at most as many as there are; None is as many as come to 96 pairs of text and image.
        learning_rate: Peak, of adapters, poolers and token types.
        head_learning_rate: Peak, of the head.
        warmup: Share of the steps.
        weight_decay: Of matrices.
        max_skipped: Each step skips 0..max_skipped layers, every number as likely.
        vocabulary: File with the task's labels, such as VQA's answers, as `das_gym.tasks.labels.write_labels` writes it
            and every run leaves it; None chooses them from train.
        min_answer_count: Answers that occur at least so often in train make the vocabulary; None decides
            by `Task.choose_labels`.
        save_every: Steps between checkpoints.
    """

    seed: int = 0
    steps: int = 4000
    batch_size: int | None = None
    learning_rate: float = 2e-3
    head_learning_rate: float = 2e-3
    warmup: float = 0.05
    weight_decay: float = 0.01
    max_skipped: int = 8
    vocabulary: str | None = None
    min_answer_count: int | None = None
    save_every: int = 250

    def __post_init__(self) -> None:
        check_ranges(self, **TRAINING_RANGES, max_skipped=(0, math.inf), min_answer_count=(1, math.inf))


def random_mask(seed: int, step: int, n_layers: int, max_skipped: int) -> np.ndarray:
    """(n_layers,) bool: the mask of a step, with 0..max_skipped layers skipped."""
    rng = np.random.default_rng([seed, step])
    count = rng.integers(min(max_skipped, n_layers) + 1)
    mask = np.zeros(n_layers, dtype=bool)
    mask[rng.choice(n_layers, count, replace=False)] = True
    return mask


def train_supernet(
    config: SupernetConfig,
    problem: ProblemConfig,
    out: Path,
    checkpoint: Path | None = None,
    log: Log | None = None,
) -> Path:
    """Train a supernet and write its adaptation file.

    Args:
        config: Settings.
        problem: Model and data; its `supernet` is not read.
        out: The file to write.
        checkpoint: File for intermediate checkpoints; what lies there is gone on from.
        log: Called with name, value and step.

    Returns:
        `out`.

    Raises:
        ValueError: a setting that model or data refuse; `load_splits` says what data.
    """
    labels = read_labels(config.vocabulary) if config.vocabulary else None
    backbone = load_backbone(problem)
    splits = load_splits(problem)
    task = _labelled(task_class(problem.task), backbone.processor, splits, labels, config)
    torch.manual_seed(config.seed)
    head = new_head(backbone, task)
    batch_size = min(config.batch_size or task.examples_of(PAIRS_PER_STEP), len(splits.train))
    step_loss = StepLoss(backbone, head, task, splits.train, batch_size, config.seed)
    optimizer = adamw(step_loss.groups(LearningRates(config.learning_rate, config.head_learning_rate)), config.weight_decay)
    schedule = partial(polynomial_decay, steps=config.steps, warmup=config.warmup)
    trainer = Trainer({"vlp": backbone.vlp, "head": head}, optimizer, config.steps, schedule, checkpoint, config.save_every)
    n_layers = len(backbone.vlp.layers)
    trainer.run(lambda step: step_loss(step, random_mask(config.seed, step, n_layers, config.max_skipped)), "supernet", log)
    AdaptedModel(backbone, head, task).adaptation(kind="supernet", **vars(config)).save(out)
    return out


def _labelled(
    kind: type[Task], processor: Processor, splits: Splits[Any], labels: tuple[str, ...] | None, config: SupernetConfig
) -> Task:
    """The task with labels of one's own, or those that the data ask for."""
    chosen = kind.choose_labels(splits, config.min_answer_count)
    task = kind(processor, labels or chosen)
    if labels and not chosen:
        raise ValueError(f"vocabulary={config.vocabulary} is given, but the task {kind.name} has no answers; leave it out")
    if labels and not task.covers_labels(splits.train):
        raise ValueError(
            f"fewer than half of the training examples have an answer that {config.vocabulary} knows: give a vocabulary of "
            "these data, in normalised spelling (lower case, no articles, digits), or none to have one chosen"
        )
    return task
