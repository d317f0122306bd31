"""Guarantees of every agent in `AGENTS`."""

import numpy as np
import pytest
from das_gym.agents import AGENTS, MaskSpace, make_agent
from landscapes import SPACES, rewards, statistics

from das_gym.problem.budget import Budget, MaskCost

SMALL = {
    "no layer": MaskSpace(Budget(5, 0)),
    "all layers": MaskSpace(Budget(5, 5)),
    "one layer": MaskSpace(Budget(1, 1)),
    "by cost": MaskSpace(Budget(5, saved=0.25, cost=MaskCost(100, 100, np.full(5, 10)))),
}
PAIRS = [(name, space) for name in AGENTS for space in SPACES if name != "exhaustive" or SPACES[space].is_enumerable]


def make(name, space, seed=0, **kwargs):
    return make_agent(name, space, seed, kwargs, statistics(space))


def play(agent, turns, n=3):
    """Ask and tell for some turns; return the masks of each."""
    asked = []
    for _ in range(turns):
        masks = agent.ask(n)
        if len(masks) == 0:
            break
        asked.append(masks)
        agent.tell(masks, rewards(masks))
    return asked


def check_masks(agent, asked, n):
    """Masks are distinct in each turn, and within the budget; so is the answer."""
    for masks in asked:
        assert (masks.dtype, masks.shape[1]) == (bool, agent.n_layers)
        assert len(np.unique(masks, axis=0)) == len(masks) <= n
        assert agent.free_budget or agent.space.contains(masks).all()
    assert agent.space.contains(agent.best()[None])[0]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "space"), PAIRS)
def test_agent_masks_are_distinct_and_within_budget(name, space):
    agent = make(name, SPACES[space])
    check_masks(agent, play(agent, 15), 3)
    assert (agent.best() == agent.best()).all()


@pytest.mark.parametrize("name", AGENTS)
def test_agent_repeats_masks_with_the_same_seed(name):
    one, other = (np.concatenate(play(make(name, SPACES["cost"], seed=7), 10)) for _ in range(2))
    assert (one == other).all()


@pytest.mark.slow
@pytest.mark.parametrize("space", SMALL.values(), ids=SMALL)
@pytest.mark.parametrize("name", AGENTS)
def test_agent_ends_when_few_masks_exist(name, space):
    agent = make(name, space)
    check_masks(agent, play(agent, 5, n=100), 100)


@pytest.mark.parametrize("name", [name for name in AGENTS if name != "bandit"])
def test_agent_scores_no_mask_twice(name):
    space = MaskSpace(Budget(8, 3))
    asked = np.concatenate(play(make(name, space), 100))
    assert len(np.unique(asked, axis=0)) == len(asked)
    if name in ("random", "evolution", "evopress", "bayes", "exhaustive"):
        assert len(asked) == space.size


@pytest.mark.parametrize("name", AGENTS)
def test_agent_rejects_bad_rewards_and_settings(name):
    agent, masks = make(name, SPACES["count"]), SPACES["count"].masks[:3]
    for wrong, values in ((masks[:, :11], np.zeros(3)), (masks, np.zeros(2)), (masks, np.array([0.0, np.nan, 1.0]))):
        with pytest.raises(ValueError, match="reward"):
            agent.tell(wrong, values)
    assert not agent.rewards
    with pytest.raises(ValueError, match="unknown setting"):
        make(name, SPACES["count"], sed=1)
    with pytest.raises(TypeError, match="space"):
        type(agent)(12)
