import sys

import numpy as np
import pytest
from das_gym.agents import Agent, SearchConfig, search
from das_gym.agents.compare_experiment import plot_comparison
from das_gym.agents.comparing.comparison import AgentResult, compare, judge, results_table, run_agent, table_row
from das_gym.agents.comparing.oracle import TableOracle, make_oracle

TABULAR = "DAS-METER-VQA-Tabular-v0"
NONE = -np.inf


def test_run_agent_with_a_single_mask(made_up_table):
    oracle = TableOracle(TABULAR, {"skip_num": 0}, {"table": str(made_up_table)})
    result = run_agent(oracle, "greedy", range(2), 5, 3, {})
    assert result.evaluations.tolist() == [1, 1]
    assert (result.curves == oracle.best_reward).all()


def test_run_agent_counts_masks_that_statistics_need():
    oracle = TableOracle(TABULAR, {"skip_num": 4})
    ranked = {"statistic": "leave_one_out"}
    result = run_agent(oracle, "block_influence", range(1), 20, 3, ranked)
    assert result.evaluations.tolist() == [1 + 13]
    assert np.isneginf(result.curves[0]).sum() == 13
    assert np.isneginf(run_agent(oracle, "block_influence", range(1), 13, 3, ranked).curves).all()


class Scripted(Agent):
    """Asks for given masks, two at a time, the fourth off the budget; its answer is a mask that it did not ask for."""

    draws = False
    free_budget = True

    def __init__(self, space, seed=None):
        super().__init__(space, seed)
        self.left = space.masks[:5].copy()
        self.left[3] = True

    def ask(self, n):
        return self.left[: min(n, 2)]

    def tell(self, masks, rewards):
        self.left = self.left[len(masks) :]

    def best(self):
        return self.space.masks[5]


def test_curves_hold_the_best_of_the_first_masks(oracle, monkeypatch):
    monkeypatch.setitem(sys.modules, "own_played", sys.modules[__name__])
    rewards = oracle.rewards(oracle.space.masks[:6])
    rewards[3] = NONE
    expected = [float(rewards[: count + 1].max()) for count in range(6)]
    for turn in (1, 2, 3):
        result = run_agent(oracle, "own_played:Scripted", range(2), 7, turn, {})
        assert result.curves.tolist() == [[*expected, expected[-1]]] * 2
        assert result.evaluations.tolist() == [6, 6]
        assert result.answers.tolist() == [oracle.space.masks[rewards.argmax()].tolist()] * 2
    assert run_agent(oracle, "own_played:Scripted", range(1), 2, 1, {}).curves.tolist() == [expected[:2]]
    assert np.isfinite(run_agent(oracle, "uniform", range(1), 4, 3, {}).curves).all()  # one mask, scored first


@pytest.mark.parametrize("name", ["ppo", "dqn", "sb3_contrib:CrossQ"])
@pytest.mark.parametrize("budget", [{"skip_num": 4}, {"macs_saved": 0.15}])
def test_run_agent_with_sb3_equals_a_search(name, budget, made_up_table):
    env_kwargs = {"table": str(made_up_table), "reward": "metric", "macs_price": 0.5}
    oracle = TableOracle(TABULAR, budget, env_kwargs)
    result = run_agent(oracle, name, (3,), 11, 4, {})
    assert result.evaluations.tolist() == [11]
    settings = {"env_id": TABULAR, "env_kwargs": env_kwargs, "seed": 3, "evaluations": 11, "masks_per_turn": 4}
    searched = search(SearchConfig(agent=name, **settings, **budget))
    assert result.answers.tolist() == [np.array(searched.mask, dtype=bool).tolist()]
    best, expected = -np.inf, []
    for turn in searched.history:
        for reward in turn.rewards:
            best = max(best, reward)
            expected.append(best)
    expected[-1] = searched.reward
    np.testing.assert_allclose(result.curves, [expected], rtol=1e-6)


@pytest.mark.slow
def test_compare_with_sb3_on_a_model(tiny_kwargs):
    live = make_oracle("DAS-METER-VQA-v0", {"skip_num": 4}, {**tiny_kwargs, "reward_examples": 4})
    ppo, uniform = compare(live, ["ppo", "uniform"], seeds=(0,), evaluations=6)
    assert (ppo.evaluations.tolist(), uniform.evaluations.tolist()) == ([6], [1])
    assert ppo.answers.sum(axis=1).tolist() == [4]
    assert min(ppo.regret[0, -1], uniform.regret[0, -1]) == 0


@pytest.mark.parametrize(
    ("agent", "kwargs", "text"),
    [
        ("bandit", {"rate": 1}, "rate"),
        ("evolution", {"offsprings": 3}, "offspring"),
        ("ppo", {"gama": 1}, "gamma"),
    ],
)
def test_compare_rejects_settings_before_any_search(oracle, agent, kwargs, text):
    with pytest.raises(ValueError, match=text):
        compare(oracle, ["random", agent], range(1), evaluations=6, agent_kwargs={agent: kwargs})


@pytest.mark.parametrize("budget", [{"skip_num": 4}, {"macs_saved": 0.15}])
def test_bayes_beats_the_other_searches(budget, made_up_table):
    oracle = TableOracle(TABULAR, budget, {"table": str(made_up_table)})
    others = ["bandit", "evolution", "random"]
    ours, *rest = compare(oracle, ["bayes", *others], seeds=range(6), evaluations=30)
    assert ours.found_best[:, -1].all()
    assert all(ours.mean_regret() < other.mean_regret() for other in rest)


def result_of(oracle, curves, agent="a", used=4):
    """Return the judged result of an agent with these rewards of its answers, one row per seed."""
    curves = np.array(curves, dtype=float)
    return judge(oracle, [AgentResult(agent, oracle.space.masks[: len(curves)], curves, np.full(len(curves), used))])[0]


def test_needed_counts_to_the_last_miss(oracle):
    best = oracle.best_reward
    assert result_of(oracle, [[0, 0, best, best], [0, best, 0, best]]).evaluations_needed().tolist() == [3, 4]
    assert result_of(oracle, [[best] * 4, [best, best, best, 0]]).evaluations_needed().tolist() == [1, np.inf]


def test_judge_without_ground_truth_uses_the_best_answer(oracle):
    oracle.best_reward = None
    masks, curves = oracle.space.masks[:2], np.array([[0.2, 0.3], [0.1, 0.5]])
    results = [AgentResult("a", masks, curves, np.full(2, 2)), AgentResult("b", masks, curves - 0.1, np.full(2, 2))]
    one, other = judge(oracle, results)
    np.testing.assert_allclose(one.regret, [[0.3, 0.2], [0.4, 0.0]])
    np.testing.assert_allclose(other.regret, [[0.4, 0.3], [0.5, 0.1]])
    assert one.found_best.tolist() == [[False, False], [False, True]]


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
    for results in ([one, other, none], [none]):
        table = results_table(results, "three agents")
        table.print()
        assert "over all evaluations from the first answer on" in table.notes[0]  # as `one.mean_regret` above
        plot_comparison(tmp_path / "compare.png", results)
        assert (tmp_path / "compare.png").read_bytes().startswith(b"\x89PNG")
    assert table_row(none, [1, 2, 4]) == ("-", "-", "-", "-", "-", "0 %", "-", "0", "-")
