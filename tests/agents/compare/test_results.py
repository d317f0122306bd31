from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from das_gym.agents import AGENTS
from das_gym.agents.compare.oracle import LiveOracle, TableOracle, make_oracle
from das_gym.agents.compare.plots import plot_comparison
from das_gym.agents.compare.results import TOLERANCE, AgentResult, agent_results, compare, quantile
from das_gym.agents.compare.traces import Trace
from das_gym.agents.compare_experiment import CompareSettings, cells, ex, print_results

from benchmarks.leaderboard.board import main as leaderboard
from benchmarks.leaderboard.board import verdict
from das_gym.experiment import RunError
from das_gym.tables.suite import load_suite
from das_gym.tables.table import SubnetTable

ROOT = Path(__file__).parents[3]
TABULAR = "DAS-METER-VQA-Tabular-v0"


@pytest.fixture
def oracle(made_up_table):
    return TableOracle(TABULAR, {"skip_num": 4}, {"table": str(made_up_table)})


def test_an_oracle_is_a_function_of_one_mask_and_keeps_what_was_asked(oracle):
    mask = oracle.space.masks[7]
    assert oracle(mask.tolist()) == oracle.rewards(mask[None])[0]
    assert oracle.asked == [(tuple(np.flatnonzero(mask)), oracle.rewards(mask[None])[0])]
    oracle(mask)
    assert len(oracle.asked) == 2
    for wrong in (np.ones(8), np.zeros(7), 0.5 * mask, 2 * mask, np.where(mask, np.nan, 0)):
        with pytest.raises(ValueError, match=r"give 8 truths, one a layer, with exactly 4 of 8 layers"):
            oracle(wrong)
    assert len(oracle.asked) == 2


def test_a_problem_of_a_suite_has_an_oracle(made_up_suite):
    settings = {"suite": str(made_up_suite), "split": "valid"}
    oracle = make_oracle("DAS-Suite-v0", env_kwargs={**settings, "problem": 3})
    problem = load_suite(made_up_suite, "valid").problems[3]
    assert oracle.env_id == problem.name
    assert max(oracle(mask) for mask in oracle.space.masks) == problem.optimum == oracle.best_reward
    with pytest.raises(ValueError, match="a problem of a suite has its own"):
        make_oracle("DAS-Suite-v0", {"skip_num": 4}, settings)
    with pytest.raises(ValueError, match=r"unknown setting of a suite's oracle 'flat'"):
        make_oracle("DAS-Suite-v0", env_kwargs={**settings, "flat": True})


def test_its_problems_are_those_of_the_environment_with_the_same_settings(made_up_suite):
    settings = {"suite": str(made_up_suite), "split": "train", "relatives": 2, "problems": 5, "problems_seed": 3}
    names = gymnasium.make("DAS-Suite-v0", **settings).get_wrapper_attr("problem_names")
    assert [make_oracle("DAS-Suite-v0", env_kwargs={**settings, "problem": i}).env_id for i in range(5)] == list(names)


def test_an_environment_with_vectors_for_rewards_has_none():
    with pytest.raises(ValueError, match="use DAS-METER-VQA-Tabular-v0"):
        make_oracle("DAS-METER-VQA-Tabular-MO-v0", {"skip_num": 4})


@pytest.mark.parametrize("values", [np.full(8, np.nan), np.zeros(3)])
def test_the_top_of_no_numbers_is_refused(oracle, values):
    with pytest.raises(ValueError, match="give 8 numbers, one a layer"):
        oracle.space.top(values)


def test_a_table_oracle_tells_the_truth(oracle, made_up_table):
    table = SubnetTable.load(made_up_table)
    assert oracle.space.budget.as_dict() == {"n_layers": 8, "skip_num": 4}
    assert oracle.statistics["depth"].tolist() == table.statistics[:, table.meta.statistics.index("depth")].tolist()
    np.testing.assert_array_equal(oracle.rewards(table.masks), table.values("exp_neg_loss"))  # also off the budget
    best = table.best(skip_num=4)[None]
    assert oracle.rewards(best)[0] == oracle.best_reward
    masks = oracle.space.masks
    np.testing.assert_array_equal(oracle.ranks(oracle.rewards(masks)), table.rank(masks, "exp_neg_loss", skip_num=4))
    np.testing.assert_array_equal(oracle.test_metrics(masks), table.values("metric", "test")[table.index(masks)])


def test_a_price_counts(made_up_table):
    oracle = TableOracle(TABULAR, {"macs_saved": 0.1}, {"table": str(made_up_table), "macs_price": 100.0})
    best = oracle.space.masks[oracle.rewards(oracle.space.masks).argmax()]
    assert best.all()


