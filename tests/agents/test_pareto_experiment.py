"""`python -m agents pareto`, on a made-up table."""

from __future__ import annotations

import numpy as np
import pytest
from das_gym.agents.pareto.record import ScoredMasks
from das_gym.agents.pareto_experiment import FrontProblem, ParetoSettings, ex, search

from das_gym.experiment import RunError
from das_gym.files import read_json
from das_gym.problem.front import front_rows
from das_gym.problem.mask_cost import MaskCost
from das_gym.tables.table import SubnetTable

ENV_ID = "DAS-METER-VQA-Tabular-v0"


@pytest.fixture
def asked(made_up_table, tmp_path):
    """Settings of a short search."""
    env_kwargs = {"table": str(made_up_table)}
    return {"env_id": ENV_ID, "env_kwargs": env_kwargs, "evaluations": 60, "runs_dir": str(tmp_path / "runs")}


def test_run_saves_all_masks_and_the_front(asked, made_up_table, tmp_path, capsys):
    run = ex.run(asked)
    record = read_json(tmp_path / "runs" / "1" / "front.json")
    table = SubnetTable.load(made_up_table)
    searched = ScoredMasks.from_record(record["searched"])
    every = ScoredMasks.joined([searched, *(ScoredMasks.from_record(scored) for scored in record["baselines"].values())])
    rows = table.index(every.masks)
    assert len(searched.masks) == record["evaluations"] == 60
    np.testing.assert_array_equal(every.losses, table.values("loss", "reward")[rows])
    np.testing.assert_allclose(every.saved, table.macs_saved[rows])
    front = every.rows(front_rows(every.saved, every.losses))
    assert [point["mask"] for point in record["points"]] == front.masks.astype(int).tolist()
    assert [point["point"] for point in record["points"]] == list(range(len(front.masks)))
    assert set(record["baselines"]) == {"block_influence", "angular", "interlace", "uniform"}
    assert run.result == record["hypervolume"]
    assert (tmp_path / "runs" / "1" / "front.png").read_bytes().startswith(b"\x89PNG")
    assert not (tmp_path / "runs" / "1" / "front_checkpoint.json").exists()
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines()[: len(front.masks) + 6])) <= 80
    assert f"{100 * record['hypervolume_share']:.2f} % of the true front's hypervolume" in " ".join(printed.split())
    assert "python -m agents" not in printed.partition("Next: ")[2]


def test_stopped_search_resumes_exactly(asked, tmp_path, monkeypatch):
    settings = ParetoSettings(**asked)
    whole = search(settings.front_problem(), settings)
    problem, path = settings.front_problem(), tmp_path / "checkpoint.json"
    score, calls = FrontProblem.score, []

    def fails(self, masks):
        calls.append(masks)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return score(self, masks)

    monkeypatch.setattr(FrontProblem, "score", fails)
    with pytest.raises(KeyboardInterrupt):
        search(problem, settings, path)
    resumed = search(problem, settings, path)
    assert resumed.masks.tolist() == whole.masks.tolist()
    assert resumed.losses.tolist() == whole.losses.tolist()


@pytest.mark.parametrize(
    ("update", "told"),
    [
        ({"evaluations": 5}, "`evaluations` is out of range"),
        ({"env_kwargs": {"reward_batches": "cycle"}}, "reward_batches"),
        ({"env_id": "CartPole-v1", "env_kwargs": {}}, "`env_id` is not an environment of das_gym"),
    ],
)
def test_invalid_settings_are_rejected(asked, update, told):
    with pytest.raises((RunError, TypeError), match=told):
        ex.run({**asked, **update})


def test_cost_without_savings_is_rejected_before_scoring(asked, monkeypatch):
    monkeypatch.setattr(MaskCost, "range", property(lambda self: (-0.2, -0.1)))
    with pytest.raises(RunError, match="no mask of this model saves MACs"):
        ex.run(asked)
