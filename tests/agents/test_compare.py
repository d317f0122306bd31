from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from agents import AGENTS, Agent, MaskSpace
from agents.arena import LiveArena, TableArena, make_arena
from agents.compare import Played, Standing, compare, judge, play, quantile
from agents.compare_experiment import Settings, ex
from agents.leaderboard import main as leaderboard
from das_gym.evaluation.table import SubnetTable
from das_gym.experiment import RunError

ROOT = Path(__file__).parents[2]
TABULAR = "DAS-METER-VQA-Tabular-v0"


@pytest.fixture
def arena(made_up_table):
    return TableArena(TABULAR, {"skip_num": 4}, {"table": str(made_up_table)})


def test_a_table_arena_tells_the_truth(arena, made_up_table):
    table = SubnetTable.load(made_up_table)
    assert arena.space.budget == {"n_layers": 8, "skip_num": 4, "macs_saved": None}
    assert arena.statistics["depth"].tolist() == table.statistics[:, 0].tolist()
    np.testing.assert_array_equal(arena.rewards(table.masks), table.values("exp_neg_loss"))  # also off the budget
    best = table.best(skip_num=4)[None]
    assert arena.rewards(best)[0] == arena.best_reward
    masks = arena.space.masks
    np.testing.assert_array_equal(arena.ranks(arena.rewards(masks)), table.rank(masks, "exp_neg_loss", skip_num=4))
    np.testing.assert_array_equal(arena.test_metrics(masks), table.values("metric", "test")[table.index(masks)])


def test_a_price_counts(made_up_table):
    arena = TableArena(TABULAR, {"macs_saved": 0.1}, {"table": str(made_up_table), "macs_price": 100.0})
    best = arena.space.masks[arena.rewards(arena.space.masks).argmax()]
    assert best.all()


def test_curves_are_of_the_answer_at_the_time(arena):
    played = play(arena, "random", range(3), 30, 3, {})
    assert played.rewards.shape == (3, 30)
    assert (np.diff(played.rewards, axis=1) >= 0).all()
    assert (played.rewards[:, ::3] == played.rewards[:, 2::3]).all()  # a turn of 3 has one answer
    assert (played.rewards[:, -1] == arena.rewards(played.answers)).all()
    assert len(np.unique(played.answers, axis=0)) > 1
    again = play(arena, "random", range(3), 30, 3, {})
    assert (again.rewards == played.rewards).all()


def test_an_agent_that_is_done_keeps_its_answer(arena):
    played = play(arena, "greedy", range(5), 60, 3, {})
    assert played.evaluations.tolist() == [8 + 7 + 6 + 5] * 5
    assert (played.rewards[:, 25:] == played.rewards[:, 25:26]).all()
    assert (played.answers == played.answers[0]).all()


def test_no_mask_is_scored_beyond_the_budget(arena):
    assert play(arena, "bayes", range(1), 7, 3, {}).evaluations.tolist() == [7]


def test_a_single_mask_needs_no_evaluation(made_up_table):
    arena = TableArena(TABULAR, {"skip_num": 0}, {"table": str(made_up_table)})
    played = play(arena, "greedy", range(2), 5, 3, {})
    assert played.evaluations.tolist() == [0, 0]
    assert (played.rewards == arena.best_reward).all()


def test_stages_are_refused(arena):
    with pytest.raises(ValueError, match="agent 'evolution' is told to begin on fewer examples; comparisons score all"):
        play(arena, "evolution", range(1), 5, 3, {"stages": [0.5, 1]})


class OffBudget(Agent):
    """Someone's own agent, which forgets that k = 4."""

    def ask(self, n):
        return np.ones((1, self.n_layers), dtype=bool)

    def tell(self, masks, rewards):
        pass

    def best(self):
        return self.ask(1)[0]


def test_an_agent_that_leaves_the_budget_is_named(arena, monkeypatch):
    monkeypatch.setitem(sys.modules, "own_compared", sys.modules[__name__])
    with pytest.raises(
        ValueError, match=r"agent 'own_compared:OffBudget': ask\(3\) gave the mask that skips layers \[0, 1, 2"
    ):
        compare(arena, ["own_compared:OffBudget"], seeds=range(1), evaluations=6)


def test_settings_of_an_agent_reach_it(arena):
    slow, quick = (play(arena, "bandit", range(4), 30, 3, {"learning_rate": rate}) for rate in (1e-9, 1e3))
    assert (slow.answers == slow.answers[0]).mean() > (quick.answers == quick.answers[0]).mean()


