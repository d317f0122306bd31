"""Repair a model whose layers were removed in closed form, before any training: `recover=linear` and `recover=refit`."""

from __future__ import annotations

import numpy as np
from das_gym.adapt.shrink.checks import as_vlm
from das_gym.adapt.shrink.settings import REFIT, RecoveryConfig

from das_gym.models.transformers.inserted_adapters import copy_with_linear_skips
from das_gym.models.transformers.layer_removal import pruned_copy
from das_gym.models.transformers.linear_skips import fit_skip_adapters
from das_gym.models.transformers.model import VLM
from das_gym.models.transformers.refitting import refit_before_removed
from das_gym.problem.loading import Problem
from das_gym.problem.skip_adapters import calibration_examples, calibration_states


def repaired_copy(problem: Problem, mask: np.ndarray, recovery: RecoveryConfig, count: int | None = None) -> VLM:
    """Return a `pruned_copy` of the problem's model, repaired if `recover` asks for it; see `RecoveryConfig.closed_form`.

    Args:
        problem: Its model stays as it is, with the skip adapters that score masks.
        mask: (n_units,) bool, True = removed.
        recovery: How to recover.
        count: Number of calibration examples; None is that of the problem.
    """
    config = problem.backbone.config
    full = as_vlm(problem)
    if recovery.closed_form is None or config is None:
        return pruned_copy(full, mask)
    examples = calibration_examples(problem.evaluator, problem.splits.train, count or config.calibration_examples)
    states = calibration_states(problem.evaluator, examples)
    if recovery.closed_form == REFIT:
        smaller = pruned_copy(full, mask)
        refit_before_removed(full, smaller, mask, states)
        return smaller
    # Other searches of this process score masks with the adapters of `full`, which are fitted for all masks.
    fitted = VLM(full.model, full.unit_kind, full.capabilities)
    fit_skip_adapters(fitted, states, config.skip_rank, mask)
    return copy_with_linear_skips(fitted, mask)
