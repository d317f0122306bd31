from __future__ import annotations

import numpy as np
import pytest
from das_gym.agents.compare.results import AgentResult, judge

from benchmarks.leaderboard.planted import LOSSES, GroupLoss, PlantedOracle
from das_gym.problem.mask_space import every_mask

GOLDEN = [
    (24, 0, -0.3009245261275336, 0.8213078590776822),
    (36, 1, -0.5068719891206179, 1.652408706119265),
    (72, 0, -2.8407489577806895, 2.7159610378726833),
]
"""Losses of planted problems as first recorded."""


@pytest.fixture(scope="module", params=LOSSES)
def small(request: pytest.FixtureRequest) -> PlantedOracle:
    return PlantedOracle(12, 3, request.param)


def test_the_best_mask_is_the_best_of_all(small: PlantedOracle):
    losses = small.losses(every_mask(12, 4))
    assert small.best_loss == pytest.approx(losses.min(), rel=1e-12)
    assert small.best_reward == pytest.approx(small.rewards(every_mask(12, 4)).max(), rel=1e-12)
    assert small.loss_regrets(np.array([small.best_loss, small.random_loss])).tolist() == [0, 1]


@pytest.mark.parametrize("kind", LOSSES)
def test_a_climb_ends_where_no_swap_helps(kind: str):
    oracle = PlantedOracle(24, 0, kind)
    mask = oracle.space.sample(np.random.default_rng(0))
    while (losses := oracle.losses(around := oracle.space.neighbours(mask))).min() < oracle.losses(mask[None])[0] - 1e-12:
        mask = around[losses.argmin()]
    start = oracle.space.sample(np.random.default_rng(0))
    assert oracle._climb(start) == pytest.approx(oracle.losses(mask[None])[0], rel=1e-12)
    assert oracle.space.contains(start[None])[0]  # nothing was changed in place


@pytest.mark.parametrize(("n_layers", "seed", "best", "random"), GOLDEN)
def test_a_seed_plants_the_same_problem_for_ever(n_layers: int, seed: int, best: float, random: float):
    oracle = PlantedOracle(n_layers, seed)
    assert (oracle.best_loss, oracle.random_loss) == (pytest.approx(best, rel=1e-12), pytest.approx(random, rel=1e-12))


def test_groups_cost_what_a_loop_counts():
    loss = GroupLoss(24, np.random.default_rng(0))
    masks = np.random.default_rng(1).random((20, 24)) < 1 / 3
    for mask, found in zip(masks, loss(masks), strict=True):
        skipped = set(np.flatnonzero(mask).tolist())
        expected = sum(loss.single[layer] for layer in skipped)
        for group, spared, weight in zip(loss.groups, loss.spared, loss.weights, strict=True):
            layers = set(np.flatnonzero(group).tolist())
            assert 3 <= len(layers) <= 6
            assert 1 <= spared <= len(layers) - 2
            expected += weight * (len(layers & skipped) > spared)
        assert found == pytest.approx(expected, rel=1e-12)


def test_another_kind_is_another_problem_and_an_unknown_one_is_refused():
    assert PlantedOracle(12, 3).env_id == "planted-12-3"
    assert PlantedOracle(12, 3, "groups").env_id == "planted-groups-12-3"
    with pytest.raises(ValueError, match="unknown kind of planted loss 'triples'; known: pairs, groups"):
        PlantedOracle(12, 3, "triples")


def test_regrets_of_rewards_are_normalised_as_losses(small: PlantedOracle):
    masks = every_mask(12, 4)[:3]
    rewards = np.array([[-np.inf, *small.rewards(masks)]])
    (result,) = judge(small, [AgentResult("a", masks[:1], rewards, np.array([4]))])
    normalised = small.normalized(result.regret)[0]
    assert normalised[0] > 2
    np.testing.assert_allclose(normalised[1:], small.loss_regrets(small.losses(masks)), rtol=1e-9)


def test_there_is_no_test_split(small: PlantedOracle):
    assert np.isnan(small.test_metrics(every_mask(12, 4)[:2])).all()
    assert small.ranks(np.zeros(2)) is None
