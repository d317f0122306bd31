"""One step of training an adaptation: which examples, and their loss under a mask."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from das_gym.adapt.training import Group, StepResult, Trainer, TrainingConfig, adamw, decay
from torch import Tensor, nn

from das_gym.engine.broken import told_examples, told_mask
from das_gym.engine.encoder_cache import EncoderCache
from das_gym.problem.loading import AdaptedModel, Backbone
from das_gym.tasks.base import Task


def batch_at(examples: Sequence[Any], batch_size: int, seed: int, step: int) -> list[Any]:
    """The examples of a step: every epoch goes through all of them once, in an order of its own."""
    per_epoch = len(examples) // batch_size
    epoch, position = divmod(step, per_epoch)
    order = np.random.default_rng([seed, epoch]).permutation(len(examples))
    return [examples[i] for i in order[position * batch_size : (position + 1) * batch_size]]


class StepLoss:
    """The task's loss of a frozen model with adapters, as a function of step and mask.

    Encoders run once per example and their outputs are kept, since nothing that trains touches them, unless dropout
    (a model that is not `frozen`) or augmentation makes them random.

    Args:
        backbone: The frozen model.
        head: Its head.
        task: Batches and loss.
        examples: What to train on.
        batch_size: Examples a step.
        seed: Of the order of examples, and of augmentation.
        augment: Whether images of a step go through RandAugment.
    """

    def __init__(
        self,
        backbone: Backbone,
        head: nn.Module,
        task: Task,
        examples: Sequence[Any],
        batch_size: int,
        seed: int,
        augment: bool = False,
    ) -> None:
        if backbone.vlp.untrainable:
            raise ValueError(f"nothing of this model can train: {backbone.vlp.untrainable}; search it without training")
        if not 1 <= batch_size <= len(examples):
            raise ValueError(
                f"batch_size={batch_size}: there are {len(examples)} examples to train on; use 1..{len(examples)}"
            )
        self.vlp = backbone.vlp
        self.head = head
        self.task = task
        self.examples = examples
        self.batch_size = batch_size
        self.seed = seed
        self.augment = augment
        self.encoder = EncoderCache(backbone.vlp, task.processor)
        self._last: tuple[np.ndarray | None, list[Any]] = (None, [])

    def __call__(self, step: int, mask: np.ndarray | None = None) -> StepResult:
        """Mean loss and metric of the step's examples under a mask ((n_layers,) bool; None = the pruned one)."""
        examples = batch_at(self.examples, self.batch_size, self.seed, step)
        self._last = mask, examples
        logits, targets = self.logits(examples, mask, (self.seed, step) if self.augment else None), self.targets(examples)
        with torch.no_grad():
            metric = self.task.metrics(logits, targets).mean()
        return {"loss": self.task.losses(logits, targets).mean(), self.task.metric_name: metric}

    def about(self) -> str:
        """What the last step was of, in words: its mask and its examples."""
        mask, examples = self._last
        under = "" if mask is None else f"under {told_mask(mask)}, "
        return f"{under}on {told_examples([example.key for example in examples])}"

    def logits(self, examples: Sequence[Any], mask: np.ndarray | None, augment: tuple[int, int] | None = None) -> Tensor:
        """What the head says of examples under a mask, their images augmented where a seed and a step are given."""
        pairs = self.task.pairs(examples)
        if self.vlp.frozen and augment is None:
            pooled = self.vlp.forward_encoded(self.encoder(pairs), mask)
        else:
            pooled = self.vlp.ready(self.task.processor, pairs, augment)(mask)
        return self.head(self.task.group_features(pooled))

    def targets(self, examples: Sequence[Any]) -> dict[str, Tensor]:
        """The task's targets, where the model lies."""
        return {name: tensor.to(self.vlp.device) for name, tensor in self.task.targets(examples).items()}


def set_up(
    model: AdaptedModel, examples: Sequence[Any], config: TrainingConfig, checkpoint: Path | None
) -> tuple[StepLoss, Trainer]:
    """The loss of a step and what runs the steps.

    Args:
        model: What trains, in place: what is tunable in its frozen model, and its head.
        examples: What to train on.
        config: Settings.
        checkpoint: File for intermediate checkpoints, as for `Trainer`.
    """
    vlp, head, task = model.backbone.vlp, model.head, model.task
    batch_size = min(config.batch_size or task.examples_of(config.pairs_per_step), len(examples))
    tunable = [p for p in vlp.parameters() if p.requires_grad]
    groups = Group(tunable, config.learning_rate), Group(list(head.parameters()), config.head_learning_rate)
    schedule = partial(decay, steps=config.steps, warmup=config.warmup, power=config.power, schedule=config.schedule)
    optimizer = adamw(groups, config.weight_decay)
    trainer = Trainer({"vlp": vlp, "head": head}, optimizer, config.steps, schedule, checkpoint, config.save_every)
    return StepLoss(model.backbone, head, task, examples, batch_size, config.seed), trainer
