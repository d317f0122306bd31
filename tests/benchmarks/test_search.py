import re

import numpy as np
import pytest
from das_gym.agents.comparing.comparison import AgentResult, judge

from benchmarks.search import problems, runs
from benchmarks.search.__main__ import main
from benchmarks.search.planted import FAMILIES, PlantedOracle
from benchmarks.search.problems import SearchProblem, planted_problem
from benchmarks.search.rivals import register_rivals, run_optuna
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


@pytest.mark.parametrize("agent", ["heat_kernel", "quadratic_regression", "local_search"])
def test_rivals_learn(agent):
    register_rivals()
    scores = runs.compare("pairs-24", [planted_problem("pairs", 24, 1000)], [agent, "random"], None)
    assert scores.final_regrets(agent) < scores.final_regrets("random")


def test_run_cached_distinguishes_problems(tmp_path, monkeypatch):
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


@pytest.mark.slow
def test_search_benchmark_measures_regret_to_the_best_of_its_searches_and_resumes(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(problems, "LIVE_RANDOM_MASKS", 2)
    monkeypatch.setitem(problems.LIVE, "llava-6", ("layers", 6, 6))
    words = ["--cache", str(tmp_path), "--problems", "llava-6", "--agents", "random", "uniform", "--seeds", "1"]
    main(words)
    printed = capsys.readouterr().out
    regrets = [float(re.search(rf"\| {agent} \| 1 \| (\S+) ", printed)[1]) for agent in ("random", "uniform")]
    assert min(regrets) == 0.0 < max(regrets)
    monkeypatch.setattr(runs, "run_agent", None)
    main(words)  # from the cache, milliseconds included
    assert capsys.readouterr().out == printed
