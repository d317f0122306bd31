"""What every agent in the table of agents keeps to."""

from __future__ import annotations

import json

import numpy as np
import pytest
from das_gym.agents import AGENTS, BestSeen, MaskSpace, RandomSearch, make_agent, register_agent
from das_gym.agents.ask_tell.base import agent_class
from landscapes import SPACES, rewards, statistics

from das_gym.problem.budget import Budget
from das_gym.problem.mask_cost import MaskCost

SMALL = {
    "none": MaskSpace(Budget(5, 0)),
    "all": MaskSpace(Budget(5, 5)),
    "one of five": MaskSpace(Budget(5, 1)),
    "one layer": MaskSpace(Budget(1, 1)),
    "by cost": MaskSpace(Budget(5, saved=0.25, cost=MaskCost(100, 100, np.full(5, 10)))),
}


PAIRS = [(name, space) for name in AGENTS for space in SPACES if name != "exhaustive" or SPACES[space].enumerable]


def make(name, space, seed=0, **kwargs):
    return make_agent(name, space, seed, kwargs, statistics(space))


def play(agent, turns, n=3):
    """Ask and tell; the masks asked for."""
    asked = []
    for _ in range(turns):
        masks = agent.ask(n)
        if len(masks) == 0:
            break
        asked.append(masks)
        agent.tell(masks, rewards(masks))
    return asked


@pytest.mark.slow
@pytest.mark.parametrize(("name", "space"), PAIRS)
def test_masks_are_distinct_and_keep_the_budget(name, space):
    space = SPACES[space]
    agent = make(name, space)
    for masks in play(agent, 15):
        assert masks.dtype == bool
        assert masks.shape[0] <= 3
        assert masks.shape[1:] == (space.n_layers,)
        assert len(np.unique(masks, axis=0)) == len(masks)
        assert agent.free_budget or space.contains(masks).all()
        assert space.contains(agent.best()[None])[0]
    assert (agent.best() == agent.best()).all()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "space"), PAIRS)
@pytest.mark.parametrize("turns", [0, 1, 7])
def test_a_saved_agent_goes_on_exactly(name, space, turns):
    space = SPACES[space]
    agent = make(name, space, seed=5)
    play(agent, turns)
    fresh = make(name, space, seed=0)
    fresh.load_state_dict(json.loads(json.dumps(agent.state_dict())))
    one, other = play(agent, 8), play(fresh, 8)
    assert [masks.tolist() for masks in one] == [masks.tolist() for masks in other]
    assert (agent.best() == fresh.best()).all()
    assert json.dumps(agent.state_dict()) == json.dumps(fresh.state_dict())


@pytest.mark.parametrize("name", AGENTS)
def test_same_seed_same_masks(name):
    one, other = (np.concatenate(play(make(name, SPACES["cost"], seed=7), 10)) for _ in range(2))
    assert (one == other).all()


@pytest.mark.slow
@pytest.mark.parametrize("space", SMALL.values(), ids=SMALL)
@pytest.mark.parametrize("name", AGENTS)
def test_fewer_masks_than_asked_for_do_not_hang(name, space):
    agent = make(name, space)
    for masks in play(agent, 5, n=100):
        assert len(np.unique(masks, axis=0)) == len(masks)
    assert space.contains(agent.best()[None])[0]
    if space.skip_num in (0, 5):
        assert agent.best().sum() == space.skip_num


@pytest.mark.parametrize("name", [name for name in AGENTS if name != "bandit"])
def test_no_mask_comes_twice(name):
    space = MaskSpace(Budget(8, 3))
    whole = {"stages": [1.0]} if name == "evopress" else {}  # which else scores a mask on few examples, and then on all
    asked = np.concatenate(play(make(name, space, **whole), 100))
    assert len(np.unique(asked, axis=0)) == len(asked)
    if name in ("random", "evolution", "evopress", "cross_entropy", "bayes", "exhaustive"):
        assert len(asked) == space.size  # and all come


