import copy
import json
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from das_gym.agents import SearchConfig, search
from das_gym.agents.sb3.algorithms import ALGORITHMS, SB3_DEFAULTS
from das_gym.agents.sb3.train import MODEL_FILE, Recorder, play_episode, train_sb3
from das_gym.agents.searching.record import CHECKPOINT, SearchResult
from gymnasium.wrappers.vector import TransformReward
from landscapes import rewards, write_table
from sb3_contrib import MaskablePPO
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from stable_baselines3 import PPO
from synthetic import StopError, check_replays, stop_after

ID = "DAS-METER-VQA-Tabular-v0"


@pytest.fixture(scope="module")
def env_kwargs(tmp_path_factory) -> dict:
    """A table of 12 layers, made up."""
    return {"table": str(write_table(tmp_path_factory.mktemp("table") / "table.npz", 12))}


def train(algorithm, env_kwargs: dict, folder: Path | None = None, on_turn=None, **settings):
    settings = {"env_id": ID, "env_kwargs": env_kwargs, "evaluations": 22, "masks_per_turn": 4, **settings}
    return train_sb3(SearchConfig(agent=algorithm, **settings), folder, on_turn)


@pytest.mark.parametrize("name", ALGORITHMS)
@pytest.mark.parametrize("budget", [{"skip_num": 3}, {"macs_saved": 0.12}])
def test_algorithm_scores_masks_within_the_budget(env_kwargs, name, budget):
    before = copy.deepcopy(ALGORITHMS[name])
    trained = train(name, env_kwargs, **budget)
    result = trained.result
    masks = np.array([mask for turn in result.history for mask in turn.masks], dtype=bool)
    earned = np.array([reward for turn in result.history for reward in turn.rewards])
    assert (trained.action, trained.starved) == (ALGORITHMS[name].actions[0], False)
    assert len(masks) == result.masks_asked == 22
    np.testing.assert_allclose(earned, rewards(masks), rtol=1e-5)
    if "skip_num" in budget:
        assert (masks.sum(axis=1) == 3).all()
    else:
        assert all(saved >= 0.12 for turn in result.history for saved in turn.macs_saved)
    assert result.reward == pytest.approx(max(earned.max(), trained.policy["reward"]))
    check_replays(result)
    assert ALGORITHMS[name] == before


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ppo", "a2c", "trpo"])
def test_algorithm_defaults_find_one_of_the_two_best_masks(name):
    config = SearchConfig(ID, agent=name, skip_num=4, **SB3_DEFAULTS)
    table = gymnasium.make(ID).unwrapped.table
    second = np.sort(np.exp(-table.values("loss")[table.masks.sum(axis=1) == 4]))[-2]
    assert train_sb3(config).policy["reward"] >= second - 1e-6


def test_saved_agent_answers_alike(env_kwargs, tmp_path):
    trained = train("maskable_ppo", env_kwargs, tmp_path)
    env = gymnasium.make_vec(ID, action=trained.action, **env_kwargs)
    mask = play_episode(MaskablePPO.load(tmp_path / MODEL_FILE), env.unwrapped, seed=0)
    assert mask.astype(int).tolist() == trained.policy["mask"]
    assert mask.sum() == 4
    assert SearchResult.load(tmp_path) == trained.result
    assert list((tmp_path / "tensorboard").glob("events*"))


@pytest.mark.parametrize("name", ["ppo", "sac", "ars"])
def test_resumed_training_equals_an_uninterrupted_one(env_kwargs, tmp_path, name):
    with pytest.raises(StopError):
        train(name, env_kwargs, tmp_path, save_every=1, on_turn=stop_after(3))
    assert len(json.loads((tmp_path / CHECKPOINT).read_text())["turns"]) == 3
    resumed = train(name, env_kwargs, tmp_path, save_every=1)
    assert resumed.result == train(name, env_kwargs).result
    assert resumed.result.history != train(name, env_kwargs, seed=5).result.history


