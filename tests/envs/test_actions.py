from __future__ import annotations

import json

import gymnasium
import numpy as np
import pytest

from das_gym.envs.actions import ACTION_MODES, MaskMode, ScoreMode, SequenceMode, find_action_mode, with_effect
from das_gym.problem.budget import Budget
from das_gym.problem.mask_cost import MaskCost
from das_gym.problem.mask_space import every_mask

NAMES = ("text.0", "text.1", "image.0", "image.1")
MACS = MaskCost(full=100, unskipped=104, savings=np.array([5, 20, 30, -1]))
COUNT, COST, FREE = Budget(4, 2), Budget(4, None, 0.2, MACS), Budget(4)


def mode(cls, budget: Budget = COUNT, rows: int = 1):
    begun = cls(NAMES, budget, MACS, rows)
    begun.begin()
    return begun


def play(sequence: SequenceMode, *actions: int):
    """The moves of one episode."""
    sequence.begin()
    return [sequence.take(action) for action in actions]


def test_modes_are_found_by_name():
    assert [find_action_mode(name) for name in ACTION_MODES] == [MaskMode, SequenceMode, ScoreMode]
    with pytest.raises(ValueError, match="unknown action 'sequenc'; did you mean 'sequence'"):
        find_action_mode("sequenc")


# --- sequence ---------------------------------------------------------------------------------------------------------


def test_a_sequence_is_as_long_as_its_budget():
    one, two = play(mode(SequenceMode), 3, 0)
    assert (bool(one.ended[0]), bool(two.ended[0])) == (False, True)
    assert two.masks[0].tolist() == [True, False, False, True]
    assert one.info["action_mask"][0].tolist() == [True, True, True, False]
    assert not one.info["invalid_action"][0]


def test_an_action_without_effect_stands_for_the_next():
    moves = play(mode(SequenceMode, Budget(4, 3)), 3, 3, 3)
    assert [np.flatnonzero(move.masks[0]).tolist() for move in moves] == [[3], [0, 3], [0, 1, 3]]
    assert [bool(move.info["invalid_action"][0]) for move in moves] == [False, True, True]
    assert [bool(move.ended[0]) for move in moves] == [False, False, True]


def test_with_effect_by_hand():
    masks = np.array([[1, 0, 0, 1], [0, 1, 0, 0], [1, 1, 1, 1]], dtype=bool)
    for actions, meant in (([0, 0, 0], [0, 1, 0]), ([1, 2, 2], [3, 1, 2]), ([3, 3, 3], [3, 1, 3])):
        assert with_effect(np.array(actions), masks).tolist() == meant


@pytest.mark.parametrize("budget", [COUNT, COST, FREE, Budget(4, 4), Budget(4, 0)])
def test_who_repeats_one_action_comes_to_an_end(budget: Budget):
    sequence = mode(SequenceMode, budget)
    for action in range(sequence.space.n):
        sequence.begin()
        for _ in range(5):
            move = sequence.take(action)
            if move.ended[0]:
                break
        assert move.ended[0]
        assert budget.is_kept_by(move.masks)[0]


@pytest.mark.parametrize("budget", [COUNT, COST, FREE, Budget(4, 4)])
def test_who_is_told_the_masks_sees_no_redirect(budget: Budget):
    rng, sequence = np.random.default_rng(0), mode(SequenceMode, budget)
    for _ in range(20):
        sequence.begin()
        ended, chosen = False, []
        while not ended:
            chosen.append(int(rng.choice(np.flatnonzero(sequence.action_masks()[0]))))
            move = sequence.take(chosen[-1])
            ended = move.ended[0]
            assert not move.info["invalid_action"][0]
            assert np.flatnonzero(move.masks[0]).tolist() == sorted(layer for layer in chosen if layer < 4)


def test_after_the_end_comes_a_reset():
    sequence = mode(SequenceMode)
    play(sequence, 0, 1)
    with pytest.raises(gymnasium.error.ResetNeeded, match=r"call reset\(\)"):
        sequence.take(2)
    sequence.begin()
    assert sequence.take(2).masks[0].tolist() == [False, False, True, False]


@pytest.mark.parametrize("budget", [Budget(4, 0), Budget(4, None, 0.0, MaskCost(100, 90, MACS.savings))])
def test_a_budget_kept_by_nothing_ends_at_once(budget: Budget):
    sequence = mode(SequenceMode, budget)
    assert sequence.action_masks().all()
    (move,) = play(sequence, 1)
    assert move.ended[0]
    assert not move.masks.any()
    assert not move.info["invalid_action"][0]


def test_any_allowed_order_reaches_a_budget_by_cost():
    rng = np.random.default_rng(0)
    for target in np.linspace(0, MACS.range[1], 7):
        sequence = mode(SequenceMode, Budget(4, None, float(target), MACS))
        for _ in range(20):
            sequence.begin()
            moves = None
            for _ in range(4):
                moves = sequence.take(int(rng.choice(np.flatnonzero(sequence.action_masks()[0]))))
                assert not moves.info["invalid_action"][0]
                if moves.ended[0]:
                    break
            assert moves.ended[0]
            assert MACS.saved(moves.masks)[0] >= target


def test_a_layer_that_saves_nothing_is_no_way_to_a_saving():
    sequence = mode(SequenceMode, COST)
    assert sequence.action_masks()[0].tolist() == [True, True, True, False]
    move = play(sequence, 3)[0]
    assert move.info["invalid_action"][0]
    assert move.masks[0].tolist() == [True, False, False, False]


