"""`python -m agents report` and `explore`, on a search of a made-up table."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
from das_gym.agents.commands import PROGRAM
from das_gym.agents.run_report import search_report
from das_gym.agents.search_experiment import run_search
from das_gym.agents.searching.record import SearchResult

from das_gym.tables.table import SubnetTable


@pytest.fixture(scope="module")
def runs(made_up_table: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run 1 by the bandit, run 2 by greedy, on the table."""
    folder = tmp_path_factory.mktemp("reported")
    for agent in ("bandit", "greedy"):
        settings = {"env_id": "DAS-METER-VQA-Tabular-v0", "env_kwargs": {"table": str(made_up_table)}, "skip_num": 3}
        run_search({**settings, "runs_dir": str(folder), "agent": agent, "evaluations": 30, "seed": 4})
    return folder


def test_report_matches_record_and_table(runs: Path, made_up_table: Path):
    result, table, told = SearchResult.load(runs / "1"), SubnetTable.load(made_up_table), search_report(runs / "1")
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
    assert search_report(runs / "2").heat is None  # greedy has no probabilities


def test_report_command_reproduces_the_search(made_up_table: Path, tmp_path: Path):
    costs = {"parameters_saved": {"full": 100.0, "unskipped": 100.0, "savings": [10.0] * 8}}
    settings = {"env_id": "DAS-METER-VQA-Tabular-v0", "env_kwargs": {"table": str(made_up_table), "costs": costs}}
    settings |= {"parameters_saved": 0.2, "agent": "random", "evaluations": 5}
    run_search({**settings, "runs_dir": str(tmp_path)})
    told = search_report(tmp_path / "1")
    assert told.facts["budget"] == "parameters_saved=0.2"
    assert shlex.split(told.commands[0])[:5] == ["python", "-m", "agents", "with", "agent=random"]
    words = {word for word in shlex.split(told.commands[0]) if not word.startswith("env_kwargs.costs")}
    assert {"parameters_saved=0.2", "evaluations=5", f"env_kwargs.table={made_up_table}", "seed=0"} <= words


def test_explorer_of_a_table(made_up_table: Path, tmp_path: Path):
    out = tmp_path / "page.html"
    assert PROGRAM.run(["explore", str(made_up_table), "with", f"out={out}"]) == 0
    data = json.loads(out.read_text().split('id="data">')[1].split("</script>")[0])
    assert [unit["name"] for unit in data["units"]] == [f"text.{i}" for i in range(8)]


def test_explorer_rejects_unknown_tables(capsys):
    assert PROGRAM.run(["explore", "meter_vqx"]) == 1
    assert "did you mean 'meter_vqa'" in capsys.readouterr().err
