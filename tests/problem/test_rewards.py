from __future__ import annotations

import math

import numpy as np
import pytest

import das_gym.problem.rewards as rewards_module
from das_gym.engine.scores import Scores
from das_gym.models.meter.network import METERConfig
from das_gym.models.vilt.network import ViLTConfig
from das_gym.problem.budget import Budget
from das_gym.problem.mask_cost import MaskCost
from das_gym.problem.mask_space import every_mask
from das_gym.problem.rewards import REWARDS, Objective, Reward, find_reward, register_reward
from tests.problem.full_models import full_costs

MACS = MaskCost(full=100, unskipped=104, savings=np.array([5, 20, 0, -1]))  # the last two layers save nothing
MASKS = every_mask(4)


def measured(losses, metrics=None, divergences=None) -> Scores:
    losses = np.asarray(losses, dtype=float)
    return Scores(
        losses,
        np.full(len(losses), 0.5) if metrics is None else np.asarray(metrics, dtype=float),
        np.zeros(len(losses)) if divergences is None else np.asarray(divergences, dtype=float),
    )


@pytest.mark.parametrize("config", [METERConfig(), ViLTConfig()], ids=["METER", "ViLT"])
def test_macs_of_many_masks_are_those_of_each(config):
    costs = full_costs(config, answers=3129)
    masks = every_mask(12)[::41]
    macs = costs.macs_cost
    assert macs.amounts(masks).tolist() == [costs.macs(mask) for mask in masks]
    np.testing.assert_allclose(macs.saved(masks), [costs.macs_saved(mask) for mask in masks], rtol=0, atol=1e-15)
    assert macs.full == costs.macs_full


def test_paper_saving_is_a_budget():
    macs = full_costs(METERConfig(image_size=384), answers=3129).macs_cost
    masks = every_mask(12)
    feasible = Budget(12, saved=0.12, cost=macs).violations(masks) == 0
    assert 0 < feasible.sum() < 4096
    np.testing.assert_array_equal(feasible, macs.saved(masks) >= 0.12)


@pytest.mark.parametrize(
    ("budget", "worst"),
    [(Budget(4, 0), 1.0), (Budget(4, 3), 0.75), (Budget(4, None), 0.0), (Budget(4, None, 0.2, MACS), 0.25)],
)
def test_violations(budget: Budget, worst: float):
    violations = budget.violations(MASKS)
    assert violations.min() == 0
    assert violations.max() == pytest.approx(worst)


def test_exact_saving_meets_the_budget():
    tenths = MaskCost(full=10, unskipped=10, savings=np.ones(10, dtype=np.int64))
    masks = np.tri(10, dtype=bool)  # save 0.1, 0.2, ..., 1.0
    for count in range(1, 11):
        assert Budget(10, saved=count / 10, cost=tenths).violations(masks[count - 1 : count]).tolist() == [0]


def test_remaining_budget():
    masks = np.array([[0, 0, 0, 0], [1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 1]], dtype=bool)
    assert Budget(4, 2).left(masks).tolist() == [0.5, 0.25, 0, 0]
    assert Budget(4).left(masks).tolist() == [1, 0.75, 0.5, 0]
    np.testing.assert_allclose(Budget(4, None, 0.2, MACS).left(masks), [0.24, 0.19, 0, 0], atol=1e-12)


def test_rewards_agree_with_their_formulas():
    seen = measured([0.0, 2.0, np.inf], [1.0, 0.5, 0.0], [0.0, 3.0, np.inf])
    expected = {
        "exp_neg_loss": [1, np.exp(-2), 0],
        "neg_loss": [0, -2, -1e4],
        "metric": [1, 0.5, 0],
        "neg_kl": [0, -3, -1e4],
    }
    assert set(expected) == set(REWARDS)
    for name, values in expected.items():
        np.testing.assert_allclose(find_reward(name).compute(seen), values)


@pytest.mark.parametrize("name", REWARDS)
@pytest.mark.parametrize("price", [0.0, 2.5])
@pytest.mark.parametrize("budget", [Budget(4, 2), Budget(4, None, 0.2, MACS)])
def test_feasible_masks_earn_more_than_others(name: str, price: float, budget: Budget):
    rng = np.random.default_rng(0)
    objective = Objective(budget, REWARDS[name], MACS, price)
    losses = rng.choice([0.0, 0.3, 7.0, 1e9, np.inf], 16)
    rewards = objective.rewards(MASKS, measured(losses, rng.random(16), losses))
    feasible = budget.violations(MASKS) == 0
    assert (rewards[feasible] >= objective.low).all()
    assert (rewards[feasible] <= objective.high).all()
    assert (rewards[~feasible] < objective.low).all()
    assert (rewards[~feasible] >= objective.low - 1).all()


def test_price_pays_for_saved_macs():
    free, priced = (Objective(Budget(4), REWARDS["metric"], MACS, price) for price in (0.0, 2.0))
    losses = measured(np.ones(16))
    np.testing.assert_allclose(priced.rewards(MASKS, losses) - free.rewards(MASKS, losses), 2 * MACS.saved(MASKS))
    assert priced.low == pytest.approx(-0.1)
    assert priced.high == pytest.approx(1.42)


@pytest.mark.parametrize("price", [-1, math.inf, math.nan, "1", True, None])
def test_objective_rejects_wrong_prices(price):
    with pytest.raises(ValueError, match="macs_price"):
        Objective(Budget(4), REWARDS["metric"], MACS, price)


def test_non_finite_losses_earn_the_lowest_reward():
    nothing = np.array([np.nan])
    for reward in REWARDS.values():
        for losses in (nothing, np.array([np.inf])):
            metrics = np.zeros(1) if np.isinf(losses) else nothing
            earned = Objective(Budget(4, 0), reward, MACS).rewards(MASKS[:1], Scores(losses, metrics, losses))
            assert earned.tolist() == [reward.low]


def test_register_reward_adds_it(monkeypatch):
    monkeypatch.setattr(rewards_module, "REWARDS", dict(REWARDS))
    register_reward(Reward("half", 0.0, 0.5, lambda scores: scores.metrics / 2))
    earned = Objective(Budget(4), find_reward("half"), MACS).rewards(MASKS, measured(np.zeros(16)))
    assert earned.tolist() == [0.25] * 16
    assert "half" not in REWARDS


def test_register_reward_rejects_bounds_and_other_objects():
    for bounds in ((1.0, 1.0), (0.0, math.inf)):
        with pytest.raises(ValueError, match="'half'"):
            register_reward(Reward("half", *bounds, abs))
    with pytest.raises(TypeError, match="Reward"):
        register_reward("half")  # type: ignore[arg-type]


def test_neg_kl_needs_divergences():
    with pytest.raises(ValueError, match="neg_kl"):
        find_reward("neg_kl").compute(Scores(np.zeros(1), np.zeros(1)))
