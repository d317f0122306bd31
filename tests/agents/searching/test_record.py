from __future__ import annotations

import pytest
from das_gym.agents.searching.record import Turn

from das_gym.problem.budget import keeps_budget


def turn(masks, rewards, share=1.0, macs=9):
    n = len(masks)
    scores = {"loss": rewards, "metric": rewards, "macs": [macs] * n, "macs_saved": [0.1 * sum(mask) for mask in masks]}
    return Turn(masks, rewards, **scores, examples_share=share)


@pytest.mark.parametrize(
    ("budget", "kept"),
    [
        ({"skip_num": 2}, [False, True, False]),
        ({"skip_num": None, "macs_saved": 0.2}, [False, True, True]),
        ({"skip_num": None}, [True, True, True]),
        ({}, [True, True, True]),
    ],
)
def test_keeps_budget_by_count_and_cost(budget, kept):
    masks = [[1, 0, 0], [1, 1, 0], [1, 1, 1]]
    assert [keeps_budget(budget, mask, saved) for mask, saved in zip(masks, (0.1, 0.2, 0.3), strict=True)] == kept


@pytest.mark.parametrize(
    ("masks", "rewards", "text"),
    [
        ([[1, 0], [0, 1]], [0.5], "2 masks, but 1 values of `rewards`"),
        ([[1, 0], [0]], [0.5, 0.5], "`mask` is not allowed"),
        ([[1, 7]], [0.5], "`mask` is not allowed"),
    ],
)
def test_turn_rejects_masks_and_scores(masks, rewards, text):
    with pytest.raises(ValueError, match=text):
        turn(masks, rewards)
