from __future__ import annotations

import numpy as np
import pytest

from das_gym.problem.loading import Problem
from das_gym.problem.statistics import STATISTICS, StatisticInputs, compute_statistics, measure_activity


@pytest.fixture(scope="module")
def measured(tiny_problem: Problem) -> StatisticInputs:
    examples = tiny_problem.splits.reward[:12]
    activity = measure_activity(tiny_problem.evaluator, examples)
    return StatisticInputs(tiny_problem.evaluator, tiny_problem.costs, examples, activity)


@pytest.mark.parametrize("name", STATISTICS)
def test_within_its_bounds_and_the_same_again(measured: StatisticInputs, name: str):
    statistic = STATISTICS[name]
    raw = np.asarray(statistic.compute(measured))
    assert raw.shape == (12,)
    assert (raw >= statistic.low).all()
    assert (raw <= statistic.high).all()
    np.testing.assert_array_equal(raw, statistic.compute(measured))
    assert statistic.formula


def test_clipped_to_its_bounds(measured: StatisticInputs):
    from dataclasses import replace

    wild = replace(STATISTICS["depth"], compute=lambda _: np.array([-5.0, *range(10), np.inf]))
    values = compute_statistics([wild], measured)
    assert values.dtype == np.float32
    assert values.min() == 0
    assert values.max() == 1


def test_shares_are_of_the_whole_model(measured: StatisticInputs):
    macs = STATISTICS["macs_share"].compute(measured)
    assert 0 < macs.sum() < 1
    assert len(set(macs[:6].tolist())) == 1


def test_leave_one_out_is_a_difference_of_losses(measured: StatisticInputs):
    masks = np.zeros((2, 12), bool)
    masks[1, 7] = True
    full, without = measured.evaluator.losses(masks, measured.examples)
    assert STATISTICS["leave_one_out"].compute(measured)[7] == pytest.approx(without - full)


def test_activity_does_not_depend_on_padding(tiny_problem: Problem):
    examples = sorted(tiny_problem.splits.reward[:12], key=lambda e: len(e.question))
    together = measure_activity(tiny_problem.evaluator, examples)
    apart = [measure_activity(tiny_problem.evaluator, [example]) for example in examples]
    for name in ("influence_pooled", "influence_tokens", "residual_norm"):
        np.testing.assert_allclose(getattr(together, name), np.mean([getattr(a, name) for a in apart], axis=0), rtol=1e-4)
