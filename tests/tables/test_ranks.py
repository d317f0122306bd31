from __future__ import annotations

import numpy as np
import pytest

from das_gym.tables.ranks import spearman


@pytest.mark.parametrize(
    ("one", "other", "rho"),
    [
        ([1, 2, 3, 4], [10, 20, 30, 400], 1.0),
        ([1, 2, 3, 4], [4, 3, 2, -1], -1.0),
        ([1, 2, 3, 4, 5], [2, 1, 4, 3, 5], 0.8),  # 1 - 6 * 4 / (5 * 24)
        ([1, 1, 2, 2], [1, 2, 1, 2], 0.0),
    ],
)
def test_spearman_by_hand(one: list, other: list, rho: float):
    assert spearman(np.array(one), np.array(other)) == pytest.approx(rho, abs=1e-12)
