from __future__ import annotations

import json
import pickle
import warnings

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_checker import check_env as sb3_check_env

from das_gym import ENVIRONMENTS
from das_gym.envs.scoring import INFO_KEYS
from das_gym.problem.rewards import REWARDS
from das_gym.problem.statistics import DEFAULT_STATISTICS

IDS = [entry.id for entry in ENVIRONMENTS.values() if entry.bundled]
MASK = np.array([1, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1], dtype=np.int8)


def anew(env: gymnasium.Env, mask: np.ndarray) -> tuple:
    """What a mask gets in an episode of its own."""
    env.reset()
    return env.step(mask)


@pytest.fixture
def env(tiny_kwargs: dict[str, str]):
    env = gymnasium.make("DAS-METER-VQA-v0", reward_examples=20, **tiny_kwargs)
    env.reset(seed=0)
    return env


@pytest.mark.slow
@pytest.mark.parametrize("id", IDS)
def test_a_bundled_environment_is_as_the_checkers_of_gymnasium_and_sb3_want_it(id: str):
    env = gymnasium.make(f"das_gym:{id}", reward_examples=4)
    observation, info = env.reset(seed=0)
    assert observation in env.observation_space
    assert info["n_skipped"] == 0
    _, reward, terminated, truncated, info = anew(env, MASK)
    assert isinstance(reward, float)
    assert (terminated, truncated) == (True, False)
    assert set(info) == set(INFO_KEYS)
    assert reward == pytest.approx(np.exp(-info["loss"]))
    assert 0 < info["macs_saved"] < 0.4
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(env)
        sb3_check_env(env)


def test_info_is_plain_and_complete(env: gymnasium.Env):
    _, info = env.reset()
    for told in (info, anew(env, MASK)[4], anew(env, np.zeros(12, np.int8))[4]):
        assert list(told) == list(INFO_KEYS)
        assert {type(value) for value in told.values()} <= {int, float, bool}


def test_evaluations_count_what_was_scored(env: gymnasium.Env):
    counts = [anew(env, mask)[4]["evaluations"] for mask in (MASK, np.zeros(12, np.int8), MASK)]
    assert counts == [14, 14, 15]  # leave_one_out took 13


@pytest.mark.parametrize(("statistics", "masks"), [(None, 13), ("depth", 0), (("leave_one_out", "next_interaction"), 25)])
def test_evaluations_count_what_the_observation_takes(tiny_kwargs: dict[str, str], statistics, masks: int):
    env = gymnasium.make("DAS-METER-VQA-v0", reward_examples=4, statistics=statistics, **tiny_kwargs)
    assert env.reset(seed=0)[1]["evaluations"] == masks
    assert env.step(MASK)[4]["evaluations"] == masks + 1
    assert env.reset(seed=0)[1]["evaluations"] == masks
    again = pickle.loads(pickle.dumps(env.unwrapped))
    assert anew(again, MASK)[4]["evaluations"] == masks + 1
    vector = gymnasium.make_vec("DAS-METER-VQA-v0", 2, reward_examples=4, statistics=statistics, **tiny_kwargs)
    assert vector.reset(seed=0)[1]["evaluations"].tolist() == [masks] * 2
    assert vector.step(np.stack([MASK] * 2))[4]["evaluations"].tolist() == [masks + 1, masks + 2]


def test_a_mask_off_budget_earns_less_than_any_other(env: gymnasium.Env):
    rewards = []
    for skipped in (3, 2, 12):
        mask = np.arange(12) < skipped
        _, reward, terminated, _, info = anew(env, mask.astype(np.int8))
        assert info["feasible"] is False
        assert info["loss"] == np.inf
        assert terminated
        rewards.append(reward)
    assert rewards == pytest.approx([-1 / 12, -2 / 12, -8 / 12])
    assert anew(env, MASK)[1] >= 0


@pytest.mark.parametrize("action", [np.zeros(11), np.zeros((1, 12)), 3, np.zeros((12, 1), np.int8)])
def test_another_shape_is_refused(env: gymnasium.Env, action):
    with pytest.raises(ValueError, match=r"give a skip mask of shape \(12,\)"):
        env.unwrapped.step(action)


