from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from das_gym.agents.sb3.policy import load_sb3
from das_gym.agents.search_experiment import run_search
from landscapes import write_table

from das_gym.experiment import RunError


@pytest.fixture
def small(tmp_path, monkeypatch) -> dict:
    """Few masks of a small table, runs in a folder of the test's own."""
    monkeypatch.chdir(tmp_path)
    return {"evaluations": 24, "skip_num": 3, "env_kwargs": {"table": str(write_table(tmp_path / "table.npz"))}}


def test_run_saves_search_files_and_the_agent(small: dict):
    run_id, folder, result = run_search(
        {**small, "masks_per_turn": 2, "agent_kwargs": {"n_steps": 4, "learning_rate": 1e-3}}, ["meter_vqa_table", "ppo"]
    )
    assert (run_id, folder) == ("1", Path("runs/1"))
    assert (result.agent, result.masks_per_turn, result.evaluations, result.n_skipped) == ("ppo", 2, 24, 3)
    assert result.agent_kwargs["learning_rate"] == 1e-3
    run = json.loads((folder / "run.json").read_text())
    assert run["status"] == "COMPLETED"
    assert run["result"] == result.reward
    assert run["artifacts"] == ["agent.zip", "search.png", "search.json"]
    metrics = json.loads((folder / "metrics.json").read_text())
    assert {"reward", "best_reward", "loss", "macs_saved", "train/loss", "rollout/ep_rew_mean"} <= set(metrics)
    assert metrics["train/loss"]["steps"] == sorted(metrics["train/loss"]["steps"])
    assert metrics["train/loss"]["steps"][-1] == 24
    assert np.isfinite(metrics["train/loss"]["values"]).all()
    printed = (folder / "cout.txt").read_text()
    assert "| train/" in printed
    assert "ppo in action space 'scores', 24 steps; its own answer:" in printed
    assert list((folder / "tensorboard").glob("events*"))
    assert load_sb3(folder, trust=True)[1]["algorithm"] == "ppo"


def test_run_without_tensorboard_warns(small: dict, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("stable_baselines3.common.logger.SummaryWriter", None)
    folder = run_search({**small, "agent_kwargs": {"n_steps": 4}}, ["meter_vqa_table", "ppo"])[1]
    said = [line for line in (folder / "cout.txt").read_text().splitlines() if "TensorBoard" in line]
    assert len(said) == 1
    assert not (folder / "tensorboard").exists()


@pytest.mark.parametrize(
    ("update", "names", "text"),
    [
        ({"agent_kwargs": {"gama": 1}}, ["ppo"], "unknown setting of ppo, 'gama'; did you mean 'gamma'"),
        ({"action": "scores"}, ["dqn"], "unknown action of dqn, 'scores'"),
        ({"action": "scores"}, ["bandit"], "agent 'bandit' has no setting `action`"),
    ],
)
def test_wrong_setting_is_rejected_before_the_run(small: dict, update: dict, names: list[str], text: str):
    with pytest.raises(RunError, match=text):
        run_search({**small, **update}, ["meter_vqa_table", *names])
    assert not Path("runs/1").exists()


def test_stopped_run_resumes(small: dict):
    update = {**small, "evaluations": 24, "save_every": 1, "agent_kwargs": {"n_steps": 4}}

    def interrupted(*args, **kwargs):
        raise OSError("the disk is full")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("das_gym.agents.searching.record.SearchResult.save", interrupted)
        with pytest.raises(RunError, match="the disk is full"):
            run_search(update, ["meter_vqa_table", "ppo"])
    run_id, folder, result = run_search({"resume": 1})
    assert run_id == "1"
    assert result.evaluations == 24
    assert result.reward >= max(max(turn.rewards) for turn in result.history)
    assert (folder / "agent.zip").is_file()
