from __future__ import annotations

import json

import numpy as np
import pytest

from agents import RandomSearch


def test_no_mask_comes_twice_and_all_come():
    agent = RandomSearch(6, 2, seed=0)
    asked = [agent.ask(4) for _ in range(5)]
    assert [len(masks) for masks in asked] == [4, 4, 4, 3, 0]
    masks = np.concatenate(asked)
    assert asked[-1].shape == (0, 6)
    assert (masks.sum(axis=1) == 2).all()
    assert len({mask.tobytes() for mask in masks}) == 15


@pytest.mark.parametrize("skip_num", [0, 6])
def test_the_only_mask(skip_num):
    agent = RandomSearch(6, skip_num, seed=0)
    masks = agent.ask(3)
    assert masks.shape == (1, 6)
    agent.tell(masks, np.array([0.5]))
    assert agent.best().sum() == skip_num


def test_every_layer_is_as_likely():
    agent = RandomSearch(12, 4, seed=0)
    np.testing.assert_allclose(agent.ask(495).mean(axis=0), agent.skip_probabilities())
    shares = np.mean([RandomSearch(12, 4, seed=seed).ask(3).mean(axis=0) for seed in range(500)], axis=0)
    assert np.abs(shares - 1 / 3).max() < 0.05


def test_the_answer_is_the_best_and_of_equal_ones_the_first():
    agent = RandomSearch(12, 4, seed=0)
    masks = agent.ask(5)
    agent.tell(masks[:3], np.array([0.1, 0.3, 0.2]))
    agent.tell(masks[3:], np.array([0.3, 0.05]))
    assert (agent.best() == masks[1]).all()
    agent.best()[:] = True  # a copy
    assert (agent.best() == masks[1]).all()


def test_a_saved_agent_goes_on_exactly():
    agent = RandomSearch(12, 4, seed=3)
    masks = agent.ask(5)
    agent.tell(masks, np.arange(5.0))
    fresh = RandomSearch(12, 4, seed=0)
    fresh.load_state_dict(json.loads(json.dumps(agent.state_dict())))
    assert (fresh.best() == agent.best()).all()
    for _ in range(10):
        assert (fresh.ask(7) == agent.ask(7)).all()


def test_an_answer_needs_a_score():
    with pytest.raises(ValueError, match="no mask was scored yet"):
        RandomSearch(12, 4).best()
