"""Pruning heuristics, worked out by hand."""

import numpy as np
import pytest
from das_gym.agents import Budget, MaskSpace
from das_gym.agents.ask_tell.heuristics import BlockInfluence, Uniform
from landscapes import SPACES


def skipped(agent):
    return np.flatnonzero(agent.best()).tolist()


def test_uniform_spreads_layers_evenly():
    for n_layers, skip_num, layers in ((12, 4, [1, 4, 7, 10]), (12, 1, [6]), (12, 0, []), (3, 3, [0, 1, 2]), (5, 2, [1, 3])):
        assert skipped(Uniform(MaskSpace(Budget(n_layers, skip_num)))) == layers
    # 0.15 wanted: of layers 0-5 each saves 0.02, of 6-11 0.07; {2, 6, 10} are the first spread to save as much
    agent = Uniform(SPACES["cost"])
    assert skipped(agent) == [2, 6, 10]
    assert (agent.ask(3) == agent.best()).all()
    agent.tell(agent.ask(3), np.zeros(1))
    assert agent.ask(3).shape == (0, 12)


def test_block_influence_ranks_by_a_statistic():
    space = MaskSpace(Budget(4, 2))
    statistics = {"block_influence_tokens": np.array([3.0, 1.0, 2.0, 4.0]), "other": np.array([1.0, 1.0, 5.0, 0.0])}
    assert skipped(BlockInfluence(space, statistics=statistics)) == [1, 2]
    assert skipped(BlockInfluence(space, statistics=statistics, statistic="other")) == [0, 3]
    with pytest.raises(ValueError, match="statistic"):
        BlockInfluence(space, statistics=statistics, statistic="othr")
