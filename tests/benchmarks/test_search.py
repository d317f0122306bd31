from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from das_gym.agents.compare.comparison import AgentResult, judge

from benchmarks.search import problems, runs
from benchmarks.search.__main__ import main
from benchmarks.search.optuna_tpe import run_optuna
from benchmarks.search.planted import FAMILIES, PlantedOracle
from benchmarks.search.problems import SearchProblem, greedy_evaluations, suite_problems
from benchmarks.search.rivals import register_rivals
from das_gym.problem.mask_space import every_mask


@pytest.mark.parametrize("family", FAMILIES)
def test_planted_oracle_knows_the_best_mask(family):
    oracle, masks = PlantedOracle(family, 12, 3), every_mask(12, 4)
    assert oracle.best_loss == pytest.approx(oracle.losses(masks).min(), rel=1e-12)
    assert oracle.best_reward == pytest.approx(oracle.rewards(masks).max(), rel=1e-12)
    assert oracle.random_loss == pytest.approx(oracle.losses(masks).mean(), rel=0.1)
    (result,) = judge(oracle, [AgentResult("a", masks[:1], oracle.rewards(masks[:3])[None], np.array([3]))])
    expected = (oracle.losses(masks[:3]) - oracle.best_loss) / (oracle.random_loss - oracle.best_loss)
    np.testing.assert_allclose(oracle.normalized(result.regret)[0], expected, rtol=1e-9)
    assert oracle.normalized(np.array([np.inf]))[0] > 2


def test_suites_hold_their_problems():
    assert [problem.oracle.space.size for problem in suite_problems("tables-large", 1)] == [10626, 10626]
    assert {problem.evaluations for problem in suite_problems("greedy-12", 1)} == {33, 42, 50, 57, 63}
    assert len(suite_problems("groups-24", 2)) == 2
    assert set(suite_problems("tables-12")[0].seeds).isdisjoint(suite_problems("tables-12", train=True)[0].seeds)


def test_greedy_evaluations_by_hand():
    assert greedy_evaluations(12, 4) == 12 + 11 + 10 + 9
    for name in ("llava-6", "llava-8"):
        assert problems.LIVE[name][2] == greedy_evaluations(24, problems.LIVE[name][1])


@pytest.mark.parametrize("agent", ["heat_kernel", "quadratic_regression", "local_search"])
def test_rivals_learn(agent):
    register_rivals()
    scores = runs.compare("pairs-24", suite_problems("pairs-24", 1), [agent, "random"], None)
    assert scores.final_regrets(agent) < scores.final_regrets("random")


@pytest.mark.slow
def test_live_suite_measures_regret_to_the_best_of_its_searches(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(problems, "LIVE_RANDOM_MASKS", 2)
    monkeypatch.setitem(problems.LIVE, "llava-6", ("layers", 6, 6))
    register_rivals()
    scores = runs.compare("llava-6", suite_problems("llava-6", 1), ["random", "local_search"], None)
    regrets = [scores.final_regrets(agent)[0] for agent in ("random", "local_search")]
    assert min(regrets) == 0.0 < max(regrets)


def test_run_cached_distinguishes_problems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    oracle = PlantedOracle("pairs", 24, 0)
    searches = [SearchProblem("a", oracle, seeds, evaluations) for seeds, evaluations in (([0], 6), ([1], 6), ([0], 9))]
    results = [runs.run_cached(tmp_path, problem, "evolution") for problem in searches]
    monkeypatch.setattr(runs, "run_agent", None)
    for problem, result in zip(searches, results, strict=True):
        again = runs.run_cached(tmp_path, problem, "evolution")
        for name in runs.ARRAYS:
            np.testing.assert_array_equal(getattr(result, name), getattr(again, name))


def test_optuna_answers_with_its_best_mask():
    oracle = PlantedOracle("pairs", 24, 0)
    result, again = (run_optuna(oracle, "optuna", [4, 5], 8, 3, {}) for _ in range(2))
    np.testing.assert_array_equal(result.curves, again.curves)
    assert (np.diff(result.curves) >= 0).all()
    np.testing.assert_allclose(result.curves[:, -1], oracle.rewards(result.answers), rtol=1e-12)
    assert oracle.space.contains(result.answers).all()
    assert result.evaluations.tolist() == [8, 8]


def test_search_benchmark_resumes_and_counts_distinct_runs(tmp_path, capsys, monkeypatch):
    words = ["--cache", str(tmp_path), "--suites", "greedy-12", "--agents", "greedy", "random", "--seeds", "2"]
    main(words)
    printed = capsys.readouterr().out
    assert len(list(tmp_path.iterdir())) == 7 * 5 * 2
    assert "| greedy | 35 |" in printed  # two seeds of an agent that draws nothing are one run
    assert "| random | 70 |" in printed
    monkeypatch.setattr(runs, "run_agent", None)
    main(words)  # from the cache, milliseconds included
    assert capsys.readouterr().out == printed
