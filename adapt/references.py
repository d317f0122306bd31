"""Trained weights of the full model with adapters and of the baseline, which come with das_gym.

Neither depends on the mask, so that `python -m adapt` with its default settings only has to evaluate them.
`python -m benchmarks.references` makes the files.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from das_gym.adapt.hardware import Hardware
from das_gym.adapt.training import TrainingConfig

from das_gym.problem.adaptation import Adaptation
from das_gym.problem.config import WORKER_SETTINGS, ProblemConfig
from das_gym.problem.loading import AdaptedModel
from das_gym.registration import MODELS

WITHOUT_EFFECT = (
    *WORKER_SETTINGS,
    *("device", "precision", "eval_batch_size", "encoder_cache"),
    *(field.name for field in dataclasses.fields(Hardware) if field.name != "mixed_precision"),
    "save_every",
)
"""Settings that do not change what fine-tuning learns, but for rounding."""


def deciding_settings(problem: ProblemConfig, config: TrainingConfig) -> dict[str, Any]:
    """Return the settings that decide what fine-tuning learns, as plain JSON values."""
    both = {**dataclasses.asdict(problem), **dataclasses.asdict(config)}
    return {name: value for name, value in both.items() if name not in WITHOUT_EFFECT}


def reference_file(problem: ProblemConfig, name: str) -> Path | None:
    """Return where the trained weights of a model of the table lie in das_gym, there or not; None: no folder is bundled."""
    folder = MODELS[problem.model].assets
    return None if folder is None else folder / f"{problem.task}_{name}.safetensors"


def load_reference(model: AdaptedModel, problem: ProblemConfig, config: TrainingConfig, name: str) -> bool:
    """Put the trained weights that come with das_gym into a model, if they were trained with these settings.

    Args:
        model: Untrained, with nothing skipped.
        problem: The model and its data.
        config: Settings of fine-tuning, with nothing left open.
        name: Of the model in the table.

    Returns:
        Whether the model is trained now.
    """
    path = reference_file(problem, name)
    if path is None or not path.is_file():
        return False
    adaptation = Adaptation.load(path)
    if adaptation.info.get("settings") != deciding_settings(problem, config) or adaptation.answers != model.task.labels:
        return False
    adaptation.apply(model.backbone.vlp, model.head, model.backbone.base)
    return True
