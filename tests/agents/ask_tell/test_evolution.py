import numpy as np
import pytest
from das_gym.agents import MaskSpace
from das_gym.agents.ask_tell.evolution import Evolution, EvoPress
from landscapes import SPACES

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


@pytest.mark.parametrize("settings", [{"offspring": "many"}, {"max_swaps": 0}])
def test_populations_reject_settings_out_of_range(settings):
    with pytest.raises((TypeError, ValueError), match=next(iter(settings))):
        Evolution(SPACE, 0, **settings)


def test_evopress_keeps_the_number_skipped_of_each_size():
    sizes = np.array([0.02, 0.04] * 4)
    agent = EvoPress(MaskSpace(Budget(8, 4)), 0, {"parameters_share": sizes}, offspring=4)
    agent.tell(agent.ask(4), np.arange(4.0))
    small = agent.parent[::2].sum()
    for _ in range(3):
        mutants = agent.ask(4)
        assert (mutants[:, ::2].sum(axis=1) == small).all()
        assert (mutants.sum(axis=1) == 4).all()
        agent.tell(mutants, np.zeros(len(mutants)))