@pytest.mark.parametrize("name", AGENTS)
def test_what_is_told_is_checked(name):
    agent = make(name, SPACES["count"])
    masks = SPACES["count"].masks[:3]
    with pytest.raises(ValueError, match=r"masks \(3, 11\), rewards \(3,\): give \(m, 12\) and \(m,\)"):
        agent.tell(masks[:, :11], np.zeros(3))
    before = json.dumps(agent.state_dict())
    with pytest.raises(ValueError, match=r"reward of the mask that skips layers \[0, 1, 2, 4\] is not finite"):
        agent.tell(masks, np.array([0.0, np.nan, 1.0]))
    assert json.dumps(agent.state_dict()) == before
    other = make(name, MaskSpace(Budget(12, 3)))
    with pytest.raises(ValueError, match="the saved agent has skip_num=4, this one 3"):
        other.load_state_dict(agent.state_dict())


@pytest.mark.parametrize("name", AGENTS)
def test_unknown_settings_are_refused(name):
    with pytest.raises(ValueError, match=f"unknown setting of agent '{name}', 'sed'"):
        make(name, SPACES["count"], sed=1)
    with pytest.raises(ValueError, match=f"unknown setting of agent '{name}', 'statistics'"):
        make_agent(name, SPACES["count"], 0, {"statistics": {}})


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("cross_entropy", {"population": 0}),
        ("cross_entropy", {"elite": True}),
        ("cross_entropy", {"smoothing": 1.1}),
        ("evolution", {"offspring": "many"}),
        ("evolution", {"max_swaps": 0}),
        ("bandit", {"learning_rate": float("inf")}),
    ],
)
def test_settings_out_of_range_are_refused(name, settings):
    (setting,) = settings
    with pytest.raises(ValueError, match=f"{setting}=.* is not allowed; give a (whole )?number"):
        make(name, SPACES["count"], **settings)


def test_an_unknown_agent():
    with pytest.raises(ValueError, match="unknown agent 'evolutoin'; did you mean 'evolution'"):
        agent_class("evolutoin")


@pytest.mark.parametrize("name", AGENTS)
def test_an_agent_is_made_of_a_space(name):
    with pytest.raises(TypeError, match=r"\(12\): give the masks to choose from, such as \w+\(MaskSpace\(Budget\("):
        agent_class(name)(12)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in AGENTS if name != "exhaustive"])
@pytest.mark.parametrize("n_layers", [36, 72])
@pytest.mark.parametrize("by", ["count", "cost"])
def test_any_number_of_layers(name, n_layers, by):
    """Where nothing can be listed, every agent asks for masks, learns from them and answers."""
    macs = MaskCost(1000, 1000, np.arange(n_layers) % 7 + 1)
    budget = Budget(n_layers, n_layers // 4) if by == "count" else Budget(n_layers, saved=0.06, cost=macs)
    space = MaskSpace(budget)
    agent = make(name, space)
    for masks in play(agent, 4):
        assert agent.free_budget or space.contains(masks).all()
    assert space.contains(agent.best()[None])[0]


class OwnAgent(BestSeen):
    def __init__(self, space, seed=None, size=3):
        super().__init__(space, seed)
        self.size = size

    def ask(self, n):
        return self.space.distinct(n, lambda: self.space.sample(self.rng), self.rng)


def test_an_agent_of_ones_own_is_asked_for_by_name(monkeypatch):
    for name, agent in (("own", OwnAgent), ("own_by_path", "das_gym.agents:RandomSearch")):
        monkeypatch.setitem(AGENTS, name, agent)
        del AGENTS[name]  # restored to nothing at the end
        register_agent(name, agent)
    assert make("own", SPACES["count"], size=5).size == 5
    assert type(make("own_by_path", SPACES["count"])) is RandomSearch
    with pytest.raises(ValueError, match="unknown setting of agent 'own', 'siz'; did you mean 'size'"):
        make("own", SPACES["count"], siz=5)


@pytest.mark.parametrize(
    ("name", "agent", "refusal", "text"),
    [
        ("bandit", OwnAgent, ValueError, "agent 'bandit' is there already; give yours another name"),
        ("ppo", OwnAgent, ValueError, "agent 'ppo' is there already"),
        ("my agent", OwnAgent, ValueError, "agent name 'my agent' is not allowed; use letters, digits and _"),
        (5, OwnAgent, ValueError, "agent name 5 is not allowed"),
        ("own", MaskSpace, TypeError, "give a subclass of das_gym.agents.Agent, or 'module:class'"),
        ("own", "das_gym.agents", TypeError, "or 'module:class'"),
    ],
)
def test_what_is_no_new_agent_is_refused(name, agent, refusal, text):
    before = dict(AGENTS)
    with pytest.raises(refusal, match=text):
        register_agent(name, agent)
    assert before == AGENTS
