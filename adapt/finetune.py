"""Fine-tuning one subnet: skipped layers are removed; adapters, poolers, token types and head train."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from das_gym.adapt.step_loss import set_up
from das_gym.adapt.training import Log, TrainingConfig

from das_gym.data.splits import Splits
from das_gym.engine.encoder_cache import EncoderCache
from das_gym.models.macs import without_adapters
from das_gym.problem.config import ProblemConfig
from das_gym.problem.loading import AdaptedModel, Backbone, find_supernet, load_backbone, load_supernet, new_head, task_class


@dataclass(frozen=True)
class FinetuneConfig(TrainingConfig):
    """Settings of fine-tuning: those of `TrainingConfig`, with its defaults."""


def cut_subnet(problem: ProblemConfig, splits: Splits[Any], mask: np.ndarray, adapters: bool = True) -> AdaptedModel:
    """Return a new subnet of a mask, its skipped layers removed, ready to be fine-tuned.

    It has the supernet's parameters, or new adapters and the model's own head where there is no supernet.

    Args:
        problem: The model.
        splits: Its data.
        mask: (n_layers,) bool, True = skipped.
        adapters: Whether kept layers have their parallel adapters.
    """
    subnet = new_subnet(problem, splits) if find_supernet(problem) is None else load_supernet(problem, splits)
    subnet.backbone.vlp.prune(mask)
    if not adapters:
        without_adapters(subnet.backbone.vlp)
    return subnet


def new_subnet(problem: ProblemConfig, splits: Splits[Any], mask: np.ndarray | None = None, seed: int = 0) -> AdaptedModel:
    """Load the model again, with new adapters and a new head.

    Args:
        problem: The model.
        splits: Its data.
        mask: (n_layers,) bool, True = skipped, whose layers are removed; None removes none.
        seed: Seed of adapters and head.
    """
    torch.manual_seed(seed)
    subnet = with_new_head(load_backbone(problem), problem.task, splits)
    if mask is not None:
        subnet.backbone.vlp.prune(mask)
    return subnet


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
