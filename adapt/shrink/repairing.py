"""Repair a model whose layers were removed in closed form, before any training: `recover=linear` and `recover=refit`."""

from __future__ import annotations

import numpy as np
from das_gym.adapt.shrink.checks import as_vlm
from das_gym.adapt.shrink.recovery import REFIT, RecoveryConfig

from das_gym.commands.progress import progress
from das_gym.models.transformers.inserted_adapters import insert_linear_skips
from das_gym.models.transformers.linear_skips import fit_skip_adapters
from das_gym.models.transformers.model import VLM
from das_gym.models.transformers.refitting import refit_before_removed
from das_gym.problem.loading import Problem
from das_gym.problem.skip_adapters import calibration_examples, calibration_states


def repair(smaller: VLM, problem: Problem, mask: np.ndarray, recovery: RecoveryConfig) -> None:
    """Repair a `pruned_copy` in place, if `recover` asks for it; see `RecoveryConfig.closed_form`.

    Args:
        smaller: The copy of the problem's model without the layers of the mask.
        problem: Its model stays as it is, with the skip adapters that score masks.
        mask: (n_units,) bool, True = removed.
        recovery: How to recover.
    """
    config = problem.backbone.config
    if recovery.closed_form is None or config is None:
        return
    full = as_vlm(problem)
    examples = calibration_examples(problem.evaluator, problem.splits.train, config.calibration_examples)
    states = calibration_states(problem.evaluator, examples)
    with progress(1, "repairing in closed form", unit="model") as bar:
        if recovery.closed_form == REFIT:
            refit_before_removed(full, smaller, mask, states)
        else:
            # Other searches of this process score masks with the adapters of `full`, which are fitted for all masks.
            fitted = VLM(full.model, full.unit_kind, full.capabilities)
            fit_skip_adapters(fitted, states, config.skip_rank, mask)
            insert_linear_skips(smaller, fitted, mask)
        bar.update()
