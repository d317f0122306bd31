from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
from das_gym.agents.search_experiment import SearchSettings, ex, run_search
from synthetic import ENV_ID

from das_gym.experiment import RunError
from tests.commands import start, stop_when


@pytest.fixture
def small(tmp_path, monkeypatch):
    """Few masks on the synthetic environment, runs in a folder of the test's own."""
    monkeypatch.chdir(tmp_path)
    return {"env_id": ENV_ID, "evaluations": 30}


def test_run_saves_metrics_and_artifacts(small):
    run_id, folder, result = run_search({**small, "seed": 3}, ["bandit"])
    assert (run_id, folder) == ("1", Path("runs/1"))
    assert (result.agent, result.seed, result.evaluations) == ("bandit", 3, 30)
    run = json.loads((folder / "run.json").read_text())
    assert run["status"] == "COMPLETED"
    assert run["result"] == result.reward
    assert run["artifacts"] == ["skip_probabilities.png", "search.png", "search.json"]
    for name in run["artifacts"][:2]:
        assert (folder / name).read_bytes().startswith(b"\x89PNG")
    metrics = json.loads((folder / "metrics.json").read_text())
    layers = {f"skip_probability.{name}" for name in result.layer_names}
    assert set(metrics) == {"reward", "best_reward", "loss", "macs_saved"} | layers
    assert all(series["steps"] == list(range(3, 31, 3)) for series in metrics.values())
    assert metrics["best_reward"]["values"][-1] == result.best_seen["reward"]
    assert metrics["skip_probability.text.0"]["values"][-1] == result.skip_probabilities[0]
    printed = (folder / "cout.txt").read_text()
    assert ", ".join(result.skipped_layers) in printed
    assert "record: runs/1/search.json" in printed
    assert "mask/s" not in printed


@pytest.mark.parametrize("agent", ["greedy", "leave_one_out"])
def test_best_reward_is_of_masks_within_the_budget(small, agent):
    _, folder, result = run_search({**small, "evaluations": 50}, [agent])
    metrics = json.loads((folder / "metrics.json").read_text())
    assert max(metrics["reward"]["values"]) > result.best_seen["reward"]  # masks that skip less are better
    if agent == "leave_one_out":
        assert "best_reward" not in metrics
    else:
        assert metrics["best_reward"]["steps"][0] > 12 + 11 + 10  # no mask of k = 4 before the last round
        assert metrics["best_reward"]["values"][-1] == result.best_seen["reward"]


def test_file_storage_sets_only_the_folder_of_runs(small, tmp_path):
    ex.run(small, options={"--file_storage": str(tmp_path / "other")})
    assert (tmp_path / "other" / "1" / "search.json").is_file()
    assert (tmp_path / "other" / "1" / "metrics.json").is_file()
    assert not (tmp_path / "runs").exists()


def test_settings_of_the_environment_reach_it():
    settings = SearchSettings(data_root="/data", env_kwargs={"reward": "metric", "image_size": 96})
    assert settings.search_config().env_kwargs == {"reward": "metric", "data_root": "/data", "image_size": 96}
    with pytest.raises(ValueError, match=r"data_root=/a is given, and env_kwargs\.data_root=/b too; give one of them"):
        SearchSettings(data_root="/a", env_kwargs={"data_root": "/b"}).search_config()


@pytest.mark.parametrize(
    ("update", "text"),
    [
        ({"skp_num": 4}, "unknown setting 'skp_num'; did you mean 'skip_num'"),
        ({"seed": "abc"}, "seed='abc' .str. is not allowed; give a whole number"),
        ({"image_size": 96}, "Did you mean `env_kwargs.image_size`"),
        ({"agent": "bandi"}, "unknown agent 'bandi'; did you mean 'bandit'"),
        ({"plugins": "no_such_module"}, "plugins=no_such_module cannot be imported .ModuleNotFoundError"),
        ({"env_id": "DAS-METER-VQ-v0"}, "Environment `DAS-METER-VQ` doesn't exist. Did you mean: `DAS-METER-VQA`"),
        ({"env_id": "meter_vqa"}, "`env_id` is not registered: .*Give env_id=DAS-METER-VQA-v0"),
        ({"env_id": "DAS-METER-VQA-MO-v0"}, "`env_id` has not one problem with one reward"),
        ({"env_id": "DAS-Suite-v0"}, "`env_id` has not one problem with one reward"),
        ({"env_id": "DAS-METER-VQA-v0", "skip_num": 13}, "`skip_num` is out of range"),
        ({"env_id": "DAS-METER-VQA-v0", "supernet": "none.safetensors"}, r"`supernet` does not exist"),
        ({"agent": "ppo", "start_from": "none"}, "no agent at .*none"),
        ({"env_id": "DAS-METER-VQA-v0", "device": "gpu"}, "device='gpu' cannot be used here"),
        ({"skip_num": 13}, "`skip_num` is out of range"),
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
    run_search({**small, "env_kwargs": {"reward_batches": "resample", "broken_from": None}})
    with pytest.raises(RunError, match=r"images/0007\.png is missing"):
        run_search({**small, "env_kwargs": {"reward_batches": "resample", "broken_from": 5}})
    for name in ("config.json", "checkpoint.json"):  # the image is put back
        path = Path("runs/2") / name
        path.write_text(path.read_text().replace('"broken_from": 5', '"broken_from": null'))
    run_id, _, _ = run_search({"resume": 2, "masks_per_turn": 3})
    assert run_id == "2"
    assert Path("runs/1/search.json").read_bytes() == Path("runs/2/search.json").read_bytes()
    one, two = (json.loads(Path(f"runs/{i}/metrics.json").read_text()) for i in (1, 2))
    assert {k: (v["steps"], v["values"]) for k, v in one.items()} == {k: (v["steps"], v["values"]) for k, v in two.items()}
    with pytest.raises(RunError, match="run 2 is complete"):
        run_search({"resume": 2})


@pytest.mark.slow
def test_killed_command_resumes(small, tmp_path):
    run_search({**small, "seed": 1, "evaluations": 60}, ["bandit"])
    words = ["with", f"env_id={ENV_ID}", "bandit", "seed=1", "evaluations=60"]
    killed = start(" ".join(["python -m agents", *words, "env_kwargs.seconds=0.05"]), Path(__file__).parent)
    folder = tmp_path / "runs" / "2"
    error = stop_when(killed, (folder / "checkpoint.json").exists, signal.SIGINT)
    assert killed.returncode == 130, error
    assert "Resume with: python -m agents with resume=2" in error
    assert not (folder / "search.json").exists()
    with pytest.raises(RunError, match="started with seed=1 and cannot be resumed with seed=2"):
        run_search({"resume": 2, "seed": 2})
    run_search({"resume": 2})
    one, two = (json.loads((path / "search.json").read_text()) for path in (tmp_path / "runs" / "1", folder))
    assert one.pop("env_kwargs") == {"skip_num": 4}
    assert two.pop("env_kwargs") == {"skip_num": 4, "seconds": 0.05}
    assert one == two
