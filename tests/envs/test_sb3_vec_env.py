import gymnasium
import numpy as np
import pytest
from gymnasium.wrappers.vector import RecordEpisodeStatistics
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.monitor import Monitor

from das_gym.envs.sb3_vec_env import SB3VecEnv, make_sb3_vec_env

TABULAR = "DAS-METER-VQA-Tabular-v0"


@pytest.fixture
def tabular_kwargs(small_table_file) -> dict:
    return {"table": small_table_file, "skip_num": 2}


def make(n_envs: int = 4, **kwargs) -> SB3VecEnv:
    return SB3VecEnv(gymnasium.make_vec(TABULAR, num_envs=n_envs, **kwargs))


@pytest.mark.parametrize("action", ["mask", "sequence", "scores"])
def test_vec_env_agrees_with_dummy_vec_env(tabular_kwargs, action):
    ours = make(3, action=action, **tabular_kwargs)
    theirs = make_vec_env(lambda: gymnasium.make(TABULAR, action=action, **tabular_kwargs), n_envs=3)
    assert ours.observation_space == theirs.observation_space
    assert ours.action_space == theirs.action_space
    np.testing.assert_array_equal(ours.reset(), theirs.reset())
    ours.action_space.seed(1)
    lengths = set()
    for _ in range(8):
        actions = np.stack([ours.action_space.sample() for _ in range(3)])
        one, two = ours.step(actions), theirs.step(actions)
        for got, expected in zip(one[:3], two[:3], strict=True):
            np.testing.assert_array_equal(got, expected)
            assert got.dtype == expected.dtype
        for done, got, expected in zip(one[2], one[3], two[3], strict=True):
            assert set(got) == set(expected) - {"episode"}
            assert got["TimeLimit.truncated"] is expected["TimeLimit.truncated"] is False
            for key in ("loss", "n_skipped", "feasible"):
                assert got[key] == expected[key]
                assert type(got[key]) is type(expected[key])
            if done:
                np.testing.assert_array_equal(got["terminal_observation"], expected["terminal_observation"])
                lengths.add(got["n_skipped"])
    assert lengths == {2} if action != "mask" else lengths


def test_attributes_and_methods_reach_the_environment(tabular_kwargs):
    env = make(3, action="sequence", render_mode="ansi", **tabular_kwargs)
    env.reset()
    env.step(np.array([0, 1, 5]))
    masks = env.env_method("action_masks")
    assert [mask.tolist().index(False) for mask in masks] == [0, 1, 5]
    np.testing.assert_array_equal(env.env_method("action_masks", indices=[2])[0], masks[2])
    assert env.get_attr("skip_num") == [2, 2, 2]
    assert env.get_attr("layer_names", indices=1)[0][5] == "image.2"
    assert env.has_attr("action_masks")
    assert not env.has_attr("no_such_thing")
    assert [text.splitlines()[-1].split(":")[0] for text in env.env_method("render")] == [
        "skipped text.0",
        "skipped text.1",
        "skipped image.2",
    ]
    assert len(env.env_method("get_state", indices=[0, 1])) == 2
    env.set_attr("note", "mine")
    assert env.get_attr("note") == ["mine"] * 3
    with pytest.raises(ValueError, match="indices"):
        env.set_attr("note", "yours", indices=[0])


def test_env_is_wrapped_finds_wrappers(tabular_kwargs):
    wrapped = SB3VecEnv(RecordEpisodeStatistics(gymnasium.make_vec(TABULAR, num_envs=2, **tabular_kwargs)))
    assert wrapped.env_is_wrapped(RecordEpisodeStatistics) == [True, True]
    assert wrapped.env_is_wrapped(Monitor, indices=0) == [False]
    wrapped.reset()
    _, rewards, _, infos = wrapped.step(np.eye(6)[:2])
    assert [info["episode"]["r"] for info in infos] == pytest.approx(rewards.tolist())


def test_other_vector_envs_are_rejected(tabular_kwargs):
    with pytest.raises(ValueError, match="`env`"):
        SB3VecEnv(gymnasium.make_vec(TABULAR, num_envs=2, vectorization_mode="sync", **tabular_kwargs))


@pytest.mark.parametrize(
    ("library", "algorithm", "action"),
    [
        ("stable_baselines3", "PPO", "mask"),
        ("sb3_contrib", "MaskablePPO", "sequence"),
        ("stable_baselines3", "SAC", "scores"),
    ],
)
def test_algorithms_train(tabular_kwargs, library, algorithm, action):
    make_model = getattr(pytest.importorskip(library), algorithm)
    env = make_sb3_vec_env(TABULAR, n_envs=8, seed=0, action=action, **tabular_kwargs)
    settings = {"learning_starts": 16} if algorithm == "SAC" else {"n_steps": 8, "batch_size": 32, "n_epochs": 1}
    model = make_model("MlpPolicy", env, seed=0, **settings)
    model.learn(128)
    assert model.num_timesteps == 128
    assert len(model.ep_info_buffer) > 0
    if action != "mask":
        assert all(episode["r"] > 0 for episode in model.ep_info_buffer)