class Patient(PPO):
    """A custom algorithm that passes its settings on."""

    def __init__(self, *args, patience: int = 1, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.patience = patience


def test_train_with_your_own_class(env_kwargs):
    name = f"{__name__}:Patient"
    trained = train(name, env_kwargs, agent_kwargs={"patience": 2, "n_epochs": 1})
    assert isinstance(trained.model, Patient)
    assert (trained.model.patience, trained.model.n_epochs, trained.model.n_steps) == (2, 1, 8)
    assert trained.result.agent.endswith("test_train:Patient")
    with pytest.raises(ValueError, match=r"unknown setting of .*Patient, 'patienc'; did you mean 'patience'"):
        train(name, env_kwargs, agent_kwargs={"patienc": 2})


@pytest.mark.slow
def test_train_with_an_unlisted_class(env_kwargs):
    trained = train("sb3_contrib:RecurrentPPO", env_kwargs, action="sequence", agent_kwargs={"n_steps": 8})
    assert isinstance(trained.model.policy, RecurrentActorCriticPolicy)
    assert trained.result.n_skipped == 4


@pytest.mark.parametrize(
    ("algorithm", "settings", "text"),
    [
        ("stable_baselines3:PPOO", {}, "cannot be imported"),
        ("ppo", {"agent_kwargs": {"seed": 1}}, "'seed'"),
        ("ppo", {"agent_kwargs": {"clip_range": "wide"}}, "PPO cannot be made with"),
        ("ppo", {"agent_kwargs": {"device": "gpu"}}, "setting of ppo: `device` is unknown: got gpu.* Did you mean cuda"),
        ("ppo", {"agent_kwargs": {"device": "mtia"}}, "setting of ppo: `device` cannot be used here"),
        ("ppo", {"agent_kwargs": {"n_steps": "many"}}, "`n_steps` of ppo is not allowed: got 'many'"),
        ("stable_baselines3:DQN", {"action": "mask"}, "action"),
        ("ppo", {"env_kwargs": {"action": 1}}, "`action`"),
    ],
)
def test_train_rejects_settings(env_kwargs, algorithm, settings, text):
    with pytest.raises(ValueError, match=text):
        train(algorithm, settings.pop("env_kwargs", env_kwargs), **settings)


def test_train_ends_when_no_mask_is_within_the_budget(env_kwargs):
    trained = train("ppo", env_kwargs, action="mask", skip_num=12, evaluations=1)
    assert trained.starved
    assert trained.result.masks_asked == 0
    assert trained.result.mask.tolist() == trained.policy["mask"]


def test_recorder_names_a_nan_reward(env_kwargs):
    env = gymnasium.make_vec(ID, num_envs=2, skip_num=2, **env_kwargs)
    recorder = Recorder(TransformReward(env, lambda rewards: rewards * np.nan), SearchConfig(ID))
    recorder.reset(seed=0)
    with pytest.raises(ValueError, match=r"skips layers \[0, 5\] is not finite"):
        recorder.step(np.isin(np.arange(12), (0, 5))[None].repeat(2, axis=0).astype(np.int8))


@pytest.mark.slow
@pytest.mark.parametrize(("action", "batches"), [("scores", "fixed"), ("scores", "cycle"), ("sequence", "resample")])
def test_resumed_search_on_a_model_equals_an_uninterrupted_one(small_kwargs, tmp_path, batches, action):
    env_kwargs = {**small_kwargs, "reward_batches": batches, "reward_examples": 4}
    settings = {"env_id": "DAS-METER-VQA-v0", "agent": "ppo", "action": action, "skip_num": 3, "evaluations": 12}
    settings |= {"save_every": 1, "masks_per_turn": 2, "agent_kwargs": {"n_steps": 2, "n_epochs": 1}}
    config = SearchConfig(env_kwargs=env_kwargs, **settings)
    with pytest.raises(StopError):
        search(config, folder=tmp_path, callback=stop_after(3))
    result = search(config, folder=tmp_path)
    assert result == search(config)
    assert (result.masks_asked, result.statistic_masks) == (12, 0)
