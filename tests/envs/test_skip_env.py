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


def run_episode(env: gymnasium.Env, mask: np.ndarray) -> tuple:
    """Return the last step of an episode of one mask."""
    env.reset()
    return env.step(mask)


@pytest.fixture
def env(tiny_kwargs: dict[str, str]):
    env = gymnasium.make("DAS-METER-VQA-v0", reward_examples=20, **tiny_kwargs)
    env.reset(seed=0)
    return env


@pytest.mark.slow
@pytest.mark.parametrize("id", IDS)
def test_checkers_accept_every_bundled_environment(id: str):
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


def test_info_holds_plain_numbers(env: gymnasium.Env):
    _, info = env.reset()
    for told in (info, run_episode(env, MASK)[4], run_episode(env, np.zeros(12, np.int8))[4]):
        assert list(told) == list(INFO_KEYS)
        assert {type(value) for value in told.values()} <= {int, float, bool}


def test_evaluations_count_scored_masks(env: gymnasium.Env):
    counts = [run_episode(env, mask)[4]["evaluations"] for mask in (MASK, np.zeros(12, np.int8), MASK)]
    assert counts == [14, 14, 15]  # leave_one_out took 13


@pytest.mark.parametrize(("statistics", "masks"), [(None, 13), ("depth", 0), (("leave_one_out", "next_interaction"), 25)])
def test_evaluations_count_the_observation(tiny_kwargs: dict[str, str], statistics, masks: int):
    env = gymnasium.make("DAS-METER-VQA-v0", reward_examples=4, statistics=statistics, **tiny_kwargs)
    assert env.reset(seed=0)[1]["evaluations"] == masks
    assert env.step(MASK)[4]["evaluations"] == masks + 1
    assert env.reset(seed=0)[1]["evaluations"] == masks
    again = pickle.loads(pickle.dumps(env.unwrapped))
    assert run_episode(again, MASK)[4]["evaluations"] == masks + 1
    vector = gymnasium.make_vec("DAS-METER-VQA-v0", 2, reward_examples=4, statistics=statistics, **tiny_kwargs)
    assert vector.reset(seed=0)[1]["evaluations"].tolist() == [masks] * 2
    assert vector.step(np.stack([MASK] * 2))[4]["evaluations"].tolist() == [masks + 1, masks + 2]


def test_masks_off_the_budget_earn_less(env: gymnasium.Env):
    rewards = []
    for skipped in (3, 2, 12):
        mask = np.arange(12) < skipped
        _, reward, terminated, _, info = run_episode(env, mask.astype(np.int8))
        assert info["feasible"] is False
        assert info["loss"] == np.inf
        assert terminated
        rewards.append(reward)
    assert rewards == pytest.approx([-1 / 12, -2 / 12, -8 / 12])
    assert run_episode(env, MASK)[1] >= 0


@pytest.mark.parametrize(
    "action", [np.zeros(11), np.zeros((1, 12)), 3, np.full(12, 2), np.full(12, 0.5), np.full(12, np.nan)]
)
def test_wrong_actions_are_rejected(env: gymnasium.Env, action):
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
def test_wrong_settings_are_rejected(tiny_kwargs: dict[str, str], setting: dict):
    (name,) = setting
    with pytest.raises(ValueError, match=name.removesuffix("s")):
        gymnasium.make("DAS-METER-VQA-v0", **{**tiny_kwargs, **setting})


@pytest.mark.parametrize("setting", ["checkpoint", "supernet", "data_root", "tokenizer"])
def test_missing_paths_are_named(tiny_kwargs: dict[str, str], setting: str):
    with pytest.raises(FileNotFoundError, match=setting):
        gymnasium.make("DAS-METER-VQA-v0", **{**tiny_kwargs, setting: "/nonexistent"})


def test_missing_supernet_names_the_command_to_train_it(mini_folder):
    with pytest.raises(ValueError, match=r"python -m adapt supernet with meter_vqa '?checkpoint="):
        gymnasium.make("DAS-METER-VQA-v0", checkpoint=str(mini_folder))


@pytest.mark.parametrize("reward", REWARDS)
def test_rewards_stay_within_bounds(tiny_kwargs: dict[str, str], reward: str):
    env = gymnasium.make("DAS-METER-VQA-v0", reward=reward, reward_examples=10, **tiny_kwargs)
    env.reset(seed=1)
    for _ in range(3):
        mask = np.isin(np.arange(12), env.np_random.choice(12, 4, replace=False)).astype(np.int8)
        assert REWARDS[reward].low <= run_episode(env, mask)[1] <= REWARDS[reward].high


