from __future__ import annotations

import numpy as np
import pytest
from das_gym.agents import MaskSpace, RandomSearch

from das_gym.problem.budget import Budget


def test_no_mask_comes_twice_and_all_come():
    agent = RandomSearch(MaskSpace(Budget(6, 2)), seed=0)
    asked = []
    for _ in range(5):
        asked.append(agent.ask(4))
        agent.tell(asked[-1], np.zeros(len(asked[-1])))
    assert [len(masks) for masks in asked] == [4, 4, 4, 3, 0]
    masks = np.concatenate(asked)
    assert asked[-1].shape == (0, 6)
    assert (masks.sum(axis=1) == 2).all()
    assert len({mask.tobytes() for mask in masks}) == 15


@pytest.mark.parametrize("skip_num", [0, 6])
def test_the_only_mask(skip_num):
    agent = RandomSearch(MaskSpace(Budget(6, skip_num)), seed=0)
    masks = agent.ask(3)
    assert masks.shape == (1, 6)
    agent.tell(masks, np.array([0.5]))
    assert agent.best().sum() == skip_num


def test_every_layer_is_as_likely():
    np.testing.assert_allclose(RandomSearch(MaskSpace(Budget(12, 4)), seed=0).ask(495).mean(axis=0), 1 / 3)
    shares = np.mean([RandomSearch(MaskSpace(Budget(12, 4)), seed=seed).ask(3).mean(axis=0) for seed in range(500)], axis=0)
    assert np.abs(shares - 1 / 3).max() < 0.05


def test_the_answer_is_the_best_and_of_equal_ones_the_first():
    agent = RandomSearch(MaskSpace(Budget(12, 4)), seed=0)
    masks = agent.ask(5)
    agent.tell(masks[:3], np.array([0.1, 0.3, 0.2]))
    agent.tell(masks[3:], np.array([0.3, 0.05]))
    assert (agent.best() == masks[1]).all()
    agent.best()[:] = True  # a copy
    assert (agent.best() == masks[1]).all()


def test_an_answer_needs_a_score():
    with pytest.raises(ValueError, match="no mask that keeps the budget was scored yet"):
        RandomSearch(MaskSpace(Budget(12, 4))).best()
