"""What a training takes where nobody said: ours for small models, the paper's for models of the size that it has."""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar

from das_gym.adapt.paper import PAPER
from das_gym.adapt.training import TrainingConfig

from das_gym.problem.loading import AdaptedModel

Config = TypeVar("Config", bound=TrainingConfig)


def settled(config: Config, model: AdaptedModel) -> tuple[Config, str]:
    """The settings with nothing left open but what the data decide, and a line that says what was taken.

    Args:
        config: Settings, some of them None.
        model: What is trained.
    """
    backbone, task = model.backbone, model.task
    name = "" if backbone.config is None else backbone.config.model
    paper = PAPER.get((name, task.name)) if backbone.vlp.size == "base" else None
    usual: dict[str, Any] = {"learning_rate": config.usual_rate, "head_learning_rate": config.usual_rate}
    if paper is not None:
        rate = paper.learning_rate
        usual = {"learning_rate": rate * paper.fusion_multiplier, "head_learning_rate": rate * paper.head_multiplier}
        usual["batch_size"] = paper.batch_size
    taken = {field: value for field, value in usual.items() if getattr(config, field) is None}
    config = dataclasses.replace(config, **taken)
    pairs = config.batch_size or task.examples_for_pairs(config.pairs_per_step)
    line = (
        f"{config.steps} steps of {pairs} examples, learning rate {config.learning_rate:g}, of the head "
        f"{config.head_learning_rate:g}"
    )
    if paper is None:
        return config, line
    line += ": the paper's where none was given" if taken else ""
    size = getattr(task.processor, "image_size", None)
    if paper.image_size is not None and size != paper.image_size:
        line += f"; images of {size} px, the paper has image_size={paper.image_size}"
    return config, line