def test_what_was_needed_is_counted_to_the_last_miss():
    def standing(*found):
        return Standing("a", np.zeros((2, 4)), None, np.array(found, bool), *[np.zeros(2)] * 4)

    assert standing([0, 0, 1, 1], [0, 1, 0, 1]).needed().tolist() == [3, 4]
    assert standing([1, 1, 1, 1], [1, 1, 1, 0]).needed().tolist() == [1, np.inf]
    assert quantile(np.array([1.0, np.inf, 2.0]), 50) == 2.0
    assert quantile(np.array([1.0, np.inf, np.inf]), 50) == np.inf


def test_where_the_truth_is_unknown_the_best_answer_stands_for_it(arena):
    arena.best_reward = None
    masks = arena.space.masks[:2]
    rewards = np.array([[0.2, 0.3], [0.1, 0.5]])
    one, other = judge(arena, [Played("a", masks, rewards, np.full(2, 2)), Played("b", masks, rewards - 0.1, np.full(2, 2))])
    np.testing.assert_allclose(one.regret, [[0.3, 0.2], [0.4, 0.0]])
    np.testing.assert_allclose(other.regret, [[0.4, 0.3], [0.5, 0.1]])
    assert one.found.tolist() == [[False, False], [False, True]]


@pytest.mark.parametrize("budget", [{"skip_num": 4}, {"macs_saved": 0.15}])
def test_ours_beats_the_other_searches(budget, made_up_table):
    arena = TableArena(TABULAR, budget, {"table": str(made_up_table)})
    others = ["bandit", "cross_entropy", "evolution", "random"]
    ours, *rest = compare(arena, ["bayes", *others], seeds=range(6), evaluations=30)
    assert ours.found[:, -1].all()
    assert all(ours.regret.mean() < other.regret.mean() for other in rest)


def test_live_agrees_with_the_environment(tiny_kwargs):
    live = make_arena("DAS-METER-VQA-v0", {"skip_num": 4}, {**tiny_kwargs, "reward_examples": 4})
    assert isinstance(live, LiveArena)
    assert live.best_reward is None
    assert live.space.budget == MaskSpace(12, 4).budget
    (standing,) = compare(live, ["uniform"], seeds=range(2), evaluations=3)
    assert standing.rank is None
    assert (standing.regret == 0).all()
    mask = standing.answers[:1]
    scorer = live._scorer
    loss = scorer.problem.evaluator.losses(mask, scorer.fixed_examples)
    assert standing.rewards[0] == np.exp(-loss)[0]
    assert standing.test_metrics[0] == scorer.problem.evaluator.evaluate(mask, scorer.problem.splits.test).metrics[0]


def test_examples_that_change_are_refused():
    with pytest.raises(ValueError, match="reward_batches='cycle' gives a mask now this reward, now that"):
        make_arena("DAS-METER-VQA-v0", {"skip_num": 4}, {"reward_batches": "cycle"})


def test_the_command_keeps_record_and_picture(made_up_table, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    agents = ["random", "bayes", "uniform"]
    ex.run(
        config_updates={"table": str(made_up_table), "seeds": 5, "evaluations": 20, "agents": agents},
        named_configs=["meter_vqa"],
    )
    folder = tmp_path / "runs" / "1"
    record = json.loads((folder / "compare.json").read_text())
    assert [entry["agent"] for entry in record["agents"]] == agents
    assert record["masks"] == 70
    assert record["settings"]["seeds"] == 5
    random = record["agents"][0]
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
        ({"agents": []}, "agents is empty; name some of bandit, bayes"),
        ({"agents": ["bayse"]}, "unknown agent 'bayse'; did you mean 'bayes'"),
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
        ex.run(config_updates={"seeds": 1, **update})


def test_every_agent_but_the_truth_is_compared():
    assert set(Settings().agents) == set(AGENTS) - {"exhaustive"}


def command(*words, cwd):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, "-m", "agents", *words], env=environment, capture_output=True, text=True, cwd=cwd)


def test_the_leaderboard_from_one_command(made_up_table, tmp_path, capsys):
    out = tmp_path / "LEADERBOARD.md"
    assert leaderboard(["--tables", str(made_up_table.parent), "--seeds", "1", "--out", str(out)]) == 0
    text = out.read_text()
    assert "python -m agents leaderboard --seeds 1" in text
    assert "### DAS-METER-VQA-v0, k = 4 (70 masks)" in text
    assert "### DAS-METER-VQA-v0, at least 12 % of MACs saved" in text
    assert text.count("\n| bayes |") == text.count("\n| random |") == 2
    assert leaderboard(["--tables", str(tmp_path)]) == 1
    assert "no tables in" in capsys.readouterr().err


def test_the_list_names_everything(tmp_path):
    listed = command("list", cwd=tmp_path)
    assert listed.returncode == 0, listed.stderr
    for name in (*AGENTS, "DAS-METER-VQA-v0", "vilt_f30k", "exp_neg_loss", "block_influence_tokens", "maskable_ppo"):
        assert name in listed.stdout
