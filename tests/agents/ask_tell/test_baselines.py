import itertools

import numpy as np
import pytest
from das_gym.agents import MaskSpace
from das_gym.agents.ask_tell.baselines import Greedy, LeaveOneOut, RandomSearch
from landscapes import SPACES, rewards

from das_gym.problem.budget import Budget, MaskCost


def play(agent, n=3):
    asked = np.zeros((0, agent.n_layers), bool)
    while len(masks := agent.ask(n)):
        agent.tell(masks, rewards(masks))
        asked = np.concatenate((asked, masks))
    return asked


def removed_one_by_one(count):
    mask = np.zeros(12, bool)
    for _ in range(count):
        further = [mask | (np.arange(12) == layer) for layer in np.flatnonzero(~mask)]
        mask = max(further, key=lambda m: rewards(m[None])[0])
    return mask


@pytest.mark.parametrize("n", [1, 5])
def test_greedy_removes_the_best_layer_of_each_round(n):
    agent = Greedy(SPACES["count"])
    asked = play(agent, n)
    assert [len(list(group)) for _, group in itertools.groupby(asked.sum(axis=1).tolist())] == [12, 11, 10, 9]
    assert (agent.best() == removed_one_by_one(4)).all()


def test_greedy_by_cost_ends_within_the_budget():
    agent = Greedy(SPACES["cost"])
    asked = play(agent)
    allowed = asked[SPACES["cost"].contains(asked)]
    assert (agent.best() == max(allowed, key=lambda m: rewards(m[None])[0])).all()
    assert not SPACES["cost"].contains(removed_one_by_one(asked.sum(axis=1).max() - 1)[None])[0]


def test_leave_one_out_scores_each_layer_once():
    agent = LeaveOneOut(SPACES["count"])
    assert (play(agent) == np.eye(12, dtype=bool)).all()
    assert (agent.best() == SPACES["count"].top(rewards(np.eye(12, dtype=bool)))).all()


def test_greedy_answers_when_removal_leads_away():
    """Only one pair saves enough, and removing the others, which cost more skipped than kept, comes first."""
    pair = np.isin(np.arange(5), [0, 1])
    agent = Greedy(MaskSpace(Budget(5, saved=0.4, cost=MaskCost(100, 100, np.where(pair, 20, -1)))))
    while len(masks := agent.ask(3)):
        agent.tell(masks, masks @ np.arange(5.0))
    assert (agent.best() == pair).all()


def test_random_search_draws_each_layer_equally_often():
    np.testing.assert_allclose(RandomSearch(SPACES["count"], seed=0).ask(495).mean(axis=0), 1 / 3)
    shares = np.mean([RandomSearch(SPACES["count"], seed=seed).ask(3).mean(axis=0) for seed in range(500)], axis=0)
    assert np.abs(shares - 1 / 3).max() < 0.05
