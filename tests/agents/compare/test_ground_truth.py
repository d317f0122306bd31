from __future__ import annotations

import pytest
from das_gym.agents.compare.oracle import ground_truth_of
from das_gym.agents.search_experiment import run_search
from synthetic import ENV_ID

from das_gym.tables.table import SubnetTable

TABULAR = "DAS-METER-VQA-Tabular-v0"


@pytest.mark.parametrize("budget", [{"skip_num": 4}, {"skip_num": None, "macs_saved": 0.15}, {"skip_num": None}])
def test_ground_truth_ranks_a_mask_by_the_table(budget, made_up_table):
    table = SubnetTable.load(made_up_table)
    within = {name: value for name, value in budget.items() if value is not None}
    allowed = table.masks[table.within(**within)]
    for mask in allowed[:: len(allowed) // 5]:
        truth = ground_truth_of(TABULAR, {"table": str(made_up_table), **budget}, mask.astype(int).tolist())
        assert truth.rank == table.rank(mask, "exp_neg_loss", **within)
        assert truth.regret == pytest.approx(float(table.regret(mask, "exp_neg_loss", **within)), abs=1e-12)
        assert truth.masks == len(allowed)


def test_ground_truth_is_none_without_a_full_table(made_up_table):
    assert ground_truth_of(ENV_ID, {"skip_num": 4}, [1] * 4 + [0] * 8) is None
    assert ground_truth_of(TABULAR, {"table": str(made_up_table), "skip_num": 4}, [1] * 8) is None


@pytest.mark.parametrize("agent", ["exhaustive", "leave_one_out", "ppo"])
def test_search_on_a_table_prints_the_ground_truth(agent, made_up_table, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    settings = {"env_kwargs": {"table": str(made_up_table)}, "evaluations": 80 if agent == "exhaustive" else 12}
    result = run_search(settings, ["meter_vqa_table", agent])[2]
    truth = ground_truth_of(result.env_id, result.env_kwargs, result.mask)
    assert truth.rank == 1 or agent != "exhaustive"
    line = f"  against the ground truth: rank {truth.rank} of 70 masks, regret {truth.regret:.4f} (the best reward is "
    assert line in capsys.readouterr().out