@pytest.mark.parametrize("batches", ["fixed", "cycle", "resample"])
def test_same_seed_gives_the_same_rewards(tiny_kwargs: dict[str, str], batches: str):
    def rewards(seed: int) -> list[float]:
        env = gymnasium.make("DAS-METER-VQA-v0", reward_batches=batches, reward_examples=9, **tiny_kwargs)
        env.reset(seed=seed)
        return [run_episode(env, MASK)[1] for _ in range(4)]

    assert rewards(3) == rewards(3)
    assert len(set(rewards(3))) == (1 if batches == "fixed" else 4)
    assert (rewards(3) == rewards(4)) == (batches != "resample")


@pytest.mark.parametrize("batches", ["cycle", "resample"])
def test_set_state_continues(tiny_kwargs: dict[str, str], batches: str):
    env = gymnasium.make("DAS-METER-VQA-v0", reward_batches=batches, reward_examples=9, **tiny_kwargs)
    env.reset(seed=3)
    run_episode(env, MASK)
    state = json.loads(json.dumps(env.unwrapped.get_state()))
    rest = [run_episode(env, MASK)[1] for _ in range(3)]
    other = gymnasium.make("DAS-METER-VQA-v0", reward_batches=batches, reward_examples=9, **tiny_kwargs)
    other.reset(seed=99)
    other.unwrapped.set_state(state)
    assert [run_episode(other, MASK)[1] for _ in range(3)] == rest


def test_pickle_keeps_the_environment(env: gymnasium.Env):
    twin = pickle.loads(pickle.dumps(env))
    assert twin.spec == env.spec
    assert run_episode(twin, MASK)[1:] == run_episode(env, MASK)[1:]


def test_spec_makes_the_same_environment_again(env: gymnasium.Env):
    twin = gymnasium.make(gymnasium.envs.registration.EnvSpec.from_json(env.spec.to_json()))
    twin.reset(seed=0)
    assert run_episode(twin, MASK)[1] == run_episode(env, MASK)[1]


def test_copies_are_independent(tiny_kwargs: dict[str, str]):
    def make() -> gymnasium.Env:
        env = gymnasium.make("DAS-METER-VQA-v0", reward_batches="cycle", reward_examples=9, **tiny_kwargs)
        env.reset(seed=0)
        return env

    alone, one, two = make(), make(), make()
    expected = [run_episode(alone, MASK)[1] for _ in range(3)]
    both = [(run_episode(one, MASK)[1], run_episode(two, MASK)[1]) for _ in range(3)]
    assert both == [(reward, reward) for reward in expected]


def test_observation_has_names_and_bounds(env: gymnasium.Env):
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


def test_statistics_choose_the_observation(tiny_kwargs: dict[str, str]):
    env = gymnasium.make("DAS-METER-VQA-v0", statistics=["depth"], **tiny_kwargs)
    assert env.get_wrapper_attr("feature_names")[1] == "text.1/depth"
    np.testing.assert_allclose(env.reset()[0], np.tile(np.arange(6) / 5, 2), rtol=1e-6)
    one = gymnasium.make("DAS-METER-VQA-v0", statistics="depth", **tiny_kwargs)
    np.testing.assert_array_equal(one.reset()[0], env.reset()[0])


def test_render_shows_the_last_mask(tiny_kwargs: dict[str, str]):
    env = gymnasium.make("DAS-METER-VQA-v0", render_mode="ansi", reward_examples=8, **tiny_kwargs)
    env.reset(seed=0)
    run_episode(env, MASK)
    *stages, words = env.render().splitlines()
    assert len(stages) == 6
    assert stages[1].startswith("stage 1: keep text.1 (")
    assert ", SKIP image.1 (" in stages[1]
    assert words.startswith("skipped text.0, text.3, image.1, image.5: reward")


@pytest.mark.slow
def test_all_masks_are_feasible_without_a_budget(tiny_kwargs: dict[str, str]):
    env = gymnasium.make("DAS-METER-VQA-v0", skip_num=None, reward_examples=8, **tiny_kwargs)
    env.reset(seed=0)
    assert all(run_episode(env, (np.arange(12) < n).astype(np.int8))[4]["feasible"] for n in (0, 5, 12))
