"""Budgets of masks and scores, against values worked out by hand."""

import numpy as np
import pytest

from das_gym.problem.budget import SAVED, Budget, MaskCost, given_costs, pick_budget, satisfies_budget

MACS = MaskCost(full=100, unskipped=105, savings=np.array([30, 20, -5, 10]))
SCORES = np.array([[0.1, 0.4, 0.3, 0.2], [0.5, -0.1, -0.5, 1.5]])


@pytest.mark.parametrize(
    ("budget", "masks"),
    [
        (Budget(4, skip_num=2), [[0, 1, 1, 0], [1, 0, 0, 1]]),
        (Budget(4), [[1, 1, 1, 1], [1, 0, 0, 1]]),
        (Budget(4, saved=0.2, cost=MACS), [[0, 1, 0, 1], [1, 0, 0, 1]]),
        (Budget(4, saved=0.55, cost=MACS), [[1, 1, 0, 1], [1, 1, 0, 1]]),
    ],
    ids=["count", "none", "cost", "all that saves"],
)
def test_skip_highest_skips_until_the_budget_is_satisfied(budget, masks):
    """The third layer costs less than its adapter: by cost it is never skipped."""
    assert budget.skip_highest(SCORES).astype(int).tolist() == masks


def test_violations_and_what_is_left_are_shares():
    masks = np.array([[0, 0, 0, 0], [1, 0, 0, 0], [1, 1, 1, 1]], dtype=bool)
    assert Budget(4, skip_num=2).violations(masks).tolist() == [0.5, 0.25, 0.5]
    assert Budget(4, skip_num=2).remaining(masks).tolist() == [0.5, 0.25, 0.0]
    assert Budget(4, saved=0.5, cost=MACS).violations(masks) == pytest.approx([0.55, 0.25, 0.0])
    assert Budget(4, saved=0.5, cost=MACS).remaining(masks) == pytest.approx([0.55, 0.25, 0.0])
    assert Budget(4, saved=0.5, cost=MACS).is_feasible(masks).tolist() == [False, False, True]
    assert Budget(4).violations(masks).tolist() == [0.0, 0.0, 0.0]
    assert Budget(4).remaining(masks).tolist() == [1.0, 0.75, 0.0]


def test_pick_budget_defaults_to_four_layers():
    assert pick_budget(12, {"skip_num": "auto"}, unasked).skip_num == 4
    assert pick_budget(2, {"skip_num": "auto"}, unasked).describe() == "exactly 2 of 2 layers"
    found = pick_budget(4, {"macs_saved": 0.5}, lambda setting: MACS)
    assert found.as_dict() == {"n_layers": 4, "skip_num": None, "macs_saved": 0.5}


def unasked(setting: str) -> MaskCost:
    raise AssertionError(f"{setting} was not given")


@pytest.mark.parametrize(("setting", "word"), SAVED.items())
def test_pick_budget_takes_every_cost(setting, word):
    asked = []
    cost = MaskCost(100.0, 105.0, np.array([30.5, 20.0, -5.0, 10.0]), setting)
    budget = pick_budget(4, {"skip_num": "auto", setting: 0.5}, lambda name: asked.append(name) or cost)
    assert asked == [setting]
    assert budget.describe() == f"at least 50 % of the {word} saved"
    assert budget.settings == {"skip_num": None, setting: 0.5}
    masks = np.array([[1, 1, 0, 0], [1, 1, 0, 1], [1, 1, 1, 1]], dtype=bool)
    assert budget.is_feasible(masks).tolist() == [False, True, True]
    told = {**budget.settings, "costs": {setting: cost.as_dict()}}
    satisfied = [satisfies_budget(told, mask, 0.55) for mask in masks.astype(int).tolist()]
    assert satisfied == [setting == "macs_saved", True, True]
    with pytest.raises(ValueError, match=rf"`{setting}` is out of reach.* 0\.5550 \(55\.50 %\)"):
        pick_budget(4, {setting: 0.6}, lambda name: cost)


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"saved": 0.0, "cost": MaskCost(100, 150, np.array([20, 20]))}, "`macs_saved` is out of reach"),
        ({"saved": 0.1, "cost": MACS}, "`costs`"),
        ({"saved": 0.1}, "`costs`"),
        ({"skip_num": 3}, "`skip_num`"),
    ],
)
def test_budget_rejects_what_no_mask_satisfies(settings, name):
    for wrong in ("2", 0):
        with pytest.raises(ValueError, match="`n_layers` is out of range"):
            Budget(wrong, **settings)
    with pytest.raises(ValueError, match=name):
        Budget(2, **settings)


@pytest.mark.parametrize(
    "budget",
    [
        {"skip_num": "auto", "macs_saved": 0.1, "latency_saved": 0.2},
        {"skip_num": 2, "memory_saved": 0.2},
        *({"skip_num": value} for value in (5, -1, True, "4")),
        *({"macs_saved": value} for value in (12, -0.1, float("nan"), "0.1")),
    ],
)
def test_pick_budget_rejects_wrong_settings(budget):
    with pytest.raises(ValueError, match=r"more than one budget|`skip_num`|`macs_saved`"):
        pick_budget(4, budget, unasked)


@pytest.mark.parametrize(
    "costs",
    [
        {"latncy_saved": {}},
        {"latency_saved": {"full": 1.0, "unskipped": 1.0}},
        {"latency_saved": {"full": 0.0, "unskipped": 1.0, "savings": [1.0]}},
        {"latency_saved": {"full": 1.0, "unskipped": 1.0, "savings": [[1.0]]}},
        {"latency_saved": {"full": 1.0, "unskipped": 1.0, "savings": [float("nan")]}},
    ],
)
def test_given_costs_rejects_other_figures(costs):
    with pytest.raises(ValueError, match=r"latency_saved"):
        given_costs(costs)


def test_mask_cost_rounds_shares_once():
    cost = MaskCost(100, 100, np.array([20, 30, -10]), "parameters_saved")
    assert cost.saved(np.array([[True, False, False]])).tolist() == [0.2]  # 1 - 0.8 is less
    assert cost.range == (-0.1, 0.5)
