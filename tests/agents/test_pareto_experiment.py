"""`python -m agents pareto`, on a made-up table."""

import numpy as np
import pytest
from das_gym.agents.pareto_experiment import front_indices, front_table
from das_gym.agents.run_commands import pareto as ex
from das_gym.agents.searching.record import Checkpoint

from das_gym.commands.recorded import RunError
from das_gym.files import read_json
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
    masks, saved, losses = (np.array(record["searched"][name]) for name in ("masks", "saved", "losses"))
    rows = table.index(masks.astype(bool))
    np.testing.assert_array_equal(losses, table.values("loss", "reward")[rows])
    np.testing.assert_allclose(saved, table.macs_saved[rows])
    assert len(masks) == record["evaluations"] == 60
    front = front_indices(masks, saved, losses, keeps_a_layer=False)
    assert [point["mask"] for point in record["points"]] == masks[front].tolist()
    assert [point["point"] for point in record["points"]] == list(range(len(front)))
    assert run.result == record["hypervolume"]
    assert (tmp_path / "runs" / "1" / "front.png").read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines()[: len(front) + 6])) <= 80
    assert f"{100 * record['hypervolume_share']:.2f} % of the true front's hypervolume" in " ".join(printed.split())
    assert "das-agents" not in printed.partition("Next: ")[2]


def test_stopped_search_resumes_exactly(asked, tmp_path, monkeypatch):
    ex.run(asked)
    stopped = []

    def stop(self, folder):
        save(self, folder)
        stopped.append(folder)
        if len(stopped) == 4:
            raise KeyboardInterrupt

    save = Checkpoint.save
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "save", stop)
        with pytest.raises(KeyboardInterrupt):
            ex.run(asked)
    ex.run({"resume": 2, "runs_dir": asked["runs_dir"]})
    one, two = (read_json(tmp_path / "runs" / run / "front.json") for run in ("1", "2"))
    assert one == two


def test_front_keeps_a_layer_where_skipped_layers_are_removed():
    masks = np.array([[0, 0], [1, 0], [1, 1]], dtype=bool)
    scored = masks, np.array([0.0, 0.4, 0.8]), np.array([0.1, 0.2, 0.9])
    assert front_indices(*scored, keeps_a_layer=False).tolist() == [0, 1, 2]
    assert front_indices(*scored, keeps_a_layer=True).tolist() == [0, 1]


def test_a_metric_that_is_not_finite_is_printed_as_missing():
    point = {"point": 0, "mask": [1, 0], "saved": 0.5, "loss": 1.25, "metric": None}
    record = {"points": [point], "cost": "MACs", "evaluations": 3, "hypervolume_share": None, "env_id": "E"}
    table = front_table({**record, "settings": {"seed": 0}}, "accuracy")
    assert table.rows == (("0", "50.0 %", "1.2500", "-", "1"),)


@pytest.mark.parametrize(
    ("update", "told"),
    [
        ({"evaluations": 5}, "`evaluations` is out of range"),
        ({"env_kwargs": {"reward_batches": "cycle"}}, "reward_batches"),
        ({"env_kwargs": {"reward": "metric"}}, "`reward` is not supported for a front: got 'metric'"),
        ({"env_kwargs": {"macs_price": 0.5}}, "`macs_price` is not supported"),
    ],
)
def test_invalid_settings_are_rejected(asked, update, told):
    with pytest.raises(RunError, match=told):
        ex.run({**asked, **update})
