from __future__ import annotations

import pytest
from das_gym.agents.searching.record import Turn, best_row, keeps_budget


def turn(masks, rewards, share=1.0):
    n = len(masks)
    scores = {"loss": rewards, "metric": rewards, "macs": [9] * n, "macs_saved": [0.1 * sum(mask) for mask in masks]}
    return Turn(masks, rewards, **scores, skip_probabilities=None, preferences=None, examples_share=share)


@pytest.mark.parametrize(
    ("budget", "kept"),
    [
        ({"skip_num": 2}, [False, True, False]),
        ({"skip_num": None, "macs_saved": 0.2}, [False, True, True]),
        ({"skip_num": None}, [True, True, True]),
        ({}, [True, True, True]),
    ],
)
def test_which_masks_keep_a_budget(budget, kept):
    masks = [[1, 0, 0], [1, 1, 0], [1, 1, 1]]
    assert [keeps_budget(budget, mask, saved) for mask, saved in zip(masks, (0.1, 0.2, 0.3), strict=True)] == kept


def test_the_best_row_is_scored_on_all_examples_and_keeps_the_budget():
    turns = [
        turn([[1, 0, 0], [1, 1, 0]], [0.9, 0.3]),  # the first skips too little
        turn([[0, 1, 1]], [0.8], share=0.5),  # scored on half of the examples
        turn([[1, 0, 1], [0, 1, 1], [1, 1, 0]], [None, 0.4, 0.4]),
    ]
    assert best_row(turns, {"skip_num": 2}) == turns[2].row(1)
    assert best_row(turns[:1], {"skip_num": 1})["reward"] == 0.9
    assert best_row(turns[1:2], {"skip_num": 2}) is None
    assert best_row([turn([[1, 0]], [None])], {"skip_num": 1})["reward"] is None


@pytest.mark.parametrize(
    ("masks", "rewards", "text"),
    [
        ([[1, 0], [0, 1]], [0.5], "a turn has 2 masks and 1 of rewards; give one each"),
        ([[1, 0], [0]], [0.5, 0.5], "mask 1 of a turn is 1 entries, there are 2 layers"),
        ([[1, 7]], [0.5], r"mask 0 of a turn holds 7; give 0 \(keep\) or 1 \(skip\) a layer"),
    ],
)
def test_a_turn_has_one_score_a_mask(masks, rewards, text):
    with pytest.raises(ValueError, match=text):
        turn(masks, rewards)
