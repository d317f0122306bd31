"""The base class: its memory, the checks of masks and answers, and registration."""

import numpy as np
import pytest
from das_gym.agents import AGENTS, Agent, MaskSpace, make_agent, register_agent
from das_gym.agents.ask_tell.base import agent_class, answer, ask
from das_gym.agents.ask_tell.baselines import RandomSearch

from das_gym.problem.budget import Budget

SPACE = MaskSpace(Budget(6, 2))
GOOD = SPACE.masks[:3]
OUTSIDE = np.arange(6) < 3


class Scripted(Agent):
    """Returns the masks that it is made with."""

    def __init__(self, space, seed=None, asked=GOOD, answered=GOOD[0]):
        super().__init__(space, seed)
        self.asked, self.answered = asked, answered

    def ask(self, n):
        return self.asked

    def best(self):
        return self.answered


def test_tell_rejects_what_is_no_array():
    agent = RandomSearch(MaskSpace(Budget(12, 4)), seed=0)
    for masks, rewards in (("a", "b"), ([[1, 0], [1]], [1.0, 2.0])):
        with pytest.raises(ValueError, match="`masks` and `rewards` are not arrays of numbers"):
            agent.tell(masks, rewards)


def test_agent_answers_with_the_first_best_mask():
    agent = RandomSearch(MaskSpace(Budget(12, 4)), seed=0)
    with pytest.raises(ValueError, match="no mask within the budget"):
        agent.best()
    masks = agent.ask(5)
    agent.tell(masks[:3], np.array([0.1, 0.3, 0.2]))
    agent.tell(masks[3:], np.array([0.3, 0.05]))
    agent.best()[:] = True  # a copy
    assert (agent.best() == masks[1]).all()
    assert (agent.scored_masks() == masks).all()


@pytest.mark.parametrize("asked", [None, GOOD * 2, SPACE.masks[:5], OUTSIDE])
def test_ask_and_answer_reject_wrong_masks(asked):
    with pytest.raises(ValueError, match=r"agent 'own': ask\(3\)"):
        ask(Scripted(SPACE, asked=asked), "own", 3)
    with pytest.raises(ValueError, match=r"agent 'own': best\(\)"):
        answer(Scripted(SPACE, answered=asked), "own")
    with pytest.raises(ValueError, match="outside the budget"):
        ask(Scripted(SPACE, asked=OUTSIDE[None]), "own", 3)


def test_agent_class_names_unknown_agents():
    for path in ("evolutoin", "json:loads", "nowhere:Agent"):
        with pytest.raises(ValueError, match=path):
            agent_class(path)


def test_register_agent_makes_agents_by_name(monkeypatch):
    for name, agent in (("own", Scripted), ("own_by_path", "das_gym.agents.ask_tell.baselines:RandomSearch")):
        monkeypatch.setitem(AGENTS, name, agent)
        del AGENTS[name]  # the fixture removes the name again at the end
        register_agent(name, agent)
    assert make_agent("own", SPACE, agent_kwargs={"asked": None}).asked is None
    assert type(make_agent("own_by_path", SPACE)) is RandomSearch


@pytest.mark.parametrize(
    ("name", "agent", "error"),
    [
        ("bandit", Scripted, ValueError),
        ("ppo", Scripted, ValueError),
        ("own", MaskSpace, TypeError),
        ("own", "das_gym.agents", TypeError),
    ],
)
def test_register_agent_rejects_names_and_classes(name, agent, error):
    before = dict(AGENTS)
    with pytest.raises(error):
        register_agent(name, agent)
    assert before == AGENTS
