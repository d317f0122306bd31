"""Repair a model whose layers were removed in closed form, before any training: `recover=linear` and `recover=refit`."""

import numpy as np
from das_gym.adapt.shrinking.checks import as_vlm
from das_gym.adapt.shrinking.settings import LINEAR, RecoveryConfig
from torch import Tensor

from das_gym.models.transformers.inserted_adapters import copy_with_linear_skips
from das_gym.models.transformers.layer_removal import pruned_copy
from das_gym.models.transformers.linear_skips import fit_skip_adapters, put_skip_adapters
from das_gym.models.transformers.model import VLM
from das_gym.models.transformers.refitting import refit_before_removed
from das_gym.problem.problem import Problem
from das_gym.problem.skip_adapters import calibration_examples, calibration_states, fitted_once, skip_adapter_tensors


def repaired_copy(problem: Problem, mask: np.ndarray, recovery: RecoveryConfig, count: int | None = None) -> VLM:
    """Return a `pruned_copy` of the problem's model, repaired if `recover` asks for it; see `RecoveryConfig.closed_form`.

    The repair is kept in the cache folder, for a run that is resumed, unless `count` is given to time it.

    Args:
        problem: Its model stays as it is, with the skip adapters that score masks.
        mask: (n_units,) bool, True = removed.
        recovery: How to recover.
        count: Number of calibration examples; None is that of the problem.
    """
    scoring = problem.scoring
    full = as_vlm(problem)
    smaller = pruned_copy(full, mask)
    if recovery.closed_form is None:
        return smaller
    evaluator = problem.evaluator
    examples = calibration_examples(evaluator, problem.splits.train, count or scoring.calibration_examples)
    # Other searches of this process score masks with the adapters of `full`, which are fitted for all masks.
    with_maps = VLM(full.model, full.unit_kind, full.capabilities)

    def fit() -> dict[str, Tensor]:
        states = calibration_states(evaluator, examples)
        if recovery.closed_form == LINEAR:
            fit_skip_adapters(with_maps, states, scoring.skip_rank, mask, recovery.share_maps)
            return skip_adapter_tensors(with_maps)
        refit_before_removed(full, smaller, mask, states)
        shared = set(map(id, full.model.parameters()))
        return {name: each.data for name, each in smaller.model.named_parameters() if id(each) not in shared}

    settings = [recovery.closed_form, mask.astype(int).tolist(), scoring.skip_rank, recovery.share_maps]
    tensors = fit() if count else fitted_once(evaluator, problem.backbone.base, examples, settings, fit)
    if recovery.closed_form == LINEAR:
        put_skip_adapters(with_maps, tensors, mask, recovery.share_maps)
        return copy_with_linear_skips(with_maps, mask)
    own = {name: tensor.to(full.device) for name, tensor in tensors.items()}
    smaller.model.load_state_dict(own, strict=False, assign=True)
    return smaller
