import numpy as np
import pytest

from das_gym.envs.actions import MaskMode, ScoreMode, SequenceMode
from das_gym.problem.budget import Budget, MaskCost

NAMES = ("text.0", "text.1", "image.0", "image.1")
MACS = MaskCost(full=100, unskipped=104, savings=np.array([5, 20, 30, -1]))
COUNT, COST, FREE = Budget(4, 2), Budget(4, None, 0.2, MACS), Budget(4)


def mode(cls, budget: Budget = COUNT, rows: int = 1):
    begun = cls(NAMES, budget, MACS, rows)
    begun.begin()
    return begun


def play(sequence: SequenceMode, *actions: int):
    """Return the moves of one episode."""
    sequence.begin()
    return [sequence.step(action) for action in actions]


@pytest.mark.parametrize("budget", [COUNT, COST, FREE, Budget(4, 4), Budget(4, 0)])
def test_sequence_ends_when_one_action_is_repeated(budget):
    sequence = mode(SequenceMode, budget)
    for action in range(sequence.space.n):
        sequence.begin()
        ended = [sequence.step(action).ended[0] for _ in range(4) if not sequence.ended[0]]
        assert ended[-1]


@pytest.mark.parametrize("budget", [COUNT, COST, FREE, Budget(4, 4), Budget(4, None, 0.5, MACS)])
def test_sequence_takes_masked_actions_as_they_are_and_satisfies_the_budget(budget):
    rng, sequence = np.random.default_rng(0), mode(SequenceMode, budget)
    for _ in range(20):
        sequence.begin()
        chosen = []
        while not sequence.ended[0]:
            chosen.append(int(rng.choice(np.flatnonzero(sequence.action_masks()[0]))))
            move = sequence.step(chosen[-1])
            assert not move.info["invalid_action"][0]
        assert np.flatnonzero(move.masks[0]).tolist() == sorted(layer for layer in chosen if layer < 4)
        assert budget.is_feasible(move.masks)[0]


def test_sequence_excludes_layers_that_save_nothing():
    sequence = mode(SequenceMode, COST)
    assert sequence.action_masks()[0].tolist() == [True, True, True, False]
    move = play(sequence, 3)[0]
    assert move.info["invalid_action"][0]
    assert move.masks[0].tolist() == [True, False, False, False]


@pytest.mark.parametrize("action", [4, -1, 1.0, np.array([1]), "1", None])
def test_sequence_rejects_actions_outside_its_space(action):
    with pytest.raises(ValueError, match="`action`"):
        mode(SequenceMode).step(action)


@pytest.mark.parametrize("budget", [COUNT, COST, FREE, Budget(4, 0)])
def test_single_sequence_agrees_with_rows(budget):
    alone, rows, rng = mode(SequenceMode, budget), mode(SequenceMode, budget, rows=2), np.random.default_rng(0)
    for _ in range(200):  # masks recur, so that cached states are read
        action = rng.integers(alone.space.n)
        one, two = alone.step(action), rows.step(np.array([action, action]), (2,))
        np.testing.assert_equal([one.masks[0], one.ended[0]], [two.masks[0], two.ended[0]])
        for key, value in two.info.items():
            np.testing.assert_array_equal(one.info[key][0], value[0])
        np.testing.assert_array_equal(alone.features()[0], rows.features()[0])
        np.testing.assert_array_equal(alone.action_masks()[0], rows.action_masks()[0])
        for array in (alone.features(), alone.action_masks(), one.masks, one.info["action_mask"]):
            array[:] = 1  # a caller that writes into them changes nothing
        if one.ended[0]:
            alone.begin()
            rows.begin()


def test_scores_skip_the_highest_and_of_equal_ones_the_first():
    moves = mode(ScoreMode).step(np.array([0.1, 0.9, -1.0, 0.5]))
    assert moves.masks[0].tolist() == [False, True, False, True]
    assert moves.ended[0]
    assert mode(ScoreMode).step(np.zeros(4)).masks[0].tolist() == [True, True, False, False]
    assert mode(ScoreMode, FREE).step(np.array([0.1, -0.1, 0.0, 1.0])).masks[0].tolist() == [True, False, False, True]
    assert not mode(ScoreMode, Budget(4, 0)).step(np.ones(4)).masks.any()


@pytest.mark.parametrize("action", [np.zeros(3), np.array([0, np.nan, 0, 0]), np.array(["a"] * 4)])
def test_scores_rejects_other_arrays(action):
    with pytest.raises(ValueError, match=r"action|could not convert"):
        mode(ScoreMode).step(action)


def test_only_sequences_have_action_masks():
    for cls in (MaskMode, ScoreMode):
        with pytest.raises(ValueError, match=f"action='{cls.name}'"):
            mode(cls).action_masks()
