"""Reports of searches, on a search of a made-up table."""

from __future__ import annotations

import shlex
from pathlib import Path

import numpy as np
import pytest
from das_gym.agents.run_commands import search
from das_gym.agents.run_report import ground_truth, search_report
from das_gym.agents.searching.record import SearchResult

from das_gym.commands.recorded import required_folder
from das_gym.tables.table import SubnetTable


def run_on(table: Path, folder: Path, **settings) -> Path:
    """Search on a table, and return the folder of the run."""
    env_kwargs = {"table": str(table), **settings.pop("env_kwargs", {})}
    fixed = {"env_id": "DAS-METER-VQA-Tabular-v0", "env_kwargs": env_kwargs, "runs_dir": str(folder), "seed": 4}
    return required_folder(search.run({**fixed, **settings}))


def test_report_matches_record_and_table(made_up_table: Path, tmp_path: Path):
    folder = run_on(made_up_table, tmp_path, agent="bandit", evaluations=30, skip_num=3)
    result, table, told = SearchResult.load(folder), SubnetTable.load(made_up_table), search_report(folder)
    assert told.mask == result.mask
    assert told.facts["skips"] == ", ".join(result.skipped_layers)
    rewards = [reward for turn in result.history for reward in turn.rewards]
    assert told.progress.rewards == rewards
    np.testing.assert_allclose(told.progress.best, np.maximum.accumulate(rewards))
    assert told.heat.values[-1] == pytest.approx(result.history[-1].skip_probabilities, abs=1e-4)
    assert told.cost.landed == (result.macs_saved, result.loss)
    assert len(told.cost.others) == 256
    assert list(told.statistics) == list(table.meta.statistics)
    saved = table.layer_macs.savings / table.meta.macs_full
    assert [unit.share for unit in told.architecture.units] == pytest.approx(np.maximum(saved, 0).tolist())
    assert told.table.rows[-1][2] == f"{100 * result.macs_saved:.1f}"


def test_report_command_reproduces_the_search(made_up_table: Path, tmp_path: Path):
    costs = {"parameters_saved": {"full": 100.0, "unskipped": 100.0, "savings": [10.0] * 8}}
    settings = {"parameters_saved": 0.2, "agent": "random", "evaluations": 5}
    told = search_report(run_on(made_up_table, tmp_path, env_kwargs={"costs": costs}, **settings))
    assert told.facts["budget"] == "parameters_saved=0.2"
    assert shlex.split(told.commands[0])[:3] == ["das-agents", "with", "agent=random"]
    words = {word for word in shlex.split(told.commands[0]) if not word.startswith("env_kwargs.costs")}
    assert {"parameters_saved=0.2", "evaluations=5", f"env_kwargs.table={made_up_table}", "seed=4"} <= words


@pytest.mark.parametrize("budget", [{"skip_num": 4}, {"skip_num": None, "macs_saved": 0.15}, {"skip_num": None}])
def test_ground_truth_ranks_a_mask_by_the_table(budget, made_up_table):
    table = SubnetTable.load(made_up_table)
    within = {name: value for name, value in budget.items() if value is not None}
    allowed = table.masks[table.within(**within)]
    for mask in allowed[:: len(allowed) // 5]:
        truth = ground_truth("DAS-METER-VQA-Tabular-v0", {"table": str(made_up_table), **budget}, mask.tolist())
        rank = table.rank(mask, "exp_neg_loss", **within)
        assert truth["rank of the answer"] == f"{rank} of {len(allowed)}"
        assert truth["regret of the answer"] == f"{table.regret(mask, 'exp_neg_loss', **within):.4f}"
    assert not ground_truth("DAS-METER-VQA-v0", {"skip_num": 4}, [1] * 4 + [0] * 8)
    assert not ground_truth("DAS-METER-VQA-Tabular-v0", {"table": str(made_up_table), "skip_num": 4}, [1] * 8)
