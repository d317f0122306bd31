from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from das_gym.agents import compare_agents
from das_gym.agents.compare.oracle import SuiteOracle, TableOracle
from das_gym.agents.compare.results import AgentResult, judge

from benchmarks.leaderboard.aggregate import (
    SHARES,
    WORST,
    aggregate,
    differ,
    interquartile_mean,
    interval,
    normalized_regrets,
    ranked,
    summary,
)
from das_gym.tables.suite import load_suite

TABULAR = "DAS-METER-VQA-Tabular-v0"


def test_interquartile_mean_by_hand():
    assert interquartile_mean(np.array([9.0, 1, 2, 3, 4, -50, 100, 5])) == pytest.approx((2 + 3 + 4 + 5) / 4)
    np.testing.assert_allclose(interquartile_mean(np.array([[1.0, 2, 3, 4], [0, 0, 2, 2]])), [2.5, 1.0])


def test_interval_resamples_seeds_within_problems():
    assert interval(np.array([[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]])) == (0.5, 0.5)
    low, high = interval(np.array([[0.0, 1.0] * 10]))
    assert low < 0.5 < high


def test_normalized_regrets_of_random_and_missing_answers(made_up_table: Path):
    oracle = TableOracle(TABULAR, {"skip_num": 4}, {"table": str(made_up_table)})
    masks = oracle.space.masks
    assert oracle.random_reward == pytest.approx(oracle.rewards(masks).mean())  # of a count, all orders are as likely
    rewards = np.array([[-np.inf, oracle.random_reward, oracle.best_reward]])
    (result,) = judge(oracle, [AgentResult("a", masks[:1], rewards, np.array([3]))])
    np.testing.assert_allclose(normalized_regrets(oracle, result), [[WORST, 1.0, 0.0]])


def test_aggregate_by_hand(made_up_table: Path):
    oracle = TableOracle(TABULAR, {"skip_num": 4}, {"table": str(made_up_table)})
    gain = oracle.best_reward - oracle.random_reward
    rewards = oracle.best_reward - gain * np.array([[1.0, 0.1, 0.0], [1.0, 0.3, 0.3]])
    trace = AgentResult("a", oracle.space.masks[:2], rewards, np.array([3, 3]), np.array([2.0, 4.0]))
    (result,) = judge(oracle, [trace])
    found = aggregate([oracle], [result], [1, 2, 3])
    np.testing.assert_allclose(found.means, [1.0, 0.2, 0.15])
    np.testing.assert_allclose(found.intervals[1], [0.1, 0.3], atol=1e-9)  # both seeds the one or the other
    assert found.profile == tuple(1.0 if share >= 0.3 else 0.5 for share in SHARES)
    assert found.milliseconds == 3.0
    assert ranked([replace(found, agent="b", means=(0.1, 0.2)), replace(found, means=(0.3, 0.1))])[0].agent == "a"
    assert differ(np.linspace(0, 1, 40) + 0.01, np.linspace(0, 1, 40))
    oracle.random_reward = oracle.best_reward  # every mask earns the same
    assert oracle.normalized(np.zeros(2)).tolist() == [0.0, 0.0]


def test_aggregate_on_problems_of_a_suite(made_up_suite: Path):
    suite = load_suite(made_up_suite, "test")
    oracles = [SuiteOracle(problem, suite.statistics) for problem in suite.problems]
    results = [compare_agents(oracle, ["random", "bayes", "leave_one_out"], range(2), 12) for oracle in oracles]
    random, bayes, rule = (aggregate(oracles, results, [6, 12]) for results in zip(*results, strict=True))
    assert bayes.means[1] <= random.means[1] <= random.means[0]
    assert all(low <= mean <= high for mean, (low, high) in zip(random.means, random.intervals, strict=True))
    assert list(random.profile) == sorted(random.profile)
    assert len(random.profile) == len(SHARES)
    assert bayes.milliseconds > random.milliseconds > 0
    lines = summary([random, bayes, rule], [6, 12]).splitlines()
    assert lines[0].startswith("| agent | at 6 | at 12 | optimum | within 1 % |")
    assert [line.split(" | ")[0] for line in lines[2:]][-1] == "| random"


def test_normalized_regrets_need_the_ground_truth(made_up_table: Path):
    oracle = TableOracle(TABULAR, {"skip_num": 4}, {"table": str(made_up_table)})
    (result,) = compare_agents(oracle, ["random"], range(1), 3)
    oracle.random_reward = None
    with pytest.raises(ValueError, match="has no known best"):
        normalized_regrets(oracle, result)
