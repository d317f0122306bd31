"""Intervals and rank correlation by hand and against R."""

import numpy as np
import pytest

from das_gym.intervals import (
    bootstrap_interval,
    difference_interval,
    mean_bootstrap_interval,
    mean_interval,
    spearman,
    t_interval,
)


def test_mean_interval_is_wilsons_for_right_and_wrong():
    low, high = mean_interval(np.array([1.0] * 8 + [0.0] * 2))
    assert (low, high) == pytest.approx((0.4902, 0.9433), abs=1e-4)  # R: prop.test(8, 10, correct=FALSE)
    assert mean_interval(np.zeros(6)) == pytest.approx((0.0, 0.3903), abs=1e-4)


def test_mean_interval_of_fractions_is_the_bootstraps():
    values = np.array([0.3, 0.6, 1.0, 0.0] * 50)
    low, high = mean_interval(values)
    half = 1.96 * values.std() / np.sqrt(len(values))
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.01)
    assert (low, high) == mean_bootstrap_interval(values)


def test_difference_interval_by_hand():
    differences = np.array([1.0] * 4 + [-1.0] * 10 + [0.0] * 86)
    # -6 / 102, 1.96 sqrt(15 - 36 / 102) / 102
    assert difference_interval(differences) == pytest.approx((-0.13236, 0.01472), abs=1e-5)
    assert difference_interval(np.zeros(6)) == pytest.approx((-0.2450, 0.2450), abs=1e-4)


def test_bootstrap_interval_takes_any_statistic():
    values = np.arange(101.0)
    low, high = bootstrap_interval(lambda rows: np.median(values[rows], axis=1), len(values))
    assert low < 50 < high
    assert bootstrap_interval(lambda rows: np.full(len(rows), 2.0), 3) == (2.0, 2.0)


@pytest.mark.parametrize(
    ("one", "other", "rho"),
    [
        ([1, 2, 3, 4], [10, 20, 30, 400], 1.0),
        ([1, 2, 3, 4], [4, 3, 2, -1], -1.0),
        ([1, 2, 3, 4, 5], [2, 1, 4, 3, 5], 0.8),  # 1 - 6 * 4 / (5 * 24)
        ([1, 1, 2, 2], [1, 2, 1, 2], 0.0),
    ],
)
def test_spearman_by_hand(one, other, rho):
    assert spearman(np.array(one), np.array(other)) == pytest.approx(rho, abs=1e-12)


def test_t_interval_agrees_with_r():
    assert t_interval(np.array([1.0, 2.0, 3.0, 4.0])) == pytest.approx((0.445739743, 4.554260257), abs=1e-8)  # t.test(1:4)
    assert t_interval(np.full(3, 2.0)) == (2.0, 2.0)
    assert t_interval(np.array([1.0, 2.0])) == (-np.inf, np.inf)
