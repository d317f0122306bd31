import math

import numpy as np
import pytest

import das_gym.problem.rewards as rewards_module
from das_gym.engine.scores import Scores
from das_gym.problem.budget import Budget, MaskCost
from das_gym.problem.mask_space import every_mask
from das_gym.problem.rewards import REWARDS, Objective, Reward, find_reward, register_reward

MACS = MaskCost(full=100, unskipped=104, savings=np.array([5, 20, 0, -1]))  # the last two layers save nothing
MASKS = every_mask(4)


def measured(losses, metrics=None, divergences=None) -> Scores:
    losses = np.asarray(losses, dtype=float)
    return Scores(
        losses,
        np.full(len(losses), 0.5) if metrics is None else np.asarray(metrics, dtype=float),
        np.zeros(len(losses)) if divergences is None else np.asarray(divergences, dtype=float),
        1.5,
    )


def test_rewards_agree_with_their_formulas():
    seen = measured([0.0, 2.0, np.inf], [1.0, 0.5, 0.0], [0.0, 3.0, np.inf])
    expected = {
        "exp_neg_loss": [1, np.exp(-2), 0],
        "neg_loss": [0, -2, -1e4],
        "perplexity_ratio": [2, np.exp(-0.5), 0],
        "metric": [1, 0.5, 0],
        "neg_kl": [0, -3, -1e4],
    }
    assert set(expected) == set(REWARDS)
    for name, values in expected.items():
        np.testing.assert_allclose(find_reward(name).compute(seen), values)


@pytest.mark.parametrize("name", REWARDS)
@pytest.mark.parametrize("price", [0.0, 2.5])
@pytest.mark.parametrize("budget", [Budget(4, 2), Budget(4, None, 0.2, MACS)])
def test_feasible_masks_earn_more_than_others(name, price, budget):
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


@pytest.mark.parametrize("price", [-1, math.nan, "1"])
def test_objective_rejects_wrong_prices(price):
    with pytest.raises(ValueError, match="macs_price"):
        Objective(Budget(4), REWARDS["metric"], MACS, price)


def test_non_finite_losses_earn_the_lowest_reward():
    nothing = np.array([np.nan])
    for reward in REWARDS.values():
        for losses in (nothing, np.array([np.inf])):
            metrics = np.zeros(1) if np.isinf(losses) else nothing
            earned = Objective(Budget(4, 0), reward, MACS).rewards(MASKS[:1], Scores(losses, metrics, losses, 1.5))
            assert earned.tolist() == [reward.low]


def test_rewards_outside_of_their_bounds_are_warned_about():
    wide = Reward("wide", 0.0, 1.0, lambda scores: 2 * np.exp(-scores.losses))
    objective = Objective(Budget(4, 2), wide, MACS)
    with pytest.warns(UserWarning, match=r"'wide' has values outside of its bounds 0\.\.1"):
        assert objective.rewards(MASKS[3:4], measured([0.1])).tolist() == [1.0]
    assert objective.rewards(MASKS[3:4], measured([1.0]))[0] == pytest.approx(2 / np.e)


@pytest.mark.parametrize("given", [np.ones(3), 0.5, None, ["a", "b"]], ids=["short", "number", "nothing", "words"])
def test_rewards_of_users_are_checked(given):
    own = Reward("own", 0.0, 1.0, lambda scores: given)
    with pytest.raises(ValueError, match="reward 'own'"):
        Objective(Budget(4, skip_num=1), own, MACS).rewards(MASKS[:2], measured([0.0, 1.0]))


def test_register_reward_adds_it_or_rejects_it(monkeypatch):
    monkeypatch.setattr(rewards_module, "REWARDS", dict(REWARDS))
    register_reward(Reward("half", 0.0, 0.5, lambda scores: scores.metrics / 2))
    earned = Objective(Budget(4), find_reward("half"), MACS).rewards(MASKS, measured(np.zeros(16)))
    assert earned.tolist() == [0.25] * 16
    for bounds in ((1.0, 1.0), (0.0, math.inf)):
        with pytest.raises(ValueError, match="'third'"):
            register_reward(Reward("third", *bounds, abs))
    with pytest.raises(TypeError, match="Reward"):
        register_reward("half")  # type: ignore[arg-type]


def test_neg_kl_needs_divergences():
    with pytest.raises(ValueError, match="neg_kl"):
        find_reward("neg_kl").compute(Scores(np.zeros(1), np.zeros(1)))
    with pytest.raises(ValueError, match="loss of the full model"):
        find_reward("perplexity_ratio").compute(Scores(np.zeros(1), np.zeros(1)))
