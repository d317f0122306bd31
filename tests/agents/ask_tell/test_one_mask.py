"""Agents that need no search: one_shot and uniform."""

from __future__ import annotations

import numpy as np
import pytest
from das_gym.agents import MaskSpace, OneShot, Uniform
from landscapes import SPACES

from das_gym.problem.budget import Budget


@pytest.mark.parametrize(
    ("n_layers", "skip_num", "skipped"),
    [(12, 4, [1, 4, 7, 10]), (12, 1, [6]), (12, 0, []), (3, 3, [0, 1, 2]), (5, 2, [1, 3])],
)
def test_uniform_spreads(n_layers, skip_num, skipped):
    agent = Uniform(MaskSpace(Budget(n_layers, skip_num)))
    assert np.flatnonzero(agent.best()).tolist() == skipped
    assert (agent.ask(3) == agent.best()).all()
    agent.tell(agent.ask(3), np.zeros(1))
    assert agent.ask(3).shape == (0, n_layers)


def test_uniform_by_cost_takes_the_fewest_layers():
    # 0.15 wanted: of layers 0-5 each saves 0.02, of 6-11 0.07; {2, 6, 10} are the first spread to save as much
    assert np.flatnonzero(Uniform(SPACES["cost"]).best()).tolist() == [2, 6, 10]


def test_one_shot_ranks_by_the_statistic_asked_for():
    statistics = {"one": np.array([3.0, 1.0, 2.0, 4.0]), "other": np.array([1.0, 1.0, 5.0, 0.0])}
    space = MaskSpace(Budget(4, 2))
    assert np.flatnonzero(OneShot(space, statistics=statistics, statistic="one").best()).tolist() == [1, 2]
    assert np.flatnonzero(OneShot(space, statistics=statistics, statistic="other").best()).tolist() == [0, 3]
    highest = OneShot(space, statistics=statistics, statistic="other", skip="highest")
    assert np.flatnonzero(highest.best()).tolist() == [0, 2]


def test_mistakes():
    with pytest.raises(ValueError, match="unknown statistic 'one'; did you mean 'ones'"):
        OneShot(MaskSpace(Budget(4, 2)), statistics={"ones": np.ones(4)}, statistic="one")
    with pytest.raises(ValueError, match="unknown value of skip, 'low'; did you mean 'lowest'"):
        OneShot(MaskSpace(Budget(4, 2)), statistics={"ones": np.ones(4)}, statistic="ones", skip="low")
