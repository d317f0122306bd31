"""Fine-tuning one subnet: skipped layers are removed; adapters, poolers, token types and head train."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from das_gym.adapt.step_loss import set_up
from das_gym.adapt.training import Log, TrainingConfig

from das_gym.data.splits import Splits
from das_gym.engine.encoder_cache import EncoderCache
from das_gym.problem.config import ProblemConfig
from das_gym.problem.loading import AdaptedModel, Backbone, load_backbone, new_head, task_class


@dataclass(frozen=True)
class FinetuneConfig(TrainingConfig):
    """Settings of fine-tuning, see `TrainingConfig`."""


def new_subnet(problem: ProblemConfig, splits: Splits[Any], seed: int = 0) -> AdaptedModel:
    """Load the model again, with new adapters and a new head, drawn with a seed."""
    torch.manual_seed(seed)
    return with_new_head(load_backbone(problem), problem.task, splits)


def with_new_head(backbone: Backbone, task: str, splits: Splits[Any]) -> AdaptedModel:
    """Return a model with a new head for the labels of the data, or with its own head if it brings one."""
    kind = task_class(task)
    labelled = kind(backbone.processor, kind.choose_labels(splits))
    return AdaptedModel(backbone, new_head(backbone, labelled), labelled)


def finetune(
    subnet: AdaptedModel,
    splits: Splits[Any],
    config: FinetuneConfig,
    title: str,
    checkpoint: Path | None = None,
    log: Log | None = None,
    verbose: bool = False,
    encoder: EncoderCache | None = None,
) -> None:
    """Train the subnet in place on the train split.

    Args:
        subnet: A pruned model.
        splits: The data.
        config: Settings.
        title: Title of the progress bar.
        checkpoint: File for intermediate checkpoints; an existing one is resumed.
        log: Called with name, value and step.
        verbose: Whether to print how much memory the training takes.
        encoder: Cache of the same frozen encoders and images; None makes a new one.
    """
    if not any(p.requires_grad for p in (*subnet.backbone.vlp.parameters(), *subnet.head.parameters())):
        return  # the baseline of a model that brings its head
    torch.manual_seed(config.seed)
    step_loss, trainer = set_up(subnet, splits.train, config, checkpoint, encoder, verbose, splits.reward)
    trainer.run(step_loss.parts, title, log, step_loss.describe_step)
