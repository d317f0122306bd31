import json
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from das_gym.agents.run_commands import table as ex
from das_gym.agents.table_experiment import print_summary

from das_gym.commands.recorded import RunError
from das_gym.engine.scores import Spending
from das_gym.problem.mask_space import skipped_names
from das_gym.tables.table import SubnetTable


@pytest.fixture
def small(tmp_path, monkeypatch, small_kwargs) -> dict:
    """A small problem, few examples, runs in a folder of the test's own."""
    monkeypatch.chdir(tmp_path)
    return {**small_kwargs, "problem": {"eval_batch_size": 4}, "reward_examples": 10, "test_examples": 6}


@pytest.mark.slow
def test_run_writes_a_table(small, small_table, tmp_path):
    ex.run(small, ["meter_vqa"])
    table = SubnetTable.load("runs/1/table.npz")
    small_table.save(tmp_path / "expected.npz")
    folder = Path("runs/1")
    assert (folder / "table.npz").read_bytes() == (tmp_path / "expected.npz").read_bytes()
    assert table.meta == small_table.meta
    run = json.loads((folder / "run.json").read_text())
    assert run["status"] == "COMPLETED"
    assert run["artifacts"] == ["table.npz", "table.json"]
    record = json.loads((folder / "table.json").read_text())
    assert record["hashes"] == table.meta.hashes
    assert record["spent"]["layer_runs"] > 0
    assert not (folder / "table_checkpoint.npz").exists()
    printed = (folder / "cout.txt").read_text()
    assert "DAS-METER-VQA-v0: 64 masks, 10 reward, 6 test examples\n" in printed
    assert "example/s" not in printed
    env = gymnasium.make("DAS-METER-VQA-Tabular-v0", table="runs/1/table.npz")
    env.reset()
    assert env.step(table.best(skip_num=4).astype(np.int8))[4]["feasible"]


def test_partial_table_is_written_to_out(small, tmp_path, capsys):
    out = tmp_path / "tables" / "mine.npz"
    ex.run({**small, "reward_examples": 2, "test_examples": 2, "max_skipped": 1, "out": str(out)})
    assert "best of k=1 " in capsys.readouterr().out
    assert len(SubnetTable.load(out).masks) == 7
    assert not Path("runs/1/table.npz").exists()
    assert json.loads(Path("runs/1/table.json").read_text())["table"] == str(out)


def test_summary_matches_the_table(small_table, capsys):
    print_summary(small_table, Spending(layer_runs=1234, macs=5 * 10**12, seconds=6.0))
    printed = capsys.readouterr().out
    best = small_table.best(skip_num=3)
    (losses,) = [line.split() for line in printed.splitlines() if "loss on the reward split" in line]
    assert losses[-2:] == [f"{small_table.values()[0]:.4f}", f"{small_table.describe(best)['reward_loss']:.4f}"]
    assert f"k=3 skips {', '.join(skipped_names(small_table.meta.layer_names, best))}\n" in printed
    assert printed.endswith("1,234 layer runs, 5.000 T MACs, 6 s\n")


@pytest.mark.parametrize(
    ("update", "text"),
    [
        ({"reward_examples": 0}, "reward_examples"),
        ({"problem": {"precision": "bfloat16"}}, "`precision` is not supported for tables: got bfloat16"),
        ({"out": "."}, "`out` is a folder"),
        ({"out": "/proc/x"}, "`out` is not writable"),
        ({"max_skipped": 7}, "max_skipped"),
    ],
)
def test_wrong_setting_is_rejected_before_the_run(small, update, text):
    with pytest.raises(RunError, match=text):
        ex.run({**small, **update})
    assert not Path("runs/1").exists()
