import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from das_gym.agents.run_commands import search as ex
from das_gym.agents.search_experiment import ground_truth
from das_gym.agents.searching.record import SearchResult, best_rows
from das_gym.agents.searching.scorer import make_scored
from das_gym.agents.settings import SearchSettings, add_environment, complete_search
from gymnasium.envs.registration import EnvSpec
from synthetic import ENV_ID

from das_gym.commands.recorded import RunError, run_folder
from das_gym.commands.settings import build
from das_gym.tables.table import SubnetTable


@pytest.fixture
def small(tmp_path, monkeypatch):
    """Few masks on the synthetic environment, runs in a folder of the test's own."""
    monkeypatch.chdir(tmp_path)
    return {"env_id": ENV_ID, "evaluations": 30}


def run_search(updates: dict[str, Any], named: Sequence[str] = ()) -> tuple[str, Path, SearchResult]:
    """Run a search; return its id, folder and result."""
    run = ex.run(updates, named)
    folder = run_folder(run)
    assert folder is not None
    return str(run._id), folder, SearchResult.load(folder)


def test_run_saves_metrics_and_artifacts(small):
    run_id, folder, result = run_search({**small, "seed": 3}, ["bandit"])
    assert (run_id, folder) == ("1", Path("runs/1"))
    assert (result.agent, result.seed, result.masks_asked) == ("bandit", 3, 30)
    run = json.loads((folder / "run.json").read_text())
    assert run["status"] == "COMPLETED"
    assert run["result"] == result.reward
    assert run["artifacts"] == ["search.png", "search.json"]
    assert (folder / "search.png").read_bytes().startswith(b"\x89PNG")
    metrics = json.loads((folder / "metrics.json").read_text())
    assert set(metrics) == {"reward", "best_reward", "loss", "macs_saved"}
    assert all(series["steps"] == list(range(3, 31, 3)) for series in metrics.values())
    assert metrics["best_reward"]["values"][-1] == best_rows(result.history, result.env_kwargs)[0]["reward"]
    printed = (folder / "cout.txt").read_text()
    assert ", ".join(result.skipped_layers) in printed
    assert "record: runs/1/search.json" in printed
    assert "mask/s" not in printed


def test_run_with_sb3_saves_the_agent_and_its_metrics(made_up_table, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = {"evaluations": 24, "skip_num": 3, "env_kwargs": {"table": str(made_up_table)}, "masks_per_turn": 2}
    settings["agent_kwargs"] = {"n_steps": 4, "learning_rate": 1e-3}
    _, folder, result = run_search(settings, ["meter_vqa_table", "ppo"])
    assert (result.agent, result.masks_per_turn, result.masks_asked, result.n_skipped) == ("ppo", 2, 24, 3)
    assert result.agent_kwargs["learning_rate"] == 1e-3
    run = json.loads((folder / "run.json").read_text())
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


def test_best_reward_is_of_masks_within_the_budget(small):
    _, folder, result = run_search({**small, "evaluations": 50}, ["greedy"])
    metrics = json.loads((folder / "metrics.json").read_text())
    assert max(metrics["reward"]["values"]) > result.reward  # masks that skip less are better
    assert metrics["best_reward"]["steps"][0] > 12 + 11 + 10  # no mask of k = 4 before the last round
    assert metrics["best_reward"]["values"][-1] == result.reward


def test_file_storage_sets_only_the_folder_of_runs(small, tmp_path):
    ex.run(small, options={"--file_storage": str(tmp_path / "other")})
    assert (tmp_path / "other" / "1" / "search.json").is_file()
    assert (tmp_path / "other" / "1" / "metrics.json").is_file()
    assert not (tmp_path / "runs").exists()


def test_settings_of_the_environment_reach_it():
    settings = build(SearchSettings, {"image_size": 96, "reward": "metric", "env_kwargs": {"macs_price": 0.5}})
    assert settings.mask_kwargs == {"skip_num": 4, "reward": "metric", "image_size": 96, "macs_price": 0.5}
    with pytest.raises(ValueError, match=r"image_size=96 is given, and env_kwargs\.image_size=64 too; give one of them"):
        build(SearchSettings, {"image_size": 96, "env_kwargs": {"image_size": 64}})


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({}, ("DAS-METER-VQA-v0", "METER", "vqa")),
        ({"problem.model": "ViLT"}, ("DAS-ViLT-VQA-v0", "ViLT", "vqa")),
        ({"env_id": "DAS-ViLT-NLVR2-Tabular-v0"}, ("DAS-ViLT-NLVR2-Tabular-v0", "ViLT", "nlvr2")),
    ],
)
def test_environment_and_problem_are_of_one_model(given, wanted):
    settings = build(SearchSettings, add_environment(given))
    assert (settings.env_id, settings.problem.model, settings.problem.task) == wanted


