"""One step of training an adaptation: which examples, and their loss under a mask."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from das_gym.adapt.training import Group, StepResult
from torch import Tensor, nn

from das_gym.engine.encoder_cache import EncoderCache
from das_gym.problem.loading import Backbone
from das_gym.tasks.base import Task


@dataclass(frozen=True)
class LearningRates:
    """Peak learning rates: of adapters, poolers and token types, and of the head."""

    adapters: float
    head: float


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

    def __call__(self, step: int, mask: np.ndarray | None = None) -> StepResult:
        """Mean loss and metric of the step's examples under a mask ((n_layers,) bool; None = the pruned one)."""
        examples = batch_at(self.examples, self.batch_size, self.seed, step)
        logits, targets = self.logits(examples, mask, (self.seed, step) if self.augment else None), self.targets(examples)
        with torch.no_grad():
            metric = self.task.metrics(logits, targets).mean()
        return {"loss": self.task.losses(logits, targets).mean(), self.task.metric_name: metric}

    def logits(self, examples: Sequence[Any], mask: np.ndarray | None, augment: tuple[int, int] | None = None) -> Tensor:
        """What the head says of examples under a mask, their images augmented where a seed and a step are given."""
        pairs = self.task.pairs(examples)
        if self.vlp.frozen and augment is None:
            pooled = self.vlp.forward_encoded(self.encoder(pairs), mask)
        else:
            batch = self.task.processor(pairs, augment)
            pooled = self.vlp({name: tensor.to(self.vlp.device) for name, tensor in batch.items()}, mask)
        return self.head(self.task.group_features(pooled))

    def targets(self, examples: Sequence[Any]) -> dict[str, Tensor]:
        """The task's targets, where the model lies."""
        return {name: tensor.to(self.vlp.device) for name, tensor in self.task.targets(examples).items()}

    def groups(self, rates: LearningRates) -> Iterable[Group]:
        """What trains, with its learning rates."""
        adapters = [p for p in self.vlp.parameters() if p.requires_grad]
        return Group(adapters, rates.adapters), Group(list(self.head.parameters()), rates.head)
