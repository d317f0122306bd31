import itertools

import gymnasium
import numpy as np
import pytest
from das_gym.agents import compare, make_oracle
from das_gym.agents.comparing.oracle import LiveOracle, random_probabilities
from das_gym.agents.run_commands import search

from das_gym.problem.budget import Budget, MaskCost
from das_gym.problem.mask_space import every_mask
from das_gym.tables.table import SubnetTable

TABULAR = "DAS-METER-VQA-Tabular-v0"


def test_oracle_is_a_function_that_keeps_its_calls(oracle):
    mask = oracle.space.masks[7]
    assert oracle(mask.tolist()) == oracle.rewards(mask[None])[0]
    assert oracle.calls == [(tuple(np.flatnonzero(mask)), oracle.rewards(mask[None])[0])]
    for wrong in (np.ones(8), np.zeros(7), 0.5 * mask, 2 * mask, np.where(mask, np.nan, 0)):
        with pytest.raises(ValueError, match="`mask` is not allowed"):
            oracle(wrong)
    assert len(oracle.calls) == 1


def test_table_oracle_returns_rewards_ranks_and_metrics_of_the_table(oracle, made_up_table):
    table = SubnetTable.load(made_up_table)
    assert oracle.space.budget.as_dict() == {"n_layers": 8, "skip_num": 4}
    assert oracle.statistics["depth"].tolist() == table.statistics[:, table.meta.statistics.index("depth")].tolist()
    np.testing.assert_array_equal(oracle.rewards(table.masks), table.values("exp_neg_loss"))  # also outside the budget
    assert oracle.rewards(table.best(skip_num=4)[None])[0] == oracle.best_reward
    masks = oracle.space.masks
    np.testing.assert_array_equal(oracle.ranks(oracle.rewards(masks)), table.rank(masks, "exp_neg_loss", skip_num=4))
    np.testing.assert_array_equal(oracle.test_metrics(masks), table.values("metric", "test")[table.index(masks)])


@pytest.mark.parametrize(
    "budget",
    [Budget(5, 2), Budget(5, saved=0.2, cost=MaskCost(100, 100, np.array([5, 12, 9, 20, -3])))],
    ids=["count", "cost"],
)
def test_random_probabilities_agree_with_all_orders(budget):
    masks = every_mask(5)
    useful = np.flatnonzero(budget.useful_layers)
    counts, orders = np.zeros(32), list(itertools.permutations(useful))
    for order in orders:
        mask = np.zeros(5, bool)
        for unit in order:
            if budget.is_feasible(mask[None])[0]:
                break
            mask[unit] = True
        counts[mask @ (1 << np.arange(5))] += 1
    found = random_probabilities(masks, budget.is_feasible(masks), budget.useful_layers)
    np.testing.assert_allclose(found, counts / len(orders))


@pytest.mark.parametrize(
    ("env_id", "budget", "env_kwargs", "text"),
    [
        ("DAS-METER-VQA-v0", {"skip_num": 4}, {"reward_batches": "cycle"}, "reward_batches"),
    ],
)
def test_make_oracle_rejects_settings(env_id, budget, env_kwargs, text):
    with pytest.raises(ValueError, match=text):
        make_oracle(env_id, budget, env_kwargs)


@pytest.mark.slow
def test_live_oracle_agrees_with_the_engine(tiny_kwargs):
    env_kwargs = {**tiny_kwargs, "reward_examples": 4}
    live = make_oracle("DAS-METER-VQA-v0", {"skip_num": 4}, env_kwargs)
    assert isinstance(live, LiveOracle)
    assert live.best_reward is None
    (result,) = compare(live, ["uniform"], seeds=range(2), evaluations=3)
    assert result.ranks is None
    assert (result.regret == 0).all()
    mask = result.answers[:1]
    scorer = gymnasium.make("DAS-METER-VQA-v0", **env_kwargs).unwrapped.scorer
    problem = scorer.problem
    assert result.curves[0, -1] == np.exp(-problem.evaluator.losses(mask, scorer.fixed_examples))[0]
    assert result.test_metrics[0] == problem.evaluator.evaluate(mask, problem.splits.test).metrics[0]


def test_search_on_a_table_prints_the_ground_truth(made_up_table, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    search.run({"env_kwargs": {"table": str(made_up_table)}, "evaluations": 80}, ["meter_vqa_table", "exhaustive"])
    assert "  rank of the answer: 1 of 70\n  regret of the answer: 0.0000\n" in capsys.readouterr().out