def test_what_was_needed_is_counted_to_the_last_miss():
    def result(*found):
        return AgentResult("a", np.zeros((2, 4)), None, np.array(found, bool), np.array(found, bool), *[np.zeros(2)] * 4)

    assert result([0, 0, 1, 1], [0, 1, 0, 1]).needed().tolist() == [3, 4]
    assert result([1, 1, 1, 1], [1, 1, 1, 0]).needed().tolist() == [1, np.inf]
    assert quantile(np.array([1.0, np.inf, 2.0]), 50) == 2.0
    assert quantile(np.array([1.0, np.inf, np.inf]), 50) == np.inf


def test_where_the_truth_is_unknown_the_best_answer_stands_for_it(oracle):
    oracle.best_reward = None
    masks = oracle.space.masks[:2]
    rewards = np.array([[0.2, 0.3], [0.1, 0.5]])
    traces = [Trace("a", masks, rewards, np.full(2, 2)), Trace("b", masks, rewards - 0.1, np.full(2, 2))]
    one, other = agent_results(oracle, traces)
    np.testing.assert_allclose(one.regret, [[0.3, 0.2], [0.4, 0.0]])
    np.testing.assert_allclose(other.regret, [[0.4, 0.3], [0.5, 0.1]])
    assert one.found.tolist() == [[False, False], [False, True]]


def test_before_its_first_answer_an_agent_has_none(oracle, tmp_path):
    """Three evaluations a turn, four altogether, two seeds; the third agent never answers."""
    best, worst = np.sort(oracle.rewards(oracle.space.masks))[[-1, 0]]
    answers, never = oracle.space.masks[:2], -np.inf
    traces = [
        Trace("a", answers, np.array([[never, never, worst, best], [never, never, best, best]]), np.full(2, 4)),
        Trace("b", answers, np.array([[worst] * 4, [best] * 4]), np.full(2, 1)),
        Trace("c", answers, np.full((2, 4), never), np.full(2, 0)),
    ]
    one, other, none = agent_results(oracle, traces)
    gap = best - worst
    assert one.regret.tolist() == [[np.inf, np.inf, gap, 0], [np.inf, np.inf, 0, 0]]
    assert one.rank.tolist() == [[np.inf, np.inf, 70, 1], [np.inf, np.inf, 1, 1]]
    assert one.needed().tolist() == [4, 3]
    assert none.needed().tolist() == [np.inf, np.inf]
    assert one.mean_regret() == pytest.approx(gap / 4)  # (gap + 0) / 2 and 0
    assert other.mean_regret() == pytest.approx(gap / 2)
    assert none.mean_regret() == np.inf
    record = json.loads(json.dumps(one.record(), allow_nan=False))
    assert record["regret"]["q75"] == [None, None, gap, 0]
    assert record["rank"]["q25"] == [None, None, 1, 1]
    assert record["needed"] == [4, 3]
    record = json.loads(json.dumps(none.record(), allow_nan=False))
    assert record["test_metrics"] == record["rewards"] == record["needed"] == [None, None]
    for results in ([one, other, none], [none]):
        print_results(results, "three agents")
        plot_comparison(tmp_path / "compare.png", results)
        assert (tmp_path / "compare.png").read_bytes().startswith(b"\x89PNG")
    assert cells(none) == ["-", "-", "-", "-", "0 %", "0 %", "-", "0", "-"]


def test_the_second_best_mask_is_near_and_not_found(oracle):
    close = oracle.best_reward * (1 - TOLERANCE / 2)
    rewards = np.array([[close, close, oracle.best_reward]])
    (result,) = agent_results(oracle, [Trace("a", oracle.space.masks[:1], rewards, np.array([3]))])
    assert result.found.tolist() == [[False, False, True]]
    assert result.near.tolist() == [[True, True, True]]
    assert result.needed().tolist() == [3]
    oracle.best_reward = 0.1  # of which nearness is a share
    rewards = np.array([[0.1 * (1 - 2 * TOLERANCE), 0.1]])
    (result,) = agent_results(oracle, [Trace("a", oracle.space.masks[:1], rewards, np.array([2]))])
    assert result.near.tolist() == [[False, True]]


def test_the_leaderboard_says_whether_ours_is_where_it_should_be(oracle):
    def result(agent: str, halfway: float, ends: Sequence[float], since: int) -> AgentResult:
        rewards = np.full((len(ends), 120), oracle.best_reward - halfway)
        rewards[:, since:] = oracle.best_reward - np.array(ends)[:, None]
        masks = np.repeat(oracle.space.masks[:1], len(ends), axis=0)
        return agent_results(oracle, [Trace(agent, masks, rewards, np.full(len(ends), 120))])[0]

    random, rival = result("random", 0.5, [0.0] * 10, 119), result("other", 0.4, [0.0] * 10, 110)
    good, late = (result("bayes", halfway, [0.0] * 10, 100) for halfway in (0.1, 0.2))
    rare = result("bayes", 0.1, [0.0] * 8 + [0.1] * 2, 100)
    for ours, reached in ((good, "yes"), (late, "no"), (rare, "no")):
        line = verdict({"table": [ours, random, rival]}).splitlines()[-1]
        assert line.split(" | ")[-2:] == [reached, "other: 111 |"]


