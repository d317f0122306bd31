"""Fine-tuning one configuration: skipped layers are removed, adapters, poolers, token types and head train."""

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
from das_gym.problem.config import ProblemConfig
from das_gym.problem.loading import AdaptedModel, load_supernet

PAIRS_PER_STEP = 64
"""Pairs of text and image that a step trains on, unless told otherwise."""


@dataclass(frozen=True)
class FinetuneConfig:
    """Settings of fine-tuning.

    Attributes:
        seed: Of the order of examples.
        steps: Training steps.
        batch_size: Examples a step, at most as many as there are; None is as many as come to 64 pairs of text and image.
        learning_rate: Peak, of adapters, poolers and token types.
        head_learning_rate: Peak, of the head.
        warmup: Share of the steps.
        weight_decay: Of matrices.
        power: Of the polynomial decay.
        save_every: Steps between checkpoints.
    """

    seed: int = 0
    steps: int = 300
    batch_size: int | None = None
    learning_rate: float = 1e-3
    head_learning_rate: float = 1e-3
    warmup: float = 0.1
    weight_decay: float = 0.01
    power: float = 1.0
    save_every: int = 100

    def __post_init__(self) -> None:
        check_ranges(self, **TRAINING_RANGES, power=(0.0, math.inf))


def cut_subnet(problem: ProblemConfig, splits: Splits[Any], mask: np.ndarray) -> AdaptedModel:
    """The subnet of a mask with the supernet's parameters, in memory of its own, its skipped layers removed.

    Raises:
        TypeError: arguments in another order.
        ValueError: a mask of another width, or what `das_gym.problem.loading.load_supernet` refuses.
    """
    if not isinstance(problem, ProblemConfig) or not isinstance(splits, Splits):
        given = f"{type(problem).__name__}, {type(splits).__name__}, {type(mask).__name__}"
        raise TypeError(f"cut_subnet takes a ProblemConfig, its Splits and a mask, in this order; given: {given}")
    subnet = load_supernet(problem, splits)
    subnet.backbone.vlp.prune(mask)
    return subnet


def finetune(
    subnet: AdaptedModel,
    splits: Splits[Any],
    config: FinetuneConfig,
    title: str,
    checkpoint: Path | None = None,
    log: Log | None = None,
) -> None:
    """Train the subnet in place on the train split.

    Args:
        subnet: A pruned model.
        splits: The data.
        config: Settings.
        title: Of the progress bar.
        checkpoint: File for intermediate checkpoints; what lies there is gone on from.
        log: Called with name, value and step.
    """
    torch.manual_seed(config.seed)
    batch_size = min(config.batch_size or subnet.task.examples_of(PAIRS_PER_STEP), len(splits.train))
    step_loss = StepLoss(subnet.backbone, subnet.head, subnet.task, splits.train, batch_size, config.seed)
    optimizer = adamw(step_loss.groups(LearningRates(config.learning_rate, config.head_learning_rate)), config.weight_decay)
    schedule = partial(polynomial_decay, steps=config.steps, warmup=config.warmup, power=config.power)
    modules = {"vlp": subnet.backbone.vlp, "head": subnet.head}
    Trainer(modules, optimizer, config.steps, schedule, checkpoint, config.save_every).run(step_loss, title, log)