def test_without_a_budget_there_is_a_stop():
    sequence = mode(SequenceMode, FREE)
    assert sequence.space.n == 5
    assert play(sequence, 4)[0].ended[0]
    assert play(sequence, 1, 3, 4)[-1].masks[0].tolist() == [False, True, False, True]
    every = play(sequence, 0, 1, 2, 3)[-1]
    assert every.ended[0]
    assert every.masks.all()


def test_what_a_sequence_observes():
    sequence = mode(SequenceMode, COST)
    assert sequence.feature_names == (*(f"{name}/skipped" for name in NAMES), "macs_saved", "budget_left")
    np.testing.assert_allclose(sequence.features()[0], [0, 0, 0, 0, -0.04, 0.24], atol=1e-6)
    play(sequence, 1)
    np.testing.assert_allclose(sequence.features()[0], [0, 1, 0, 0, 0.16, 0.04], atol=1e-6)
    masks = every_mask(4)
    for budget in (COUNT, COST, FREE):
        all_at_once = mode(SequenceMode, budget, rows=16)
        all_at_once.masks = masks
        features = all_at_once.features()
        assert (features >= all_at_once.low).all()
        assert (features <= all_at_once.high).all()


def test_action_masks_are_never_all_false():
    for budget in (COUNT, COST, FREE, Budget(4, 4), Budget(4, 0)):
        sequence = mode(SequenceMode, budget, rows=16)
        sequence.masks = every_mask(4)
        assert sequence.action_masks().any(axis=1).all()


@pytest.mark.parametrize("action", [4, -1, 1.0, np.array([1]), "1", None])
def test_what_is_no_layer_is_refused(action):
    with pytest.raises(ValueError, match=r"0\.\.3"):
        mode(SequenceMode).take(action)


def test_rows_go_on_by_themselves():
    sequence = mode(SequenceMode, rows=2)
    sequence.take(np.array([0, 1]), (2,))
    sequence.begin(np.array([True, False]))
    moves = sequence.take(np.array([2, 3]), (2,))
    assert moves.masks.tolist() == [[False, False, True, False], [False, True, False, True]]
    assert moves.ended.tolist() == [False, True]


@pytest.mark.parametrize("budget", [COUNT, COST, FREE, Budget(4, 0)])
def test_sequence_alone_and_in_rows_agree(budget: Budget):
    alone, rows, rng = mode(SequenceMode, budget), mode(SequenceMode, budget, rows=2), np.random.default_rng(0)
    for _ in range(200):  # masks come back, so that remembered ones are asked for
        action = rng.integers(alone.space.n)
        one, two = alone.take(action), rows.take(np.array([action, action]), (2,))
        for got, wanted in zip((one.masks, one.ended, alone.over), (two.masks, two.ended, rows.over), strict=True):
            np.testing.assert_array_equal(got[0], wanted[0])
        for key, value in two.info.items():
            np.testing.assert_array_equal(one.info[key][0], value[0])
        np.testing.assert_array_equal(alone.features()[0], rows.features()[0])
        np.testing.assert_array_equal(alone.action_masks()[0], rows.action_masks()[0])
        for array in (alone.features(), alone.action_masks(), one.masks, one.info["action_mask"]):
            array[:] = 1  # whoever writes into them changes nothing
        if one.ended[0]:
            alone.begin()
            rows.begin()


def test_a_state_is_json_and_goes_on():
    one, other = mode(SequenceMode), mode(SequenceMode)
    play(one, 2)
    other.set_state(json.loads(json.dumps(one.get_state())))
    for move, twin in zip(one.take(0), other.take(0), strict=True):
        np.testing.assert_equal(move, twin)


# --- scores -----------------------------------------------------------------------------------------------------------


def test_the_highest_scores_are_skipped():
    moves = mode(ScoreMode).take(np.array([0.1, 0.9, -1.0, 0.5]))
    assert moves.masks[0].tolist() == [False, True, False, True]
    assert moves.ended[0]


def test_of_equal_scores_the_first():
    assert mode(ScoreMode).take(np.zeros(4)).masks[0].tolist() == [True, True, False, False]


def test_scores_reach_a_saving_and_no_more():
    scores = np.random.default_rng(1).normal(size=(200, 4))
    masks = mode(ScoreMode, COST, rows=200).take(scores, (200,)).masks
    assert (MACS.saved(masks) >= 0.2).all()
    assert not masks[:, 3].any()
    last = np.where(masks, scores, np.inf).argmin(axis=1)
    masks[np.arange(200), last] = False  # without the last layer it would not be reached
    assert (MACS.saved(masks) < 0.2).all()


def test_scores_without_a_budget():
    assert mode(ScoreMode, FREE).take(np.array([0.1, -0.1, 0.0, 1.0])).masks[0].tolist() == [True, False, False, True]


def test_scores_and_a_budget_of_nothing():
    assert not mode(ScoreMode, Budget(4, 0)).take(np.ones(4)).masks.any()


@pytest.mark.parametrize(
    ("action", "says"), [(np.zeros(3), r"scores of shape \(4,\)"), (np.array([0, np.nan, 0, 0]), "not a number")]
)
def test_what_are_no_scores_is_refused(action, says: str):
    with pytest.raises(ValueError, match=says):
        mode(ScoreMode).take(action)


def test_scores_cannot_be_masked():
    with pytest.raises(ValueError, match="action='scores' has no actions to mask; use action='sequence'"):
        mode(ScoreMode).action_masks()


# --- mask -------------------------------------------------------------------------------------------------------------


def test_masks_are_masked_in_pairs():
    assert mode(MaskMode, rows=3).action_masks().shape == (3, 8)
    assert mode(MaskMode).take(np.array([1, 0, 0, 1])).masks[0].tolist() == [True, False, False, True]