@pytest.mark.parametrize("value", [2, -1, 0.5, np.nan])
def test_another_value_is_refused(env: gymnasium.Env, value: float):
    action = np.where(np.arange(12) == 3, value, 0.0)
    with pytest.raises(ValueError, match=r"other values than 0 \(keep\) and 1 \(skip\)"):
        env.unwrapped.step(action)


@pytest.mark.parametrize("skip_num", [-1, 13, 2.5, "4", True])
def test_an_impossible_budget_is_refused(tiny_kwargs: dict[str, str], skip_num):
    with pytest.raises(ValueError, match=r"skip_num=.*use 0\.\.12"):
        gymnasium.make("DAS-METER-VQA-v0", skip_num=skip_num, **tiny_kwargs)


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ({"reward": "neg_los"}, "unknown reward 'neg_los'; did you mean 'neg_loss'.*known: exp_neg_loss"),
        ({"statistics": ["depht"]}, "unknown statistic 'depht'; did you mean 'depth'.*agents list` lists all"),
        ({"statistics": "depht"}, "unknown statistic 'depht'; did you mean 'depth'"),
        ({"statistics": []}, r"statistics=\(\): give one or more of stream, .*, or None for all"),
        ({"reward_batches": "cycel"}, "unknown reward_batches 'cycel'; did you mean 'cycle'.*known: fixed, cycle, resample"),
        ({"reward_examples": 0}, "at least one"),
        ({"size": "huge"}, "choose one of mini, base"),
        ({"size": "base"}, "pass checkpoint="),
    ],
)
def test_a_wrong_setting_says_what_is_allowed(tiny_kwargs: dict[str, str], setting: dict, says: str):
    with pytest.raises(ValueError, match=says):
        gymnasium.make("DAS-METER-VQA-v0", **{**tiny_kwargs, **setting})


@pytest.mark.parametrize("setting", ["checkpoint", "supernet", "data_root", "tokenizer"])
def test_a_path_that_is_not_there_is_named(tiny_kwargs: dict[str, str], setting: str):
    with pytest.raises(FileNotFoundError, match=f"{setting}=/nonexistent: no such file or folder"):
        gymnasium.make("DAS-METER-VQA-v0", **{**tiny_kwargs, setting: "/nonexistent"})


def test_a_checkpoint_without_a_supernet_says_how_to_train_one(mini_folder):
    with pytest.raises(ValueError, match=r"python -m adapt supernet with meter_vqa '?checkpoint="):
        gymnasium.make("DAS-METER-VQA-v0", checkpoint=str(mini_folder))


@pytest.mark.parametrize("reward", REWARDS)
def test_every_reward_stays_within_its_bounds(tiny_kwargs: dict[str, str], reward: str):
    env = gymnasium.make("DAS-METER-VQA-v0", reward=reward, reward_examples=10, **tiny_kwargs)
    env.reset(seed=1)
    for _ in range(3):
        mask = np.isin(np.arange(12), env.np_random.choice(12, 4, replace=False)).astype(np.int8)
        assert REWARDS[reward].low <= anew(env, mask)[1] <= REWARDS[reward].high


@pytest.mark.parametrize("batches", ["fixed", "cycle", "resample"])
def test_same_seed_same_rewards_bit_for_bit(tiny_kwargs: dict[str, str], batches: str):
    def rewards(seed: int) -> list[float]:
        env = gymnasium.make("DAS-METER-VQA-v0", reward_batches=batches, reward_examples=9, **tiny_kwargs)
        env.reset(seed=seed)
        return [anew(env, MASK)[1] for _ in range(4)]

    assert rewards(3) == rewards(3)
    assert len(set(rewards(3))) == (1 if batches == "fixed" else 4)
    assert (rewards(3) == rewards(4)) == (batches != "resample")


