import itertools
from pathlib import Path

import numpy as np
import pytest
from das_gym.agents import Bandit, MaskSpace
from safetensors.numpy import load_file

from das_gym.problem.budget import Budget

GOLDEN = load_file(Path(__file__).parent / "golden_bandit.safetensors")


@pytest.mark.parametrize("case", ["meter/scripted", "meter/model", "vilt/scripted", "vilt/model"])
def test_bandit_update_matches_the_reference(case):
    golden = {name.removeprefix(case + "/"): array for name, array in GOLDEN.items() if name.startswith(case)}
    turns, k, n = *golden["selects"].shape[:1], golden["selects"].shape[2], golden["gate_before"].size
    agent = Bandit(MaskSpace(Budget(n, k)), seed=0)
    agent.preferences = golden["gate_before"].astype(np.float64)
    for turn in range(turns):
        np.testing.assert_allclose(agent.skip_probabilities(), golden["prob"][turn], atol=1e-6, rtol=0)
        masks = np.zeros((3, n), dtype=bool)
        np.put_along_axis(masks, golden["selects"][turn], True, axis=1)
        agent.tell(masks, golden["rewards"][turn])
        np.testing.assert_allclose(agent.preferences, golden["gate_after"][turn], atol=1e-6, rtol=0)
    assert np.flatnonzero(agent.best()).tolist() == sorted(golden["final_select"].tolist())


def test_bandit_update_by_hand():
    agent = Bandit(MaskSpace(Budget(3, 1)), seed=0, learning_rate=2.0)
    agent.preferences = np.array([0.0, np.log(3.0), 0.0])  # p = 1/2, 3/4, 1/2
    agent.tell(np.array([[1, 0, 0], [0, 1, 0]], bool), np.array([0.5, 0.3]))
    expected = [2 * 0.1 * 1 / 4, np.log(3.0) - 2 * 0.1 * 3 / 16, 0.0]
    np.testing.assert_allclose(agent.preferences, expected, atol=1e-15)


def test_bandit_draws_without_replacement_by_weight():
    agent = Bandit(MaskSpace(Budget(4, 2)), seed=0)
    agent.preferences = np.array([-1.0, 0.0, 1.0, 2.0])
    p = agent.skip_probabilities()
    expected = {}
    for i, j in itertools.permutations(range(4), 2):  # first i, then j among the rest
        pair = frozenset((i, j))
        expected[pair] = expected.get(pair, 0.0) + p[i] / p.sum() * p[j] / (p.sum() - p[i])
    draws = 20_000
    counts = dict.fromkeys(expected, 0)
    for _ in range(draws):
        counts[frozenset(np.flatnonzero(agent.ask(1)[0]).tolist())] += 1
    for pair, share in expected.items():
        assert abs(counts[pair] / draws - share) < 4 * np.sqrt(share * (1 - share) / draws), pair


def test_bandit_asks_for_all_masks_where_few_exist():
    masks = Bandit(MaskSpace(Budget(4, 2)), seed=0).ask(20)
    assert len({mask.tobytes() for mask in masks}) == len(masks) == 6
    assert (masks.sum(axis=1) == 2).all()


def test_bandit_with_certain_preferences_does_not_hang():
    agent = Bandit(MaskSpace(Budget(12, 4)), seed=0)
    agent.preferences = np.where(np.arange(12) < 4, 1000.0, -1000.0)
    masks = agent.ask(3)
    assert len({mask.tobytes() for mask in masks}) == 3
    agent.tell(masks, np.array([0.1, 0.2, 0.3]))
    assert np.isfinite(agent.preferences).all()
    assert np.flatnonzero(agent.best()).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("rate", [0.0, float("nan"), "fast", True])
def test_bandit_rejects_learning_rates(rate):
    with pytest.raises((TypeError, ValueError), match="learning_rate"):
        Bandit(MaskSpace(Budget(12, 4)), learning_rate=rate)
