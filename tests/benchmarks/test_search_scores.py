import numpy as np
import pytest
from das_gym.agents import compare
from das_gym.agents.comparing.comparison import AgentResult, judge
from das_gym.agents.comparing.oracle import TableOracle

from benchmarks.search.problems import SearchProblem
from benchmarks.search.scores import NO_ANSWER, WORST, Scores, is_alike, regret_curves, sign_flip_p
from das_gym.intervals import mean_bootstrap_interval


@pytest.fixture
def oracle() -> TableOracle:
    return TableOracle("DAS-METER-VQA-Tabular-v0", {"skip_num": 4})


def scores_of(oracle: TableOracle, curves: dict[str, list[list[float]]], models: str) -> Scores:
    """Scores of agents with one normalized regret curve per problem, one seed each."""
    gain = oracle.best_reward - oracle.random_reward
    problems = [SearchProblem(model, oracle, [0], len(next(iter(curves.values()))[0])) for model in models]
    results = {}
    for agent, each in curves.items():
        rewards = [oracle.best_reward - gain * np.array([curve]) for curve in each]
        found = [AgentResult(agent, oracle.space.masks[:1], reward, np.array([1]), np.array([2.0])) for reward in rewards]
        results[agent] = judge(oracle, found)
    return Scores(problems, results)


def test_regret_curves_of_random_missing_and_bad_answers(oracle):
    gain = oracle.best_reward - oracle.random_reward
    rewards = np.array([[-np.inf, oracle.best_reward - 5 * gain, oracle.random_reward, oracle.best_reward]])
    (result,) = judge(oracle, [AgentResult("a", oracle.space.masks[:1], rewards, np.array([4]))])
    np.testing.assert_allclose(regret_curves(oracle, result), [[NO_ANSWER, WORST, 1.0, 0.0]])


def test_scores_weigh_models_equally(oracle):
    scores = scores_of(oracle, {"a": [[0.2, 0.1], [0.4, 0.1], [0.9, 0.5], [0.5, 0.5], [0.7, 0.5]]}, "xxyzw")
    assert scores.models == ("x", "y", "z", "w")
    np.testing.assert_allclose(scores.by_model("a", 1), [0.3, 0.9, 0.5, 0.7])
    assert scores.mean("a", 1) == pytest.approx(0.6)
    assert scores.cell("a", 1) == "0.600 [0.189, 1.011]"  # R: t.test(c(0.3, 0.9, 0.5, 0.7))
    assert scores.milliseconds("a") == 2.0


def test_seed_spread_is_of_the_mean_over_models(oracle):
    gain = oracle.best_reward - oracle.random_reward
    regrets = np.array([[[0.1], [0.3]], [[0.5], [0.4]]])  # two problems, two seeds
    found = [AgentResult("a", oracle.space.masks[:2], oracle.best_reward - gain * each, np.ones(2)) for each in regrets]
    problems = [SearchProblem(model, oracle, [0, 1], 1) for model in "xy"]
    scores = Scores(problems, {"a": judge(oracle, found)})
    assert scores.seed_spread("a", 1) == pytest.approx(0.05 / np.sqrt(2))  # of 0.3 and 0.35


def test_found_is_the_share_of_searches_that_end_at_the_best_mask(oracle):
    assert scores_of(oracle, {"a": [[0.0, 0.0], [0.5, 0.1], [0.5, 0.0], [0.0, 0.5]]}, "xyzw").found("a") == 0.5


def test_winners_are_compared_model_by_model(oracle):
    levels = np.linspace(0, 1, 20)
    curves = {
        "first": [[level] for level in levels],
        "always_behind": [[level + 0.01] for level in levels],
        "as_good": [[level + 0.02 * (place % 3 == 0) - 0.009 * (place % 3 != 0)] for place, level in enumerate(levels)],
    }
    scores = scores_of(oracle, curves, "abcdefghijklmnopqrst")
    assert scores.ranked(1)[0] in ("first", "as_good")
    words = scores.winners(1)
    assert "`first`" in words
    assert "`as_good`" in words
    assert "always_behind" not in words


def test_scores_need_the_ground_truth(oracle):
    (result,) = compare(oracle, ["random"], range(1), evaluations=3)
    oracle.random_reward = None
    with pytest.raises(ValueError, match="has no known best"):
        regret_curves(oracle, result)


def test_six_models_with_one_exception_are_within_the_noise():
    differences = np.array([0.02, 0.03, 0.01, 0.04, 0.02, 0.2])
    assert mean_bootstrap_interval(differences)[0] > 0
    assert is_alike(differences)
    assert not is_alike(np.array([0.02, 0.03, 0.01, 0.04, 0.02, 0.03]))


def test_sign_flip_test_by_hand():
    assert sign_flip_p(np.array([1.0, 2.0, 3.0])) == 2 / 8  # all signs as they are, or all changed
    assert sign_flip_p(np.array([1.0, -1.0])) == 1.0
    assert sign_flip_p(np.full(20, 0.1)) < 1e-3