@pytest.mark.parametrize("batches", ["cycle", "resample"])
def test_a_state_goes_on_where_it_was_taken(tiny_kwargs: dict[str, str], batches: str):
    env = gymnasium.make("DAS-METER-VQA-v0", reward_batches=batches, reward_examples=9, **tiny_kwargs)
    env.reset(seed=3)
    anew(env, MASK)
    state = json.loads(json.dumps(env.unwrapped.get_state()))
    rest = [anew(env, MASK)[1] for _ in range(3)]
    other = gymnasium.make("DAS-METER-VQA-v0", reward_batches=batches, reward_examples=9, **tiny_kwargs)
    other.reset(seed=99)
    other.unwrapped.set_state(state)
    assert [anew(other, MASK)[1] for _ in range(3)] == rest


def test_survives_pickling(env: gymnasium.Env):
    twin = pickle.loads(pickle.dumps(env))
    assert twin.spec == env.spec
    assert anew(twin, MASK)[1:] == anew(env, MASK)[1:]


def test_spec_makes_the_same_environment(env: gymnasium.Env):
    twin = gymnasium.make(gymnasium.envs.registration.EnvSpec.from_json(env.spec.to_json()))
    twin.reset(seed=0)
    assert anew(twin, MASK)[1] == anew(env, MASK)[1]


def test_two_copies_do_not_disturb_each_other(tiny_kwargs: dict[str, str]):
    def make() -> gymnasium.Env:
        env = gymnasium.make("DAS-METER-VQA-v0", reward_batches="cycle", reward_examples=9, **tiny_kwargs)
        env.reset(seed=0)
        return env

    alone, one, two = make(), make(), make()
    expected = [anew(alone, MASK)[1] for _ in range(3)]
    both = [(anew(one, MASK)[1], anew(two, MASK)[1]) for _ in range(3)]
    assert both == [(reward, reward) for reward in expected]


def test_observation_is_named_and_within_bounds(env: gymnasium.Env):
    observation, _ = env.reset(seed=5)
    names = env.get_wrapper_attr("feature_names")
    assert len(names) == len(observation) == 12 * len(DEFAULT_STATISTICS)
    told = dict(zip(names, observation.tolist(), strict=True))
    assert told["text.0/stream"] == 0
    assert told["image.5/stream"] == 1
    assert told["text.0/depth"] == 0
    assert told["image.5/depth"] == 1
    assert told["image.2/macs_share"] > told["text.2/macs_share"]
    assert np.isfinite(env.observation_space.low).all()
    assert np.isfinite(env.observation_space.high).all()


def test_observation_holds_what_is_asked_for(tiny_kwargs: dict[str, str]):
    env = gymnasium.make("DAS-METER-VQA-v0", statistics=["depth"], **tiny_kwargs)
    assert env.get_wrapper_attr("feature_names")[1] == "text.1/depth"
    np.testing.assert_allclose(env.reset()[0], np.tile(np.arange(6) / 5, 2), rtol=1e-6)
    one = gymnasium.make("DAS-METER-VQA-v0", statistics="depth", **tiny_kwargs)
    np.testing.assert_array_equal(one.reset()[0], env.reset()[0])


def test_renders_the_last_mask(tiny_kwargs: dict[str, str]):
    env = gymnasium.make("DAS-METER-VQA-v0", render_mode="ansi", reward_examples=8, **tiny_kwargs)
    env.reset(seed=0)
    anew(env, MASK)
    *stages, words = env.render().splitlines()
    assert len(stages) == 6
    assert stages[1].startswith("stage 1: keep text.1 (")
    assert ", SKIP image.1 (" in stages[1]
    assert words.startswith("skipped text.0, text.3, image.1, image.5: reward")


@pytest.mark.slow
def test_any_number_of_layers_without_a_budget(tiny_kwargs: dict[str, str]):
    env = gymnasium.make("DAS-METER-VQA-v0", skip_num=None, reward_examples=8, **tiny_kwargs)
    env.reset(seed=0)
    assert all(anew(env, (np.arange(12) < n).astype(np.int8))[4]["feasible"] for n in (0, 5, 12))
