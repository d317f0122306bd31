"""Defaults of training settings that were left open: ours for small models, the paper's for models of base size."""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar

from das_gym.adapt.paper import PAPER
from das_gym.adapt.training import TrainingConfig

from das_gym.problem.loading import AdaptedModel

Config = TypeVar("Config", bound=TrainingConfig)


def resolve_defaults(config: Config, model: AdaptedModel) -> tuple[Config, str]:
    """Return the settings with learning rates and batch size filled in, and a line that describes them."""
    backbone, task = model.backbone, model.task
    name = "" if backbone.config is None else backbone.config.model
    paper = PAPER.get((name, task.name)) if backbone.vlp.size == "base" else None
    defaults: dict[str, Any] = dict.fromkeys(("learning_rate", "head_learning_rate"), config.default_learning_rate)
    if paper is not None:
        defaults["learning_rate"] = paper.learning_rate * paper.fusion_multiplier
        defaults["head_learning_rate"] = paper.learning_rate * paper.head_multiplier
        defaults["batch_size"] = paper.batch_size
    missing = {field: value for field, value in defaults.items() if getattr(config, field) is None}
    config = dataclasses.replace(config, **missing)
    examples = config.batch_size or task.examples_for_pairs(config.pairs_per_step)
    line = (
        f"{config.steps} steps of {examples} examples, learning rate {config.learning_rate:g}, of the head "
        f"{config.head_learning_rate:g}"
    )
    if paper is None:
        return config, line
    if missing:
        line += ": defaults of the paper"
    size = getattr(task.processor, "image_size", None)
    if paper.image_size is not None and size != paper.image_size:
        line += f"; images of {size} px, the paper has image_size={paper.image_size}"
    return config, line
