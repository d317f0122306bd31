from __future__ import annotations

import sys

import numpy as np
import pytest
from das_gym.agents import AGENTS, Agent, MaskSpace, SearchConfig, make_agent, search
from das_gym.agents.ask_tell.asking import answer, ask
from synthetic import ENV_ID

from das_gym.problem.budget import Budget
from das_gym.problem.statistics import STATISTICS

SPACE = MaskSpace(Budget(6, 2))
GOOD = SPACE.masks[:3]


class Scripted(Agent):
    """Hands over what it is made with."""

    def __init__(self, space, seed=None, asked=GOOD, answered=GOOD[0]):
        super().__init__(space, seed)
        self.asked, self.answered = asked, answered

    def ask(self, n):
        return self.asked

    def tell(self, masks, rewards):
        pass

    def best(self):
        return self.answered


class Free(Scripted):
    free_budget = True


def test_what_fits_is_handed_on_as_bool():
    for masks in (GOOD, GOOD.astype(int), GOOD.astype(np.float32), GOOD[:0]):
        found = ask(Scripted(SPACE, asked=masks), "own", 3)
        assert found.dtype == bool
        assert found.tolist() == (masks == 1).tolist()
    found = answer(Scripted(SPACE, answered=GOOD[1].astype(int)), "own")
    assert found.dtype == bool
    assert found.tolist() == GOOD[1].tolist()


@pytest.mark.parametrize(
    ("asked", "text"),
    [
        (None, r"agent 'own': ask\(3\) gave NoneType, not a numpy array; give \(m, 6\) of bool, .* m <= 3"),
        (GOOD.tolist(), r"ask\(3\) gave list, not a numpy array"),
        (SPACE.masks[:5], r"agent 'own': ask\(3\) gave masks of shape \(5, 6\)"),
        (GOOD[:, :5], r"gave masks of shape \(3, 5\)"),
        (GOOD[0], r"gave masks of shape \(6,\)"),
        (GOOD * 2, r"gave int64 values other than 0 \(keep\) and 1 \(skip\)"),
        (GOOD * np.nan, r"gave float64 values other than 0 \(keep\) and 1 \(skip\)"),
        (
            np.arange(6)[None] < 3,
            r"ask\(3\) gave the mask that skips layers \[0, 1, 2\], which is off the budget .*'skip_num': 2.*free_budget",
        ),
    ],
)
def test_masks_that_should_not_have_been_asked_for(asked, text):
    with pytest.raises(ValueError, match=text):
        ask(Scripted(SPACE, asked=asked), "own", 3)


def test_only_a_free_agent_leaves_the_budget_and_its_answer_keeps_it():
    off = np.arange(6) < 3
    assert ask(Free(SPACE, asked=off[None]), "own", 3).tolist() == [off.tolist()]
    with pytest.raises(ValueError, match=r"agent 'own': best\(\) gave the mask that skips layers \[0, 1, 2\], which is off"):
        answer(Free(SPACE, answered=off), "own")


@pytest.mark.parametrize(
    ("answered", "text"),
    [
        (None, r"agent 'own': best\(\) gave NoneType, not a numpy array; give \(6,\) of bool"),
        (GOOD[:1], r"best\(\) gave a mask of shape \(1, 6\)"),
        (GOOD[0] * 3, r"best\(\) gave int64 values other than 0"),
    ],
)
def test_an_answer_that_is_none(answered, text):
    with pytest.raises(ValueError, match=text):
        answer(Scripted(SPACE, answered=answered), "own")


@pytest.mark.parametrize("n", [0, -1, 2.5, True, None])
@pytest.mark.parametrize("name", AGENTS)
def test_no_agent_is_asked_for_less_than_one_mask(name, n):
    agent = make_agent(name, SPACE, 0, statistics=dict.fromkeys(STATISTICS, np.arange(6.0)))
    with pytest.raises(ValueError, match=r"n=.* is not allowed; give a whole number from 1"):
        agent.ask(n)


def test_an_agent_of_ones_own_is_asked_for_at_least_one_too():
    with pytest.raises(ValueError, match="n=0 is not allowed"):
        Free(SPACE).ask(0)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"asked": [[1, 1, 1, 1] + [0] * 8]}, r"agent 'own_asking:Listed': ask\(3\) gave list"),
        ({"answered": [1] * 12}, r"agent 'own_asking:Listed': best\(\) gave list"),
    ],
)
def test_a_search_names_the_agent(settings, text, monkeypatch):
    monkeypatch.setitem(sys.modules, "own_asking", sys.modules[__name__])
    kwargs = {"asked": None, "answered": None, **settings}
    config = SearchConfig(env_id=ENV_ID, agent="own_asking:Listed", agent_kwargs=kwargs, evaluations=3)
    with pytest.raises(ValueError, match=text):
        search(config)


class Listed(Scripted):
    """Of 12 layers; with nothing to ask it is done at once."""

    def ask(self, n):
        return np.zeros((0, 12), dtype=bool) if self.asked is None else self.asked
