"""What a budget says of masks and scores, worked out by hand."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from das_gym.problem.budget import Budget, LayerMacs, pick_budget

MACS = LayerMacs(full=100, unskipped=105, savings=np.array([30, 20, -5, 10]))
SCORES = np.array([[0.1, 0.4, 0.3, 0.2], [0.5, -0.1, -0.5, 1.5]])


@pytest.mark.parametrize(
    ("budget", "masks"),
    [
        (Budget(4, skip_num=2), [[0, 1, 1, 0], [1, 0, 0, 1]]),
        (Budget(4), [[1, 1, 1, 1], [1, 0, 0, 1]]),
        (Budget(4, macs_saved=0.2, macs=MACS), [[0, 1, 0, 1], [1, 0, 0, 1]]),
        (Budget(4, macs_saved=0.55, macs=MACS), [[1, 1, 0, 1], [1, 1, 0, 1]]),
    ],
    ids=["count", "none", "cost", "all that saves"],
)
def test_the_highest_are_skipped(budget: Budget, masks: list[list[int]]):
    """The third layer costs less than its adapter: by cost it is never skipped."""
    assert budget.skip_highest(SCORES).astype(int).tolist() == masks


def test_a_saving_that_only_skipping_every_layer_reaches():
    macs = LayerMacs(full=100, unskipped=100, savings=np.array([10, 10, 10]))
    assert Budget(3, macs_saved=0.3, macs=macs).skip_highest(np.zeros((1, 3))).all()


def test_in_plain_values():
    assert Budget(np.int64(4), skip_num=np.int64(2)).as_dict() == {"n_layers": 4, "skip_num": 2, "macs_saved": None}
    assert Budget(4, macs_saved=0.5, macs=MACS).as_dict() == {"n_layers": 4, "skip_num": None, "macs_saved": 0.5}


def test_it_does_not_change():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Budget(4, skip_num=2).skip_num = 3  # type: ignore[misc]


def test_violations_are_shares_of_layers_or_of_macs():
    masks = np.array([[0, 0, 0, 0], [1, 0, 0, 0], [1, 1, 1, 1]], dtype=bool)
    assert Budget(4, skip_num=2).violations(masks).tolist() == [0.5, 0.25, 0.5]
    assert Budget(4, macs_saved=0.5, macs=MACS).violations(masks) == pytest.approx([0.55, 0.25, 0.0])
    assert Budget(4).violations(masks).tolist() == [0.0, 0.0, 0.0]
    assert Budget(4, macs_saved=0.5, macs=MACS).is_kept_by(masks).tolist() == [False, False, True]


def test_what_is_left_to_skip():
    masks = np.array([[0, 0, 0, 0], [1, 1, 1, 0]], dtype=bool)
    assert Budget(4, skip_num=2).left(masks).tolist() == [0.5, 0.0]
    assert Budget(4).left(masks).tolist() == [1.0, 0.25]
    assert Budget(4, macs_saved=0.5, macs=MACS).left(masks) == pytest.approx([0.55, 0.1])


def test_auto_is_four_layers_at_most():
    assert pick_budget(12, "auto", None, None).skip_num == 4
    assert pick_budget(2, "auto", None, None).skip_num == 2
    assert pick_budget(4, "auto", 0.5, MACS).as_dict() == {"n_layers": 4, "skip_num": None, "macs_saved": 0.5}


def test_in_words():
    assert Budget(4, skip_num=2).describe() == "exactly 2 of 4 layers"
    assert Budget(4, macs_saved=0.5, macs=MACS).describe() == "at least 50 % of the MACs saved"
    assert Budget(4).describe() == "any number of layers"
