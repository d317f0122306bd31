"""The command that chooses the constants of `bayes`: what it takes, and what it leaves."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from das_gym.agents import Bayes
from das_gym.agents.ask_tell.base import AGENTS

from benchmarks import bayes
from das_gym.tables.suite import load_suite


@pytest.fixture(autouse=True)
def registry() -> Iterator[None]:
    """Agents that were tried are forgotten."""
    before = dict(AGENTS)
    yield
    AGENTS.clear()
    AGENTS.update(before)


def test_models_are_drawn_and_not_their_problems():
    models = np.repeat(["a", "b"], 50)
    differences = np.where(np.arange(100) < 50, -0.1, 0.05)
    low, high = bayes.interval(differences, models)
    assert (low, high) == (pytest.approx(-0.1), pytest.approx(0.05))
    assert bayes.interval(np.full(4, -0.2), np.array(["a", "a", "b", "c"])) == (pytest.approx(-0.2), pytest.approx(-0.2))


@pytest.mark.slow
def test_it_takes_what_is_better_and_leaves_what_is_worse(monkeypatch: pytest.MonkeyPatch):
    train = load_suite(split="train")
    oracles, models = bayes.oracles_of(train, 60), np.array([problem.source.name for problem in train.problems[::60]])
    monkeypatch.setattr(bayes, "TRIED", {"drawn": (60,)})
    assert bayes.choose(oracles, models, 1) == {}
    monkeypatch.setattr(Bayes, "drawn", 60)
    monkeypatch.setattr(bayes, "TRIED", {"drawn": (6,)})
    assert bayes.choose(oracles, models, 1) == {"drawn": 6}
