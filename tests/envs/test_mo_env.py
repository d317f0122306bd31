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


def anew(env: gymnasium.Env, mask: np.ndarray) -> tuple:
    env.reset()
    return env.step(mask.astype(np.int8))


def masks(number: int) -> np.ndarray:
    return np.random.default_rng(1).random((number, 12)) < 0.4


def test_a_reward_is_what_the_plain_environment_gives_and_what_the_mask_saves(env):
    plain = gymnasium.make("DAS-METER-VQA-Tabular-v0", skip_num=None)
    for mask in masks(5):
        (_, vector, ended, _, info), (_, reward, _, _, told) = anew(env, mask), anew(plain, mask)
        assert ended
        assert vector.dtype == np.float32
        assert vector in env.unwrapped.reward_space
        np.testing.assert_allclose(vector, [reward, told["macs_saved"]], rtol=1e-6)
        assert {key: value for key, value in info.items() if key != "hypervolume"} == told


def test_hypervolume_is_of_all_masks_since_the_last_seed(env):
    found = []
    for mask in masks(6):
        info = anew(env, mask)[4]
        found.append(anew(env, mask)[1].astype(float))
        grid = np.stack(np.meshgrid(*[np.linspace(0, 1, 1001)[1:]] * 2, indexing="ij"), axis=-1) - 0.0005
        covered = np.any([(grid <= point).all(axis=-1) for point in found], axis=0).mean()
        assert info["hypervolume"] == pytest.approx(covered, abs=3e-3)
    assert env.reset()[1]["hypervolume"] == info["hypervolume"]
    assert env.reset(seed=3)[1]["hypervolume"] == 0


def test_nothing_is_ahead_of_the_true_front(env):
    front, points = env.get_wrapper_attr("true_front")()
    assert len(front) == len(points) > 10
    most = dominated_volume(points)
    for mask in front:
        info = anew(env, mask)[4]
    assert info["hypervolume"] == pytest.approx(most, rel=1e-5)
    for mask in masks(50):
        vector = anew(env, mask)[1]
        assert ((points >= vector - 1e-6).all(axis=1)).any()
        assert env.reset()[1]["hypervolume"] == pytest.approx(most, rel=1e-5)


def test_amid_a_sequence_nothing_is_earned():
    env = gymnasium.make(ID, action="sequence", skip_num=2)
    env.reset(seed=0)
    assert env.step(3)[1].tolist() == [0, 0]
    assert (env.step(7)[1] > 0).all()


def test_a_mask_off_the_budget_saves_nothing():
    env = gymnasium.make(ID, skip_num=3)
    env.reset(seed=0)
    _, vector, _, _, info = env.step(np.ones(12, np.int8))
    assert vector[0] < 0
    assert vector[1] == info["hypervolume"] == 0


def test_three_objectives():
    env = gymnasium.make(ID, objectives=("task", "macs_saved", "latency_saved"), costs=latencies())
    env.reset(seed=0)
    mask = np.zeros(12, np.int8)
    mask[[1, 8]] = 1
    _, vector, _, _, info = env.step(mask)
    assert vector[2] == pytest.approx(0.2)
    assert info["hypervolume"] == pytest.approx(float(np.prod(vector.astype(float))), rel=1e-5)


def latencies() -> dict:
    return {"latency_saved": {"full": 10.0, "unskipped": 10.0, "savings": [1.0] * 12}}


def test_it_pickles_and_goes_on(env):
    for mask in masks(3):
        anew(env, mask)
    again = pickle.loads(pickle.dumps(env.unwrapped))
    assert json.loads(json.dumps(again.get_state())) == json.loads(json.dumps(env.unwrapped.get_state()))
    assert again.reset()[1] == env.reset()[1]


@pytest.mark.parametrize(
    ("objectives", "says"),
    [
        (("macs_saved",), "give 'task' first"),
        (("task",), "give 'task' first"),
        (("task", "macs_saved", "macs_saved"), "each once"),
        (("task", "flops"), "unknown objective 'flops'"),
    ],
)
def test_wrong_objectives_are_refused(objectives, says):
    with pytest.raises(ValueError, match=says):
        gymnasium.make(ID, objectives=objectives)


def test_with_a_model(small_kwargs: dict[str, str]):
    env = gymnasium.make("DAS-METER-VQA-MO-v0", objectives=("task", "parameters_saved"), reward_examples=4, **small_kwargs)
    env.reset(seed=0)
    assert env.unwrapped.reward_dim == 2
    vector = env.step(np.ones(6, np.int8))[1]
    assert 0 < vector[1] < 1
