from __future__ import annotations

import dataclasses
import subprocess
import sys

import numpy as np
import pytest
from das_gym.agents import Agent
from das_gym.agents.compare.oracle import TableOracle, make_oracle
from das_gym.agents.compare.results import compare
from das_gym.agents.compare.traces import trace_agent
from das_gym.agents.sb3.algorithms import ALGORITHMS
from das_gym.agents.sb3.train import train_sb3
from landscapes import write_table

TABULAR = "DAS-METER-VQA-Tabular-v0"


@pytest.fixture
def oracle(made_up_table):
    return TableOracle(TABULAR, {"skip_num": 4}, {"table": str(made_up_table)})


def test_curves_are_of_the_answer_at_the_time(oracle):
    trace = trace_agent(oracle, "random", range(3), 30, 3, {})
    assert trace.rewards.shape == (3, 30)
    assert (np.diff(trace.rewards[:, 2:], axis=1) >= 0).all()
    assert (trace.rewards[:, :2] == -np.inf).all()  # a turn of 3 has no answer before all three are scored
    assert np.isfinite(trace.rewards[:, 2:]).all()
    for later in (3, 4):
        assert (trace.rewards[:, later::3] == trace.rewards[:, 2 : 30 - later + 2 : 3]).all()
    assert (trace.rewards[:, -1] == oracle.rewards(trace.answers)).all()
    assert len(np.unique(trace.answers, axis=0)) > 1
    again = trace_agent(oracle, "random", range(3), 30, 3, {})
    assert (again.rewards == trace.rewards).all()


def test_an_agent_that_is_done_keeps_its_answer(oracle):
    trace = trace_agent(oracle, "greedy", range(5), 60, 3, {})
    assert trace.evaluations.tolist() == [8 + 7 + 6 + 5] * 5
    assert (trace.rewards[:, 25:] == trace.rewards[:, 25:26]).all()
    assert (trace.answers == trace.answers[0]).all()


def test_no_mask_is_scored_beyond_the_budget(oracle):
    assert trace_agent(oracle, "bayes", range(1), 7, 3, {}).evaluations.tolist() == [7]


def test_a_single_mask_needs_no_evaluation(made_up_table):
    oracle = TableOracle(TABULAR, {"skip_num": 0}, {"table": str(made_up_table)})
    trace = trace_agent(oracle, "greedy", range(2), 5, 3, {})
    assert trace.evaluations.tolist() == [0, 0]
    assert (trace.rewards == oracle.best_reward).all()


@pytest.mark.parametrize(("agent", "asked"), [("policy", 1), ("policy_bayes", 9)])
def test_what_a_model_scores_for_the_statistics_that_an_agent_reads_is_used(agent, asked):
    oracle = TableOracle(TABULAR, {"skip_num": 4})
    assert trace_agent(oracle, agent, range(1), 9, 3, {}).evaluations.tolist() == [asked + 37]
    ranked = trace_agent(oracle, "one_shot", range(1), 9, 3, {"statistic": "leave_one_out"})
    assert ranked.evaluations.tolist() == [1 + 13]
    assert np.isfinite(ranked.rewards).all()


def test_stages_are_refused(oracle):
    with pytest.raises(ValueError, match="agent 'evolution' is told to begin on fewer examples; comparisons score all"):
        trace_agent(oracle, "evolution", range(1), 5, 3, {"stages": [0.5, 1]})


class OffBudget(Agent):
    """Someone's own agent, which forgets that k = 4."""

    def ask(self, n):
        return np.ones((1, self.n_layers), dtype=bool)

    def tell(self, masks, rewards):
        pass

    def best(self):
        return self.ask(1)[0]


def test_an_agent_that_leaves_the_budget_is_named(oracle, monkeypatch):
    monkeypatch.setitem(sys.modules, "own_compared", sys.modules[__name__])
    with pytest.raises(
        ValueError, match=r"agent 'own_compared:OffBudget': ask\(3\) gave the mask that skips layers \[0, 1, 2"
    ):
        compare(oracle, ["own_compared:OffBudget"], seeds=range(1), evaluations=6)


def test_settings_of_an_agent_reach_it(oracle):
    slow, quick = (trace_agent(oracle, "bandit", range(4), 30, 3, {"learning_rate": rate}) for rate in (1e-9, 1e3))
    assert (slow.answers == slow.answers[0]).mean() > (quick.answers == quick.answers[0]).mean()


