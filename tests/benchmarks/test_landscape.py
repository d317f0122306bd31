from __future__ import annotations

import itertools

import numpy as np
import pytest

from benchmarks.landscape import landscape
from das_gym.problem.budget import Budget

MASKS = np.array(list(itertools.product((False, True), repeat=5)))[:, ::-1]


def test_sum_over_units_is_additive_with_one_optimum():
    found = landscape(MASKS, MASKS @ np.array([0.1, -0.4, 0.3, 0.2, -0.9]), Budget(5, 2))
    assert (found.masks, found.optima) == (10, 1)
    assert found.additivity == pytest.approx(1.0)


def test_masks_that_share_no_unit_are_both_optima():
    values = np.zeros(len(MASKS))
    values[[0b00011, 0b01100]] = 1.0
    found = landscape(MASKS, values, Budget(5, 2))
    assert found.optima >= 2
    assert found.additivity < 0.8
