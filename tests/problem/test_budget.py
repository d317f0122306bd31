"""What a budget says of masks and scores, worked out by hand."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from das_gym.files import write_json
from das_gym.problem.budget import Budget, check_budget, keeps_budget, pick_budget
from das_gym.problem.mask_cost import SAVED, MaskCost, given_costs

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
def test_the_highest_are_skipped(budget: Budget, masks: list[list[int]]):
    """The third layer costs less than its adapter: by cost it is never skipped."""
    assert budget.skip_highest(SCORES).astype(int).tolist() == masks


def test_a_saving_that_only_skipping_every_layer_reaches():
    macs = MaskCost(full=100, unskipped=100, savings=np.array([10, 10, 10]))
    assert Budget(3, saved=0.3, cost=macs).skip_highest(np.zeros((1, 3))).all()


def test_in_plain_values():
    assert Budget(np.int64(4), skip_num=np.int64(2)).as_dict() == {"n_layers": 4, "skip_num": 2}
    assert Budget(4, saved=0.5, cost=MACS).as_dict() == {"n_layers": 4, "skip_num": None, "macs_saved": 0.5}


def test_it_does_not_change():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Budget(4, skip_num=2).skip_num = 3  # type: ignore[misc]


def test_violations_are_shares_of_layers_or_of_macs():
    masks = np.array([[0, 0, 0, 0], [1, 0, 0, 0], [1, 1, 1, 1]], dtype=bool)
    assert Budget(4, skip_num=2).violations(masks).tolist() == [0.5, 0.25, 0.5]
    assert Budget(4, saved=0.5, cost=MACS).violations(masks) == pytest.approx([0.55, 0.25, 0.0])
    assert Budget(4).violations(masks).tolist() == [0.0, 0.0, 0.0]
    assert Budget(4, saved=0.5, cost=MACS).is_kept_by(masks).tolist() == [False, False, True]


def test_what_is_left_to_skip():
    masks = np.array([[0, 0, 0, 0], [1, 1, 1, 0]], dtype=bool)
    assert Budget(4, skip_num=2).left(masks).tolist() == [0.5, 0.0]
    assert Budget(4).left(masks).tolist() == [1.0, 0.25]
    assert Budget(4, saved=0.5, cost=MACS).left(masks) == pytest.approx([0.55, 0.1])


def test_auto_is_four_layers_at_most():
    assert pick_budget(12, {"skip_num": "auto"}, unasked).skip_num == 4
    assert pick_budget(2, {"skip_num": "auto"}, unasked).skip_num == 2
    assert pick_budget(4, {"macs_saved": 0.5}, lambda setting: MACS).as_dict() == {
        "n_layers": 4,
        "skip_num": None,
        "macs_saved": 0.5,
    }


def test_in_words():
    assert Budget(4, skip_num=2).describe() == "exactly 2 of 4 layers"
    assert Budget(4, saved=0.5, cost=MACS).describe() == "at least 50 % of the MACs saved"
    assert Budget(4).describe() == "any number of layers"


def unasked(setting: str) -> MaskCost:
    raise AssertionError(f"nobody asked for {setting}")


@pytest.mark.parametrize(("setting", "word"), SAVED.items())
def test_a_share_of_any_cost(setting: str, word: str):
    asked = []
    cost = MaskCost(100.0, 105.0, np.array([30.5, 20.0, -5.0, 10.0]), setting)
    budget = pick_budget(4, {"skip_num": "auto", setting: 0.5}, lambda name: asked.append(name) or cost)
    assert asked == [setting]
    assert budget.describe() == f"at least 50 % of the {word} saved"
    assert budget.settings == {"skip_num": None, setting: 0.5}
    masks = np.array([[1, 1, 0, 0], [1, 1, 0, 1], [1, 1, 1, 1]], dtype=bool)
    assert budget.is_kept_by(masks).tolist() == [False, True, True]
    told = {**budget.settings, **budget.known_costs}
    assert [keeps_budget(told, mask, 0.55) for mask in masks.astype(int).tolist()] == [setting == "macs_saved", True, True]
    with pytest.raises(ValueError, match=rf"{setting}=0\.6 is out of reach: .* saves is 0\.5550 \(55\.50 %\)"):
        pick_budget(4, {setting: 0.6}, lambda name: cost)


def test_adapters_that_cost_more_than_layers_are_named():
    with pytest.raises(ValueError, match=r"macs_saved=0\.1 is out of reach: with its adapters this model costs more than"):
        Budget(2, saved=0.1, cost=MaskCost(100, 150, np.array([20, 20])))


def test_one_budget_at_a_time():
    with pytest.raises(ValueError, match=r"macs_saved=0\.1 and latency_saved=0\.2 are both given; .* leave one of them out"):
        pick_budget(4, {"skip_num": "auto", "macs_saved": 0.1, "latency_saved": 0.2}, unasked)
    with pytest.raises(ValueError, match=r"skip_num=2, macs_saved=0\.1 and memory_saved=0\.2 are all given"):
        check_budget({"skip_num": 2, "macs_saved": 0.1, "memory_saved": 0.2})


@pytest.mark.parametrize(
    ("costs", "says"),
    [
        ({"latncy_saved": {}}, "did you mean 'latency_saved'"),
        ({"latency_saved": {"full": 1.0, "unskipped": 1.0}}, "latency_saved is no cost .*give full, unskipped, savings"),
        ({"latency_saved": {"full": 0.0, "unskipped": 1.0, "savings": [1.0]}}, "full above 0"),
        ({"latency_saved": {"full": 1.0, "unskipped": 1.0, "savings": [[1.0]]}}, "and savings, one a unit"),
        ({"latency_saved": {"full": 1.0, "unskipped": 1.0, "savings": [float("nan")]}}, "give finite numbers"),
    ],
)
def test_costs_that_are_none(costs: dict, says: str):
    with pytest.raises(ValueError, match=says):
        given_costs(costs)


def test_a_share_is_rounded_once_and_what_is_left_costs_by_the_same_measure():
    cost = MaskCost(100, 100, np.array([20, 30, -10]), "parameters_saved")
    assert cost.saved(np.array([[True, False, False]])).tolist() == [0.2]  # 1 - 0.8 is less
    assert cost.range == (-0.1, 0.5)
    left = cost.without(np.array([True, False, False]))
    assert (left.full, left.unskipped, left.savings.tolist(), left.setting) == (80, 80, [30, -10], "parameters_saved")


def test_costs_read_back(tmp_path: Path):
    cost = MaskCost(3.0, 3.5, np.array([0.25, 1 / 3]), "latency_saved")
    write_json(tmp_path / "figures.json", {"costs": {"latency_saved": cost.as_dict()}})
    read = given_costs(str(tmp_path / "figures.json"))["latency_saved"]
    assert (read.full, read.unskipped, read.savings.tolist(), read.setting) == (3.0, 3.5, [0.25, 1 / 3], "latency_saved")