class Scripted(Agent):
    """Asks for given masks, two at a time; its answer is the last one told."""

    draws = False

    def __init__(self, space, seed=None):
        super().__init__(space, seed)
        self.left, self.last = space.masks[:5], None

    def ask(self, n):
        return self.left[: min(n, 2)]

    def tell(self, masks, rewards):
        self.left, self.last = self.left[len(masks) :], masks[-1]

    def best(self):
        return self.last


def test_an_answer_counts_from_the_evaluation_that_completes_its_turn(oracle, monkeypatch):
    monkeypatch.setitem(sys.modules, "own_played", sys.modules[__name__])
    rewards = oracle.rewards(oracle.space.masks[:5]).tolist()
    trace = trace_agent(oracle, "own_played:Scripted", range(2), 7, 3, {})
    none = -np.inf  # turns of masks 0 and 1, 2 and 3, 4
    assert trace.rewards.tolist() == [[none, rewards[1], rewards[1], rewards[3], rewards[4], rewards[4], rewards[4]]] * 2
    assert trace.evaluations.tolist() == [5, 5]
    assert trace_agent(oracle, "own_played:Scripted", range(1), 2, 1, {}).rewards.tolist() == [rewards[:2]]
    assert np.isfinite(trace_agent(oracle, "uniform", range(1), 4, 3, {}).rewards).all()  # one mask, scored first


@pytest.mark.parametrize("name", [*ALGORITHMS, "sb3_contrib:CrossQ"])
@pytest.mark.parametrize("budget", [{"skip_num": 4}, {"macs_saved": 0.15}])
def test_algorithms_of_sb3_are_compared_as_they_search(name, budget, made_up_table):
    env_kwargs = {"table": str(made_up_table), "reward": "metric", "macs_price": 0.5}
    oracle = TableOracle(TABULAR, budget, env_kwargs)
    trace = trace_agent(oracle, name, (3,), 11, 4, {})
    assert trace.evaluations.tolist() == [11 + 9]  # it observes leave_one_out of 8 layers
    trained = train_sb3(name, n_envs=4, env_id=TABULAR, env_kwargs=env_kwargs, seed=3, evaluations=11, **budget)
    assert trace.answers.tolist() == [np.array(trained.result.mask, dtype=bool).tolist()]
    best, expected = -np.inf, []
    for turn in trained.result.history:
        expected += [best] * (len(turn.masks) - 1)
        best = max(best, *turn.rewards)
        expected.append(best)
    expected[-1] = trained.result.reward
    np.testing.assert_allclose(trace.rewards, [expected], rtol=1e-6)


def test_seeds_of_an_algorithm_of_sb3_differ_and_repeat(oracle):
    one, other = (trace_agent(oracle, "ppo", (0, 1), 12, 3, {"n_steps": 2}) for _ in range(2))
    assert one.rewards.tolist() == other.rewards.tolist()
    assert one.rewards[0].tolist() != one.rewards[1].tolist()


@pytest.mark.slow
def test_an_algorithm_of_sb3_plays_live_too(tiny_kwargs):
    live = make_oracle("DAS-METER-VQA-v0", {"skip_num": 4}, {**tiny_kwargs, "reward_examples": 4})
    ppo, uniform = compare(live, ["ppo", "uniform"], seeds=(0,), evaluations=6)
    assert (ppo.evaluations.tolist(), uniform.evaluations.tolist()) == ([6 + 13], [1])
    assert ppo.answers.sum(axis=1).tolist() == [4]
    assert min(ppo.regret[0, -1], uniform.regret[0, -1]) == 0


def test_a_policy_that_never_keeps_its_budget_has_no_answer(tmp_path, monkeypatch):
    oracle = TableOracle(TABULAR, {"skip_num": 12}, {"table": str(write_table(tmp_path / "table.npz", 12))})
    monkeypatch.setitem(ALGORITHMS, "ppo", dataclasses.replace(ALGORITHMS["ppo"], actions=("mask",)))
    unlearned = {"ppo": {"learning_rate": 0.0}}
    (result,) = compare(oracle, ["ppo"], seeds=(0,), evaluations=1, agent_kwargs=unlearned)
    assert result.evaluations.tolist() == [0 + 13]
    assert result.rewards.tolist() == [-np.inf]
    assert np.isnan(result.test_metrics).all()


@pytest.mark.slow
def test_sb3_is_imported_when_it_is_asked_for(made_up_table):
    code = f"""if True:
        import sys
        from das_gym.agents.compare.oracle import TableOracle
        from das_gym.agents.compare.results import compare
        oracle = TableOracle({TABULAR!r}, {{"skip_num": 4}}, {{"table": {str(made_up_table)!r}}})
        compare(oracle, ["random"], range(1), 3)
        sys.exit("stable_baselines3" in sys.modules)"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
