from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from das_gym.agents.compare.aggregate import (
    SHARES,
    WORST,
    aggregate,
    interquartile_mean,
    interval,
    normalised_regrets,
    summary,
)
from das_gym.agents.compare.oracle import SuiteOracle, TableOracle
from das_gym.agents.compare.results import agent_results, compare
from das_gym.agents.compare.traces import Trace

from das_gym.tables.suite import load_suite

TABULAR = "DAS-METER-VQA-Tabular-v0"


def test_the_interquartile_mean_leaves_a_quarter_out_on_each_side():
    assert interquartile_mean(np.array([9.0, 1, 2, 3, 4, -50, 100, 5])) == pytest.approx((2 + 3 + 4 + 5) / 4)
    np.testing.assert_allclose(interquartile_mean(np.array([[1.0, 2, 3, 4], [0, 0, 2, 2]])), [2.5, 1.0])


def test_seeds_are_drawn_anew_within_a_problem_alone():
    assert interval(np.array([[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]])) == (0.5, 0.5)
    low, high = interval(np.array([[0.0, 1.0] * 10]))
    assert low < 0.5 < high


def test_random_orders_have_regret_one_and_no_answer_the_worst(made_up_table: Path):
    oracle = TableOracle(TABULAR, {"skip_num": 4}, {"table": str(made_up_table)})
    masks = oracle.space.masks
    assert oracle.random_reward == pytest.approx(oracle.rewards(masks).mean())  # of a count, all orders are as likely
    rewards = np.array([[-np.inf, oracle.random_reward, oracle.best_reward]])
    (result,) = agent_results(oracle, [Trace("a", masks[:1], rewards, np.array([3]))])
    np.testing.assert_allclose(normalised_regrets(oracle, result), [[WORST, 1.0, 0.0]])


def test_agents_play_on_problems_of_a_suite(made_up_suite: Path):
    suite = load_suite(made_up_suite, "test")
    oracles = [SuiteOracle(problem, suite.statistics) for problem in suite.problems]
    played = [compare(oracle, ["random", "bayes", "leave_one_out"], range(2), 12) for oracle in oracles]
    random, bayes, rule = (aggregate(oracles, results, [6, 12]) for results in zip(*played, strict=True))
    assert bayes.means[1] <= random.means[1] <= random.means[0]
    assert all(low <= mean <= high for mean, (low, high) in zip(random.means, random.intervals, strict=True))
    assert list(random.profile) == sorted(random.profile)
    assert len(random.profile) == len(SHARES)
    assert bayes.milliseconds > random.milliseconds > 0
    lines = summary([random, bayes, rule], [6, 12]).splitlines()
    assert lines[0].startswith("| agent | at 6 | at 12 | optimum | within 1 % |")
    assert [line.split(" | ")[0] for line in lines[2:]][-1] == "| random"


def test_where_the_truth_is_unknown_nothing_is_normalised(made_up_table: Path):
    oracle = TableOracle(TABULAR, {"skip_num": 4}, {"table": str(made_up_table)})
    (result,) = compare(oracle, ["random"], range(1), 3)
    oracle.random_reward = None
    with pytest.raises(ValueError, match="only a table knows"):
        normalised_regrets(oracle, result)
