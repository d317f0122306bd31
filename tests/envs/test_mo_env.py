"""Environments with a vector for a reward, as MO-Gymnasium has them."""

from __future__ import annotations

import json
import pickle

import gymnasium
import numpy as np
import pytest

from das_gym.problem.front import dominated_volume

ID = "DAS-METER-VQA-Tabular-MO-v0"


@pytest.fixture
def env() -> gymnasium.Env:
    env = gymnasium.make(ID)
    env.reset(seed=0)
    return env


def run_episode(env: gymnasium.Env, mask: np.ndarray) -> tuple:
    env.reset()
    return env.step(mask.astype(np.int8))


def masks(number: int) -> np.ndarray:
    return np.random.default_rng(1).random((number, 12)) < 0.4


def test_reward_is_the_plain_reward_and_what_the_mask_saves(env):
    plain = gymnasium.make("DAS-METER-VQA-Tabular-v0", skip_num=None)
    for mask in masks(5):
        (_, vector, ended, _, info), (_, reward, _, _, told) = run_episode(env, mask), run_episode(plain, mask)
        assert ended
        assert vector.dtype == np.float32
        assert vector in env.unwrapped.reward_space
        np.testing.assert_allclose(vector, [reward, told["macs_saved"]], rtol=1e-6)
        assert {key: value for key, value in info.items() if key != "hypervolume"} == told


def test_hypervolume_covers_all_masks_since_the_last_seed(env):
    found = []
    for mask in masks(6):
        info = run_episode(env, mask)[4]
        found.append(run_episode(env, mask)[1].astype(float))
        grid = np.stack(np.meshgrid(*[np.linspace(0, 1, 1001)[1:]] * 2, indexing="ij"), axis=-1) - 0.0005
        covered = np.any([(grid <= point).all(axis=-1) for point in found], axis=0).mean()
        assert info["hypervolume"] == pytest.approx(covered, abs=3e-3)
    assert env.reset()[1]["hypervolume"] == info["hypervolume"]
    assert env.reset(seed=3)[1]["hypervolume"] == 0


def test_true_front_dominates_every_mask(env):
    front, points = env.get_wrapper_attr("true_front")()
    assert len(front) == len(points) > 10
    most = dominated_volume(points)
    for mask in front:
        info = run_episode(env, mask)[4]
    assert info["hypervolume"] == pytest.approx(most, rel=1e-5)
    for mask in masks(50):
        vector = run_episode(env, mask)[1]
        assert ((points >= vector - 1e-6).all(axis=1)).any()
        assert env.reset()[1]["hypervolume"] == pytest.approx(most, rel=1e-5)


def test_third_objective_is_a_given_cost():
    env = gymnasium.make(ID, objectives=("task", "macs_saved", "latency_saved"), costs=latencies())
    env.reset(seed=0)
    mask = np.zeros(12, np.int8)
    mask[[1, 8]] = 1
    _, vector, _, _, info = env.step(mask)
    assert vector[2] == pytest.approx(0.2)
    assert info["hypervolume"] == pytest.approx(float(np.prod(vector.astype(float))), rel=1e-5)


def latencies() -> dict:
    return {"latency_saved": {"full": 10.0, "unskipped": 10.0, "savings": [1.0] * 12}}


def test_pickle_continues(env):
    for mask in masks(3):
        run_episode(env, mask)
    again = pickle.loads(pickle.dumps(env))
    assert json.loads(json.dumps(again.get_state())) == json.loads(json.dumps(env.get_state()))
    assert again.unwrapped.reward_space == env.unwrapped.reward_space
    assert again.reset()[1] == env.reset()[1]


@pytest.mark.parametrize("autoreset_mode", ["SameStep", "NextStep"])
def test_vector_env_agrees_with_single_envs(autoreset_mode: str):
    several = gymnasium.make_vec(ID, num_envs=3, autoreset_mode=autoreset_mode)
    alone = [gymnasium.make(ID) for _ in range(3)]
    several.reset(seed=0)
    for env in alone:
        env.reset(seed=0)
    for actions in masks(12).reshape(4, 3, 12).astype(np.int8):
        _, rewards, ended, _, info = several.step(actions)
        told = [run_episode(env, action) for env, action in zip(alone, actions, strict=True)]
        assert ended.all()
        assert all(reward in several.reward_space for reward in rewards)  # one copy's, as MO-Gymnasium's wrappers read it
        np.testing.assert_array_equal(rewards, [each[1] for each in told])
        np.testing.assert_array_equal(info["hypervolume"], [each[4]["hypervolume"] for each in told])
        if autoreset_mode == "NextStep":
            _, rewards, *_, again = several.step(actions)  # starts again
            assert not rewards.any()
            np.testing.assert_array_equal(again["hypervolume"], info["hypervolume"])
        else:
            np.testing.assert_array_equal(info["final_info"]["hypervolume"], info["hypervolume"])
    state = json.loads(json.dumps(several.get_state()))
    _, rewards, *_, info = several.step(actions)
    other = gymnasium.make_vec(ID, num_envs=3, autoreset_mode=autoreset_mode)
    other.reset(seed=5)
    other.set_state(state)
    _, again, *_, told = other.step(actions)
    np.testing.assert_array_equal(again, rewards)
    np.testing.assert_array_equal(told["hypervolume"], info["hypervolume"])
    assert not several.reset(seed=1)[1]["hypervolume"].any()


@pytest.mark.parametrize("objectives", [("macs_saved",), ("task",), ("task", "macs_saved", "macs_saved"), ("task", "flops")])
def test_wrong_objectives_are_rejected(objectives):
    with pytest.raises(ValueError, match="objective"):
        gymnasium.make(ID, objectives=objectives)
