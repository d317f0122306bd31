"""Losses that das_gym ships: of bundled models on the default reward examples, under the masks that statistics ask for.

`python -m benchmarks.assets losses` writes them next to the models.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from das_gym.bundled import ASSETS
from das_gym.files import read_json
from das_gym.problem.config import COMPUTE_SETTINGS, changed_settings
from das_gym.problem.loading import Problem
from das_gym.tables.build import problem_hashes

UNCHECKED = {"model", "task", "checkpoint", *COMPUTE_SETTINGS}
"""Settings that may differ from their default: the hashes cover them, or they change losses by rounding at most."""


def identify(problem: Problem, examples: Sequence[Any]) -> dict[str, Any]:
    """Return a key of everything that losses depend on: the layers, and hashes of weights and examples."""
    hashes = problem_hashes(problem, examples, ())
    del hashes["test_data"]
    return {"layers": list(problem.layer_names), "examples": len(examples), "hashes": hashes}


def shipped_losses(problem: Problem, examples: Sequence[Any]) -> Callable[[np.ndarray], np.ndarray] | None:
    """Return a function from (m, n_layers) masks to (m,) losses that reads those shipped and scores the others.

    None where none are shipped for these weights and examples.
    """
    config = problem.backbone.config
    if config is None or problem.backbone.settings or changed_settings(config).keys() - UNCHECKED:
        return None
    path = (Path(config.checkpoint) if config.checkpoint else config.bundled("")) / f"{config.task}_losses.json"
    if not (path.is_relative_to(ASSETS) and path.is_file()):
        return None
    record = read_json(path)
    known: dict[str, float] = record.pop("losses")
    # The number first: hashing examples takes a second.
    if record["examples"] != len(examples) or record != identify(problem, examples):
        return None

    def losses(masks: np.ndarray) -> np.ndarray:
        names = [mask_name(mask) for mask in masks]
        unknown = [row for row, name in enumerate(names) if name not in known]
        scored = iter(problem.evaluator.losses(masks[unknown], examples) if unknown else ())
        return np.array([known[name] if name in known else next(scored) for name in names])

    return losses


def mask_name(mask: np.ndarray) -> str:
    """Return a mask as the file names it, such as `0100`: 1 = skipped."""
    return "".join(str(int(bit)) for bit in mask)
