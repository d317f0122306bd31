from __future__ import annotations

import numpy as np
import pytest
from das_gym.agents import MaskSpace
from das_gym.agents.ask_tell.evolution import Evolution, EvoPress
from landscapes import SPACES, rewards

from das_gym.problem.budget import Budget

SPACE = SPACES["count"]


def test_evolution_takes_the_best_as_parent():
    agent = Evolution(SPACE, 0, offspring=5, max_swaps=1)
    first = np.concatenate((agent.ask(3), agent.ask(3)[:2]))
    assert len(agent.ask(100)) == 5
    agent.tell(first[:3], np.array([0.1, 0.5, 0.2]))
    assert len(agent.ask(3)) == 2
    agent.tell(first[3:], np.array([0.3, 0.4]))
    assert (agent.parent == first[1]).all()
    mutants = agent.ask(5)
    assert ((mutants & first[1]).sum(axis=1) == 3).all()  # one swap each
    agent.tell(mutants, np.full(5, 0.4))
    assert (agent.parent == first[1]).all()  # the parent is better than its mutants


def test_evolution_halves_a_generation_at_each_stage():
    agent, asked = Evolution(SPACE, 0, offspring=8, stages=(0.1, 0.5, 1)), []
    for share, count in ((0.1, 8), (0.5, 4), (1.0, 2), (0.1, 8)):
        assert agent.examples_share == share
        masks = agent.ask(100)
        asked.append(masks)
        assert len(masks) == count
        agent.tell(masks[:1], rewards(masks[:1]))
        assert agent.examples_share == share  # the stage is not over
        agent.tell(masks[1:], rewards(masks[1:]))
    order = np.argsort(-rewards(asked[0]))
    assert (asked[1] == asked[0][order[:4]]).all()
    assert (asked[2] == asked[0][order[:2]]).all()
    assert (agent.best() == asked[0][order[0]]).all()
    assert len(agent.rewards) == 2  # only those scored on all examples
    assert len(np.unique(np.concatenate((asked[0], asked[3])), axis=0)) == 16


def test_evolution_with_stages_ends_when_few_masks_exist():
    agent, stages = Evolution(MaskSpace(Budget(4, 1)), 0, offspring=3, stages=(0.5, 1)), []
    while len(masks := agent.ask(2)):
        stages.append((agent.examples_share, len(masks)))
        agent.tell(masks, rewards(masks))
    assert stages == [(0.5, 2), (0.5, 1), (1.0, 2), (0.5, 1), (1.0, 1)]
    assert agent.best().sum() == 1


@pytest.mark.parametrize("settings", [{"offspring": "many"}, {"max_swaps": 0}, {"survivors": 0}])
def test_populations_reject_settings_out_of_range(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        (EvoPress if "survivors" in settings else Evolution)(SPACE, 0, **settings)
    for stages in ((), (0.5,), (1.0, 0.5), "all", (0, 1), (float("nan"), 1), ["a"]):
        with pytest.raises(ValueError, match="stages"):
            Evolution(SPACE, 0, stages=stages)


def test_evopress_keeps_the_number_skipped_of_each_size():
    sizes = np.array([0.02, 0.04] * 4)
    agent = EvoPress(MaskSpace(Budget(8, 4)), 0, {"parameters_share": sizes}, offspring=4, initial=6, stages=(1.0,))
    agent.tell(agent.ask(6), np.arange(6.0))
    small = agent.parent[::2].sum()
    for _ in range(5):
        mutants = agent.ask(4)
        assert (mutants[:, ::2].sum(axis=1) == small).all()
        assert (mutants.sum(axis=1) == 4).all()
        agent.tell(mutants, np.zeros(len(mutants)))


def test_evopress_scores_many_masks_on_few_examples_and_two_on_all():
    agent = EvoPress(MaskSpace(Budget(12, 4)), 0)
    spent = []
    for _ in range(4):
        share, masks = agent.examples_share, agent.ask(100)
        spent.append((share, len(masks)))
        agent.tell(masks, np.random.default_rng(len(spent)).random(len(masks)))
    assert spent == [(1 / 16, 64), (1.0, 2), (1 / 16, 32), (1.0, 2)]