def test_where_nobody_ever_has_an_answer_and_the_truth_is_unknown(oracle):
    oracle.best_reward = None
    (none,) = agent_results(oracle, [Trace("a", oracle.space.masks[:1], np.full((1, 2), -np.inf), np.zeros(1, int))])
    assert (none.regret == np.inf).all()
    assert not none.found.any()


def test_a_wrong_setting_is_found_before_anyone_plays(oracle):
    done = []
    for agents, settings, text in (
        (["random", "bandit"], {"bandit": {"rate": 1}}, "unknown setting of agent 'bandit', 'rate'"),
        (
            ["random", "evolution"],
            {"evolution": {"stages": [0.5, 1]}},
            "agent 'evolution' is told to begin on fewer examples",
        ),
        (["random", "ppo"], {"ppo": {"gama": 1}}, "unknown setting of ppo, 'gama'; did you mean 'gamma'"),
        (["random", "ppo"], {"ppo": {"policy": "MlpPolcy"}}, "unknown policy of ppo, 'MlpPolcy'; did you mean 'MlpPolicy'"),
        (["random", "pppo"], {}, "unknown agent 'pppo'; did you mean 'ppo'"),
    ):
        with pytest.raises(ValueError, match=text):
            compare(oracle, agents, range(1), 6, agent_kwargs=settings, on_agent=done.append)
    assert done == []


@pytest.mark.parametrize("budget", [{"skip_num": 4}, {"macs_saved": 0.15}])
def test_ours_beats_the_other_searches(budget, made_up_table):
    oracle = TableOracle(TABULAR, budget, {"table": str(made_up_table)})
    others = ["bandit", "cross_entropy", "evolution", "random"]
    ours, *rest = compare(oracle, ["bayes", *others], seeds=range(6), evaluations=30)
    assert ours.found[:, -1].all()
    assert all(ours.mean_regret() < other.mean_regret() for other in rest)


@pytest.mark.slow
def test_live_agrees_with_the_environment(tiny_kwargs):
    live = make_oracle("DAS-METER-VQA-v0", {"skip_num": 4}, {**tiny_kwargs, "reward_examples": 4})
    assert isinstance(live, LiveOracle)
    assert live.best_reward is None
    assert live.space.budget.as_dict() == {"n_layers": 12, "skip_num": 4}
    (result,) = compare(live, ["uniform"], seeds=range(2), evaluations=3)
    assert result.rank is None
    assert (result.regret == 0).all()
    mask = result.answers[:1]
    scorer = live._scorer
    loss = scorer.problem.evaluator.losses(mask, scorer.fixed_examples)
    assert result.rewards[0] == np.exp(-loss)[0]
    assert result.test_metrics[0] == scorer.problem.evaluator.evaluate(mask, scorer.problem.splits.test).metrics[0]


def test_examples_that_change_are_refused():
    with pytest.raises(ValueError, match="reward_batches='cycle' gives a mask now this reward, now that"):
        make_oracle("DAS-METER-VQA-v0", {"skip_num": 4}, {"reward_batches": "cycle"})


