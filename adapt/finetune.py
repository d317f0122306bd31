"""Fine-tuning one configuration: skipped layers are removed, adapters, poolers, token types and head train."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from adapt.objective import LearningRates, Objective
from adapt.training import Trainer, adamw, polynomial_decay
from das_gym.adaptation import Adaptation
from das_gym.data.vqav2 import VQASplits
from das_gym.problem import MINI_SUPERNET, Backbone, ProblemConfig, load_backbone
from das_gym.tasks.vqa import VQATask


@dataclass(frozen=True)
class FinetuneConfig:
    """Settings of fine-tuning.

    Attributes:
        seed: Of the order of examples.
        steps: Training steps.
        batch_size: Examples a step; at most as many as there are.
        learning_rate: Peak, of adapters, poolers and token types.
        head_learning_rate: Peak, of the head.
        warmup: Share of the steps.
        weight_decay: Of matrices.
        power: Of the polynomial decay.
        save_every: Steps between checkpoints.
    """

    seed: int = 0
    steps: int = 300
    batch_size: int = 64
    learning_rate: float = 1e-3
    head_learning_rate: float = 1e-3
    warmup: float = 0.1
    weight_decay: float = 0.01
    power: float = 1.0
    save_every: int = 100


@dataclass(frozen=True)
class Subnet:
    """A model with its head and task, ready to train or to answer.

    Attributes:
        backbone: The model, settled on one mask.
        head: Its head.
        task: The task, with the head's answers.
    """

    backbone: Backbone
    head: nn.Module
    task: VQATask

    def adaptation(self, **info: object) -> Adaptation:
        """What fine-tuning added to the frozen model."""
        return Adaptation.of(
            self.backbone.vlp, self.head, task=self.task.name, answers=self.task.answers, base=self.backbone.base, info=info
        )


def load_subnet(problem: ProblemConfig, mask: np.ndarray) -> Subnet:
    """The subnet of a mask with the supernet's parameters, in memory of its own, its skipped layers removed."""
    supernet = Adaptation.load(problem.supernet or MINI_SUPERNET)
    backbone = load_backbone(problem)
    task = VQATask(backbone.processor, supernet.answers)
    head = task.build_head(backbone.vlp.feature_size).to(backbone.vlp.device)
    supernet.apply(backbone.vlp, head, backbone.base)
    backbone.vlp.settle(mask)
    return Subnet(backbone, head, task)


def reload_subnet(problem: ProblemConfig, path: str | Path) -> Subnet:
    """A fine-tuned subnet from the frozen model and its adaptation file."""
    adaptation = Adaptation.load(path)
    backbone = load_backbone(problem)
    task = VQATask(backbone.processor, adaptation.answers)
    head = task.build_head(backbone.vlp.feature_size).to(backbone.vlp.device)
    adaptation.apply(backbone.vlp, head, backbone.base)
    return Subnet(backbone, head, task)


def finetune(
    subnet: Subnet,
    splits: VQASplits,
    config: FinetuneConfig,
    title: str,
    checkpoint: Path | None = None,
    log: Callable[[str, float, int], None] | None = None,
) -> None:
    """Train the subnet in place on the train split.

    Args:
        subnet: A settled model.
        splits: The data.
        config: Settings.
        title: Of the progress bar.
        checkpoint: File for intermediate checkpoints; what lies there is gone on from.
        log: Called with name, value and step.
    """
    torch.manual_seed(config.seed)
    batch_size = min(config.batch_size, len(splits.train))
    objective = Objective(subnet.backbone, subnet.head, subnet.task, splits.train, batch_size, config.seed)
    optimizer = adamw(objective.groups(LearningRates(config.learning_rate, config.head_learning_rate)), config.weight_decay)
    schedule = partial(polynomial_decay, steps=config.steps, warmup=config.warmup, power=config.power)
    modules = {"vlp": subnet.backbone.vlp, "head": subnet.head}
    Trainer(modules, optimizer, config.steps, schedule, checkpoint, config.save_every).run(objective, title, log)
