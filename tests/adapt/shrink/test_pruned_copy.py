"""A pruned copy has the mask's loss, and shares its parameters with the full model, which stays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from das_gym.adapt.shrink.measuring import loss_of

from das_gym.models.transformers.layer_removal import pruned_copy
from das_gym.problem.loading import Problem
from tests.adapt.shrink.conftest import MASK


def examples_of(problem: Problem) -> list:
    return problem.task.open_ended(problem.splits.test)


@torch.no_grad()
def logits_of(vlm: Any, problem: Problem, mask: Sequence[bool] | np.ndarray) -> torch.Tensor:
    state = vlm.gather_uncached(problem.task.processor, problem.task.pairs(examples_of(problem)))
    return vlm.own_head()(vlm.forward_encoded(state, mask))


def test_pruned_copy_has_the_loss_of_the_mask(problem_of: Callable[[str], Problem]):
    problem = problem_of("llava")
    full, masked = problem.evaluator.losses(np.stack((MASK & False, MASK)), problem.splits.test)
    smaller = pruned_copy(problem.vlp, MASK)
    assert loss_of(smaller, problem.task, examples_of(problem), 4, "loss") == pytest.approx(masked, abs=1e-5)
    assert loss_of(problem.vlp, problem.task, examples_of(problem), 4, "loss") == pytest.approx(full, abs=1e-5)
    assert abs(full - masked) > 1e-3
    all_parameters = {p.data_ptr() for p in problem.vlp.model.parameters()}
    assert {p.data_ptr() for p in smaller.model.parameters()} < all_parameters  # nothing is copied


@pytest.mark.slow
def test_pruned_copy_may_end_in_a_layer_without_keys(problem_of: Callable[[str], Problem]):
    """LFM2's last layer is one of attention; the one before it, a convolution, has no keys and values."""
    problem = problem_of("lfm2_vl")
    mask = np.array([False, False, False, True])
    found = logits_of(pruned_copy(problem.vlp, mask), problem, [False] * 3)
    torch.testing.assert_close(found, logits_of(problem.vlp, problem, mask), rtol=1e-4, atol=1e-4)
