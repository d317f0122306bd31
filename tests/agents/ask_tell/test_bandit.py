from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from das_gym.agents import Bandit, MaskSpace
from safetensors.numpy import load_file

from das_gym.problem.budget import Budget

GOLDEN = load_file(Path(__file__).parent / "golden_bandit.safetensors")


@pytest.mark.parametrize("case", ["meter/scripted", "meter/model", "vilt/scripted", "vilt/model"])
def test_the_update_is_that_of_the_reference(case):
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


def test_the_update_worked_out_by_hand():
    agent = Bandit(MaskSpace(Budget(3, 1)), seed=0, learning_rate=2.0)
    agent.preferences = np.array([0.0, np.log(3.0), 0.0])  # p = 1/2, 3/4, 1/2
    agent.tell(np.array([[1, 0, 0], [0, 1, 0]], bool), np.array([0.5, 0.3]))
    expected = [2 * 0.1 * 1 / 4, np.log(3.0) - 2 * 0.1 * 3 / 16, 0.0]
    np.testing.assert_allclose(agent.preferences, expected, atol=1e-15)


def test_masks_of_a_turn_are_distinct_and_skip_k():
    agent = Bandit(MaskSpace(Budget(12, 4)), seed=0)
    for _ in range(50):
        masks = agent.ask(3)
        assert masks.shape == (3, 12)
        assert masks.dtype == bool
        assert (masks.sum(axis=1) == 4).all()
        assert len({mask.tobytes() for mask in masks}) == 3


def test_layers_are_drawn_without_replacement_by_weight():
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


@pytest.mark.parametrize(
    ("n_layers", "skip_num", "exist"), [(12, 0, 1), (12, 12, 1), (12, 1, 12), (12, 11, 12), (1, 1, 1), (4, 2, 6)]
)
def test_where_fewer_masks_exist_all_of_them_come(n_layers, skip_num, exist):
    agent = Bandit(MaskSpace(Budget(n_layers, skip_num)), seed=0)
    masks = agent.ask(20)
    assert masks.shape == (exist, n_layers)
    assert len({mask.tobytes() for mask in masks}) == exist
    assert (masks.sum(axis=1) == skip_num).all()
    agent.tell(masks, np.linspace(0.0, 1.0, exist))
    assert agent.best().sum() == skip_num


def test_certain_preferences_do_not_hang():
    agent = Bandit(MaskSpace(Budget(12, 4)), seed=0)
    agent.preferences = np.where(np.arange(12) < 4, 1000.0, -1000.0)
    masks = agent.ask(3)
    assert len({mask.tobytes() for mask in masks}) == 3
    assert (masks.sum(axis=1) == 4).all()
    agent.tell(masks, np.array([0.1, 0.2, 0.3]))
    assert np.isfinite(agent.preferences).all()
    assert np.flatnonzero(agent.best()).tolist() == [0, 1, 2, 3]


def test_equal_preferences_answer_with_the_first_layers():
    assert np.flatnonzero(Bandit(MaskSpace(Budget(12, 4))).best()).tolist() == [0, 1, 2, 3]


def test_same_seed_same_masks_and_a_saved_agent_goes_on_exactly():
    one, other = Bandit(MaskSpace(Budget(12, 4)), seed=7), Bandit(MaskSpace(Budget(12, 4)), seed=7)
    rewards = np.array([0.2, 0.5, 0.3])
    for _ in range(5):
        masks = one.ask(3)
        assert (masks == other.ask(3)).all()
        one.tell(masks, rewards)
        other.tell(masks, rewards)
    fresh = Bandit(MaskSpace(Budget(12, 4)), seed=1)
    fresh.load_state_dict(json.loads(json.dumps(one.state_dict())))
    assert (fresh.preferences == one.preferences).all()
    for _ in range(5):
        masks = one.ask(3)
        assert (masks == fresh.ask(3)).all()


def test_mistakes():
    for rate in (0.0, -1.0, float("inf"), float("nan"), "fast", True):
        with pytest.raises(ValueError, match=r"learning_rate=.* is not allowed; give a number above 0"):
            Bandit(MaskSpace(Budget(12, 4)), learning_rate=rate)
    agent = Bandit(MaskSpace(Budget(12, 4)), seed=0)
    with pytest.raises(ValueError, match=r"masks \(3, 11\), rewards \(3,\): give \(m, 12\) and \(m,\)"):
        agent.tell(np.zeros((3, 11), bool), np.zeros(3))
    with pytest.raises(ValueError, match=r"reward of the mask that skips layers \[2\] is not finite"):
        agent.tell(np.eye(12, dtype=bool)[:3], np.array([0.0, 1.0, np.nan]))
    with pytest.raises(ValueError, match="the saved agent has skip_num=4, this one 3"):
        Bandit(MaskSpace(Budget(12, 3))).load_state_dict(agent.state_dict())


def test_it_learns_from_two_masks_a_turn_on():
    assert Bandit.min_masks == 2
