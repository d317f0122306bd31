"""Environments with a vector for a reward, as MO-Gymnasium has them."""

import json
import pickle

import gymnasium
import numpy as np
import pytest

from das_gym.envs.mo_env import MultiObjectiveReward
from das_gym.problem.mask_space import dominated_volume
from das_gym.registration import ASSETS

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


@pytest.mark.parametrize("reward", ["neg_loss", "neg_kl"])
def test_hypervolume_of_negative_rewards_is_measured_from_the_mask_that_skips_everything(reward):
    env = gymnasium.make(ID, reward=reward)
    env.reset(seed=0)
    worst = run_episode(env, np.ones(12, bool))[1][0]
    np.testing.assert_allclose(env.get_wrapper_attr("reference"), [worst, 0.0], rtol=1e-6)
    env.reset(seed=0)
    _, (task, saved), _, _, info = run_episode(env, np.arange(12) % 3 == 0)
    assert info["hypervolume"] == pytest.approx((task - worst) * saved, rel=1e-5)
    _, points = env.get_wrapper_attr("true_front")()
    assert dominated_volume(points, env.get_wrapper_attr("reference")) > info["hypervolume"]


def test_reference_is_settable():
    env = gymnasium.make(ID, reward="neg_loss", reference=(-2.0, 0.01))
    env.reset(seed=0)
    _, (task, saved), _, _, info = run_episode(env, np.arange(12) % 3 == 0)
    assert info["hypervolume"] == pytest.approx((task + 2.0) * (saved - 0.01), rel=1e-4)
    for wrong in (3.0, (0.0,), (0.0, np.nan), (0.0, 0.0, 0.0)):
        with pytest.raises(ValueError, match="`reference`"):
            gymnasium.make(ID, reference=wrong)


def test_reference_of_a_table_without_that_mask_is_the_worst_reward():
    table = str(ASSETS / "llava_mini" / "answering_table.npz")
    env = gymnasium.make("DAS-VLM-Answering-Tabular-MO-v0", table=table, skip_num=2, reward="neg_loss")
    scores = env.get_wrapper_attr("table")
    losses = scores.values("loss")[scores.masks.sum(axis=1) == 2]
    assert env.get_wrapper_attr("reference")[0] == pytest.approx(-losses.max())


def test_third_objective_is_a_given_cost():
    plain = gymnasium.make("DAS-METER-VQA-Tabular-v0", skip_num=None, costs=latencies())
    plain.reset(seed=0)
    plain.step(np.zeros(12, np.int8))
    env = MultiObjectiveReward(plain, ("task", "macs_saved", "latency_saved"))  # as `make` does, after it was used
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
    assert again.unwrapped.reward_space == env.unwrapped.reward_space
    assert again.reset()[1] == env.reset()[1]


def test_vector_env_agrees_with_single_envs():
    several = gymnasium.make_vec(ID, num_envs=3)
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
        np.testing.assert_array_equal(info["final_info"]["hypervolume"], info["hypervolume"])
    state = json.loads(json.dumps(several.get_state()))
    _, rewards, *_, info = several.step(actions)
    other = gymnasium.make_vec(ID, num_envs=3)
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


@pytest.mark.parametrize("make", [gymnasium.make, gymnasium.make_vec])
def test_class_of_the_environment_cannot_be_replaced(make):
    with pytest.raises(ValueError, match="`env` is set by the environment's id"):
        make(ID, env="gymnasium.vector:Async")
