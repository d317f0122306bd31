from __future__ import annotations

import json

import numpy as np
import pytest
from das_gym.agents.compare.results import AgentResult, judge
from das_gym.agents.compare_experiment import cells, plot_comparison, print_results

NONE = -np.inf


def result_of(oracle, curves, agent="a", used=4):
    """Return the judged result of an agent with these rewards of its answers, one row per seed."""
    curves = np.array(curves, dtype=float)
    return judge(oracle, [AgentResult(agent, oracle.space.masks[: len(curves)], curves, np.full(len(curves), used))])[0]


def test_needed_counts_to_the_last_miss(oracle):
    best = oracle.best_reward
    assert result_of(oracle, [[0, 0, best, best], [0, best, 0, best]]).needed().tolist() == [3, 4]
    assert result_of(oracle, [[best] * 4, [best, best, best, 0]]).needed().tolist() == [1, np.inf]


def test_judge_without_ground_truth_uses_the_best_answer(oracle):
    oracle.best_reward = None
    masks, curves = oracle.space.masks[:2], np.array([[0.2, 0.3], [0.1, 0.5]])
    results = [AgentResult("a", masks, curves, np.full(2, 2)), AgentResult("b", masks, curves - 0.1, np.full(2, 2))]
    one, other = judge(oracle, results)
    np.testing.assert_allclose(one.regret, [[0.3, 0.2], [0.4, 0.0]])
    np.testing.assert_allclose(other.regret, [[0.4, 0.3], [0.5, 0.1]])
    assert one.found.tolist() == [[False, False], [False, True]]


def test_results_before_the_first_answer(oracle, tmp_path):
    """Three evaluations per turn, four altogether, two seeds; the third agent never answers."""
    best, worst = np.sort(oracle.rewards(oracle.space.masks))[[-1, 0]]
    one = result_of(oracle, [[NONE, NONE, worst, best], [NONE, NONE, best, best]])
    other = result_of(oracle, [[worst] * 4, [best] * 4], "b", 1)
    none = result_of(oracle, np.full((2, 4), NONE), "c", 0)
    gap = best - worst
    assert one.regret.tolist() == [[np.inf, np.inf, gap, 0], [np.inf, np.inf, 0, 0]]
    assert (one.ranks.tolist(), none.ranks.tolist()) == ([1, 1], [np.inf, np.inf])
    assert one.mean_regret() == pytest.approx(gap / 4)  # (gap + 0) / 2 and 0
    assert other.mean_regret() == pytest.approx(gap / 2)
    assert none.mean_regret() == np.inf
    record = json.loads(json.dumps(one.record(), allow_nan=False))
    assert record["regret"]["q75"] == [None, None, gap, 0]
    assert record["ranks"] == [1, 1]
    assert record["needed"] == [4, 3]
    record = json.loads(json.dumps(none.record(), allow_nan=False))
    assert record["test_metrics"] == record["rewards"] == record["needed"] == [None, None]
    for results in ([one, other, none], [none]):
        print_results(results, "three agents")
        plot_comparison(tmp_path / "compare.png", results)
        assert (tmp_path / "compare.png").read_bytes().startswith(b"\x89PNG")
    assert cells(none, [1, 2, 4]) == ("-", "-", "-", "-", "0 %", "-", "0", "-")
