"""Vision layers removed with decoder layers."""

import dataclasses

import numpy as np
import pytest
from das_gym.adapt.choosing import Choice
from das_gym.adapt.shrinking.checks import fallback_if_not_removable

from das_gym.problem.config import ProblemConfig
from das_gym.problem.problem import Problem, load_problem

MASK = np.array([False, True, False, False, False, True, False])


@pytest.fixture(scope="module")
def problem(folder_of, data) -> Problem:
    config = ProblemConfig("VLM", "answering", checkpoint=str(folder_of("qwen2_5_vl")), data_root=str(data), vision=True)
    return load_problem(dataclasses.replace(config, device="cpu"))


@pytest.mark.slow
def test_selection_takes_the_best_removable_mask(problem):
    """Masks may skip the whole tower, and be the best; a model without any tower cannot be saved."""
    every = np.array([False] * 4 + [True] * 3)
    best = Choice(every, problem.backbone.origin.config, "a remark", (every | MASK, MASK & False, MASK))
    found = fallback_if_not_removable(best, problem)
    np.testing.assert_array_equal(found.mask, MASK)
    assert found.remark.startswith("a remark\n")
    assert "all 3 vision layers" in found.remark
    assert fallback_if_not_removable(found, problem) is found
    with pytest.raises(ValueError, match="all 3 vision layers"):
        fallback_if_not_removable(dataclasses.replace(best, others=(every | MASK,)), problem)