@pytest.mark.parametrize("agent", ["bandit", "ppo"])
def test_hyperparameter_of_the_agent_may_be_given_alone(agent):
    settings = build(SearchSettings, complete_search({"agent": agent, "learning_rate": 3e-4}))
    assert settings.agent_kwargs == {"learning_rate": 3e-4}
    with pytest.raises(ValueError, match="unknown setting 'learnin'"):
        build(SearchSettings, complete_search({"agent": agent, "learnin": 1}))


def test_missing_library_is_not_an_unknown_environment(monkeypatch):
    def without_torchvision(**_: Any) -> None:
        raise ModuleNotFoundError("No module named 'torchvision'", name="torchvision")

    spec = EnvSpec("Broken-v0", without_torchvision)
    monkeypatch.setitem(gymnasium.registry, spec.id, spec)
    with pytest.raises(ModuleNotFoundError, match="torchvision"):
        make_scored("Broken-v0", {})


def test_environment_of_another_model_is_rejected():
    with pytest.raises(ValueError, match="`env_id` and `model` differ"):
        add_environment({"env_id": "DAS-ViLT-VQA-v0", "problem.model": "METER"})


@pytest.mark.parametrize(
    ("update", "text"),
    [
        ({"image_siz": 96}, "did you mean 'image_size'"),
        ({"agent": "ppo", "agent_kwargs": {"gama": 1}}, "unknown setting of ppo, 'gama'; did you mean 'gamma'"),
        ({"agent": "ppo", "agent_kwargs": {"policy": "MlpPolicies"}}, "unknown policy of ppo, 'MlpPolicies'; did you mean"),
        ({"env_id": "no_module:Mine-v0"}, "`env_id` is not registered: No module named 'no_module'"),
        ({"env_kwargs": {"id": "x"}}, "`env_kwargs` must not hold"),
        ({"env_id": "meter_vqa"}, "unknown env_id .*did you mean .DAS-METER-VQA-v0"),
        ({"env_id": "CartPole-v1", "env_kwargs": {}}, "`env_id` is not an environment of das_gym: got CartPole-v1"),
        ({"env_id": "DAS-METER-VQA-MO-v0"}, "unknown env_id"),
        (
            {"env_id": "DAS-METER-VQA-v0", "agent": "ppo", "env_kwargs": {"split": "test"}},
            "unexpected keyword argument 'split'",
        ),
    ],
)
def test_wrong_setting_is_rejected_before_the_run(small, update, text):
    with pytest.raises(RunError, match=text):
        run_search({**small, **update})
    assert not Path("runs/1").exists()


def test_failed_run_resumes_to_the_same_record(small):
    given = {**small, "plugins": ["synthetic"]}
    run_search({**given, "env_kwargs": {"reward_batches": "resample", "broken_from": None}})
    with pytest.raises(RunError, match=r"images/0007\.png is missing"):
        run_search({**given, "env_kwargs": {"reward_batches": "resample", "broken_from": 5}})
    for name in ("config.json", "inputs.json"):  # the image is put back
        path = Path("runs/2") / name
        path.write_text(path.read_text().replace('"broken_from": 5', '"broken_from": null'))
    run_id, _, _ = run_search({"resume": 2, "masks_per_turn": 3, "plugins": ["synthetic"]})
    assert run_id == "2"
    assert Path("runs/1/search.json").read_bytes() == Path("runs/2/search.json").read_bytes()
    one, two = (json.loads(Path(f"runs/{i}/metrics.json").read_text()) for i in (1, 2))
    assert {k: (v["steps"], v["values"]) for k, v in one.items()} == {k: (v["steps"], v["values"]) for k, v in two.items()}
    with pytest.raises(RunError, match="run 2 is complete"):
        run_search({"resume": 2})


@pytest.mark.parametrize("budget", [{"skip_num": 4}, {"skip_num": None, "macs_saved": 0.15}, {"skip_num": None}])
def test_ground_truth_ranks_a_mask_by_the_table(budget, made_up_table):
    table = SubnetTable.load(made_up_table)
    within = {name: value for name, value in budget.items() if value is not None}
    allowed = table.masks[table.within(**within)]
    for mask in allowed[:: len(allowed) // 5]:
        truth = ground_truth("DAS-METER-VQA-Tabular-v0", {"table": str(made_up_table), **budget}, mask)
        rank = table.rank(mask, "exp_neg_loss", **within)
        assert truth["rank of the answer"] == f"{rank} of {len(allowed)}"
        assert truth["regret of the answer"] == f"{table.regret(mask, 'exp_neg_loss', **within):.4f}"
    assert not ground_truth("DAS-METER-VQA-v0", {"skip_num": 4}, np.arange(12) < 4)
    assert not ground_truth("DAS-METER-VQA-Tabular-v0", {"table": str(made_up_table), "skip_num": 4}, np.ones(8, dtype=bool))