def test_the_command_keeps_record_and_picture(made_up_table, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    agents = ["random", "bayes", "uniform", "ppo", "stable_baselines3:A2C"]
    ex.run(
        {"table": str(made_up_table), "seeds": 5, "evaluations": 20, "agents": agents, "masks_per_turn": 4},
        named_configs=["meter_vqa"],
    )
    folder = tmp_path / "runs" / "1"
    record = json.loads((folder / "compare.json").read_text())
    assert [entry["agent"] for entry in record["agents"]] == agents
    assert record["masks"] == 70
    assert record["settings"]["seeds"] == 5
    random = record["agents"][0]
    assert random["regret"]["q50"][:3] == random["rank"]["q50"][:3] == [None] * 3
    assert random["regret"]["q50"][3] > 0
    assert len(random["regret"]["q50"]) == len(random["rank"]["q75"]) == len(random["found"]) == 20
    assert len(random["answers"]) == len(random["test_metrics"]) == 5
    assert (folder / "compare.png").read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert f"{TABULAR}, k = 4 (70 masks), 5 seeds" in printed
    assert all(agent in printed for agent in agents)


@pytest.mark.parametrize(
    ("update", "text"),
    [
        ({"seeds": 0}, "seeds=0 is not allowed; give a whole number from 1 on"),
        ({"evaluations": 0}, "evaluations=0 is not allowed"),
        ({"agents": []}, "agents is empty; name some of angular, bandit, bayes"),
        ({"agents": ["bayse"]}, "unknown agent 'bayse'; did you mean 'bayes'"),
        ({"agents": ["maskable_pp"]}, "unknown agent 'maskable_pp'; did you mean 'maskable_ppo'"),
        ({"agents": ["ppo"], "agent_kwargs": {"ppo": {"gama": 1}}}, "unknown setting of ppo, 'gama'"),
        ({"agent_kwargs": {"bayse": {}}}, "agent_kwargs.bayse is given, but 'bayse' is not compared"),
        ({"live": True, "table": "x.npz"}, "live=True plays on the model, table=x.npz on a table"),
        ({"skip_num": 9, "table": "small"}, "skip_num=9: the model has 8 skippable layers; use 0..8"),
        ({"macs_saved": 0.9, "table": "small"}, r"macs_saved=0\.9 is out of reach"),
        ({"agent_kwargs": {"bandit": {"rate": 1}}, "table": "small"}, "unknown setting of agent 'bandit', 'rate'"),
        ({"table": "nowhere.npz"}, "no table at .*nowhere.npz"),
    ],
)
def test_wrong_settings(update, text, made_up_table, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    update = {**update, "table": str(made_up_table)} if update.get("table") == "small" else update
    with pytest.raises(RunError, match=text):
        ex.run({"seeds": 1, **update})
    assert not (tmp_path / "runs").exists()


def test_every_agent_but_the_truth_is_compared():
    assert set(CompareSettings().agents) == set(AGENTS) - {"exhaustive", "sleb"}


def command(*words, cwd):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, "-m", "agents", *words], env=environment, capture_output=True, text=True, cwd=cwd)


@pytest.mark.slow
def test_the_leaderboard_from_one_command(made_up_table, made_up_suite, tmp_path, capsys):
    out = tmp_path / "LEADERBOARD.md"
    words = ["with", f"tables={made_up_table.parent}", f"suite={made_up_suite}", "seeds=1", f"out={out}"]
    words += ["agents=['random','bayes','greedy']", "planted=[24]", f"cache={tmp_path / 'kept'}"]
    leaderboard(words)
    text = out.read_text()
    assert "python -m benchmarks.leaderboard with seeds=1" in text
    assert "### DAS-METER-VQA-v0, 8 layers, k = 4 (70 masks)" in text
    assert "### DAS-METER-VQA-v0, 8 layers, at least 12 % of the MACs saved" in text
    assert text.count("\n| bayes |") == text.count("\n| random |") == 5
    assert (
        text.index("## Many layers")
        < text.index("### 24 layers, 8 skipped, 120 evaluations, 1 seed")
        < text.index("## Ours")
    )
    assert "On the 2 problems of the bundled tables, 1 seed and 120 evaluations each" in text
    (line,) = [line for line in text.splitlines() if line.startswith("| DAS-METER-VQA-v0, k = 4 (70 masks) |")]
    assert line.split(" | ")[-2] in ("yes", "no")
    assert "without a table, and so left out: meter_nlvr2, meter_retrieval, meter_snli_ve," in capsys.readouterr().out
    leaderboard(words)  # from what was kept, milliseconds included
    assert out.read_text() == text
    out.write_text(text.replace("is first", "was first"))
    leaderboard([*words, "only_planted=True"])
    assert out.read_text() == text
    with pytest.raises(ValueError, match=r"planted_seeds=\[1, 0\]: give a number from 1 on for each of planted=\[24, 36\]"):
        leaderboard(["with", "planted=[24,36]", "planted_seeds=[1,0]"])
    with pytest.raises(ValueError, match=r"only_planted=True with planted=\[\]: nothing is left to play"):
        leaderboard(["with", "planted=[]", "only_planted=True"])
    with pytest.raises(ValueError, match=r"planted=\[25\]: give some of 24, 36, 72, 100"):
        leaderboard(["with", "planted=[25]"])
    with pytest.raises(
        ValueError, match=r"no tables named <short>_table\.npz in .*`python -m agents table with meter_vqa` makes one"
    ):
        leaderboard(["with", f"tables={tmp_path / 'none'}"])
    with pytest.raises(ValueError, match="seeds=0 is not allowed; give a whole number from 1 on"):
        leaderboard(["with", "seeds=0"])
    with pytest.raises(ValueError, match="bayes has to be among them"):
        leaderboard(["with", "agents=['random']"])


@pytest.mark.slow
def test_the_list_names_everything(tmp_path):
    listed = command("list", cwd=tmp_path)
    assert listed.returncode == 0, listed.stderr
    for name in (*AGENTS, "DAS-METER-VQA-v0", "vilt_retrieval", "exp_neg_loss", "block_influence_tokens", "maskable_ppo"):
        assert name in listed.stdout
