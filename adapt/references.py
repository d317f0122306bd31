"""Trained weights of the full model with adapters and of the baseline, bundled with das_gym.

Neither depends on the mask, so `python -m adapt` with default settings only evaluates them.
`python -m benchmarks.assets references` makes the files.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from das_gym.adapt.hardware import Hardware
from das_gym.adapt.training import TrainingConfig

from das_gym.problem.adaptation import Adaptation
from das_gym.problem.config import COMPUTE_SETTINGS, ProblemConfig
from das_gym.problem.loading import AdaptedModel
from das_gym.registration import MODELS

WITHOUT_EFFECT = (
    *COMPUTE_SETTINGS,
    *(field.name for field in dataclasses.fields(Hardware) if field.name != "mixed_precision"),
    "save_every",
)
"""Settings that do not change what fine-tuning learns, except for rounding."""


def deciding_settings(problem: ProblemConfig, config: TrainingConfig) -> dict[str, Any]:
    """Return the settings on which fine-tuned weights depend, as plain JSON values."""
    both = {**dataclasses.asdict(problem), **dataclasses.asdict(config)}
    return {name: value for name, value in both.items() if name not in WITHOUT_EFFECT}


def reference_file(problem: ProblemConfig, name: str) -> Path | None:
    """Return the path of the bundled weights of a model of the table; None if nothing is bundled for the model."""
    folder = MODELS[problem.model].assets
    return None if folder is None else folder / f"{problem.task}_{name}.safetensors"


def find_reference(
    problem: ProblemConfig, config: TrainingConfig, name: str, labels: tuple[str, ...] | None
) -> Adaptation | None:
    """Return the bundled weights of a model of the table if they were trained with these settings, else None."""
    path = reference_file(problem, name)
    if path is None or not path.is_file():
        return None
    adaptation = Adaptation.load(path)
    recorded = adaptation.info.get("settings", {})
    settings = deciding_settings(problem, config)
    # Other settings give other weights. The files may record settings that are constants today.
    is_other = any(recorded.get(each) != value for each, value in settings.items()) or adaptation.answers != labels
    return None if is_other else adaptation


def load_reference(model: AdaptedModel, problem: ProblemConfig, config: TrainingConfig, name: str) -> bool:
    """Load the bundled weights into a model if they were trained with these settings; return whether they were."""
    adaptation = find_reference(problem, config, name, model.task.labels)
    if adaptation is None:
        return False
    adaptation.apply(model.backbone.vlp, model.head, model.backbone.base)
    return True
