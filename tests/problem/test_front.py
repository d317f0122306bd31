"""Fronts and areas worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from das_gym.problem.front import dominated_volume, hypervolume, reference_point, undominated_rows

SAVED = np.array([0.0, 0.2, 0.1, 0.4, 0.2, 0.4, 0.3, 0.1])
LOSSES = np.array([1.0, 1.5, 1.0, 3.0, 1.5, np.inf, 3.0, 2.0])


def test_hypervolume_by_hand():
    # from (0, 4): 0.1 wide and 3 high, 0.1 and 2.5, 0.2 and 1
    assert hypervolume(SAVED, LOSSES, (0.0, 4.0)) == pytest.approx(0.1 * 3 + 0.1 * 2.5 + 0.2 * 1)
    assert hypervolume(SAVED, LOSSES, (0.15, 2.0)) == pytest.approx(0.05 * 0.5)
    assert hypervolume(SAVED, LOSSES, (0.4, 4.0)) == 0
    assert hypervolume(SAVED[5:6], LOSSES[5:6], (0.0, 4.0)) == 0


def test_reference_point_by_hand():
    assert reference_point(SAVED[:5], LOSSES[:5]) == (0.0, 3.0)
    with pytest.raises(ValueError, match="non-finite loss"):
        reference_point(SAVED[[0, 5]], LOSSES[[0, 5]])


def test_dominated_volume_agrees_with_a_grid():
    rng = np.random.default_rng(0)
    points = np.concatenate((rng.random((7, 3)), [[0.9, -0.1, 0.9], [np.nan, 1.0, 1.0]]))
    centres = (np.arange(100) + 0.5) / 100
    grid = np.stack(np.meshgrid(centres, centres, centres, indexing="ij"), axis=-1)
    covered = np.any([(grid <= point).all(axis=-1) for point in points[:7]], axis=0).mean()
    assert dominated_volume(points) == pytest.approx(covered, abs=5e-3)
    assert dominated_volume(points[:0]) == 0
    assert dominated_volume(np.array([[0.5, 0.5, 0.4], [0.5, 0.5, 0.4]])) == pytest.approx(0.1)


def test_undominated_rows_by_hand():
    points = np.array(
        [[1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.5, 0.5, 0.5], [0.5, 0.4, 0.5], [np.nan, 2.0, 2.0], [0.0, 1.0, 0.2]]
    )
    assert undominated_rows(points).tolist() == [0, 2, 4, 5]
