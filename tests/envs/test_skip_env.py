import pickle
import warnings

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_checker import check_env as sb3_check_env

from das_gym.envs.scoring import INFO_KEYS

MASK = np.array([1, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1], dtype=np.int8)


def run_episode(env: gymnasium.Env, mask: np.ndarray) -> tuple:
    """Return the last step of an episode of one mask."""
    env.reset()
    return env.step(mask)


@pytest.fixture
def env(tiny_kwargs):
    env = gymnasium.make("DAS-METER-VQA-v0", reward_examples=20, **tiny_kwargs)
    env.reset(seed=0)
    return env


@pytest.mark.slow
@pytest.mark.parametrize("id", ["DAS-METER-VQA-v0", "DAS-ViLT-F30K-v0", "DAS-VLM-Answering-v0"])
def test_checkers_accept_every_bundled_environment(id):
    env = gymnasium.make(f"das_gym:{id}", reward_examples=4)
    observation, info = env.reset(seed=0)
    assert observation in env.observation_space
    assert info["n_skipped"] == 0
    _, reward, terminated, truncated, info = run_episode(env, MASK)
    assert isinstance(reward, float)
    assert (terminated, truncated) == (True, False)
    assert set(info) == set(INFO_KEYS)
    assert reward == pytest.approx(np.exp(-info["loss"]))
    assert 0 < info["macs_saved"] < 0.4
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(env)
        sb3_check_env(env)


@pytest.mark.parametrize(("statistics", "masks"), [(None, 0), ("leave_one_out", 13), (("leave_one_out", "taylor"), 13)])
def test_evaluations_count_the_observation(tiny_kwargs, statistics, masks):
    env = gymnasium.make("DAS-METER-VQA-v0", reward_examples=4, statistics=statistics, **tiny_kwargs)
    assert env.reset(seed=0)[1]["evaluations"] == masks
    assert env.step(MASK)[4]["evaluations"] == masks + 1
    assert env.reset(seed=0)[1]["evaluations"] == masks
    again = pickle.loads(pickle.dumps(env.unwrapped))
    assert run_episode(again, MASK)[4]["evaluations"] == masks + 1
    vector = gymnasium.make_vec("DAS-METER-VQA-v0", 2, reward_examples=4, statistics=statistics, **tiny_kwargs)
    assert vector.reset(seed=0)[1]["evaluations"].tolist() == [masks] * 2
    assert vector.step(np.stack([MASK] * 2))[4]["evaluations"].tolist() == [masks + 1, masks + 2]


@pytest.mark.parametrize(
    "action", [np.zeros(11), np.zeros((1, 12)), 3, np.full(12, 2), np.full(12, 0.5), np.full(12, np.nan)]
)
def test_wrong_actions_are_rejected(env, action):
    with pytest.raises(ValueError, match="`action`"):
        env.unwrapped.step(action)


@pytest.mark.parametrize(
    "setting",
    [
        *({"skip_num": value} for value in (-1, 13, 2.5, "4", True)),
        {"reward": "neg_los"},
        {"statistics": ["depht"]},
        {"statistics": []},
        {"reward_batches": "cycel"},
        {"reward_examples": 0},
    ],
)
def test_wrong_settings_are_rejected(tiny_kwargs, setting):
    (name,) = setting
    with pytest.raises(ValueError, match=name.removesuffix("s")):
        gymnasium.make("DAS-METER-VQA-v0", **{**tiny_kwargs, **setting})


@pytest.mark.parametrize("setting", ["checkpoint", "supernet", "data_root", "tokenizer"])
def test_missing_paths_are_named(tiny_kwargs, setting):
    with pytest.raises(FileNotFoundError, match=setting):
        gymnasium.make("DAS-METER-VQA-v0", **{**tiny_kwargs, setting: "/nonexistent"})


MASKS = np.array([[1, 1, 1, 1] + [0] * 8, [0] * 8 + [1] * 4, [1] * 12], dtype=np.int8)


@pytest.fixture
def vector(tiny_kwargs):
    env = gymnasium.make_vec("DAS-METER-VQA-v0", num_envs=3, reward_examples=10, **tiny_kwargs)
    env.reset(seed=0)
    return env


def test_step_is_one_engine_call(vector):
    evaluator = vector.unwrapped.template.scorer.problem.evaluator
    evaluator.forget()
    evaluator.reset_spent()
    vector.step(MASKS)
    assert evaluator.spent.masks == 2  # the third is off budget
    assert evaluator.spent.layer_runs < 2 * 8
