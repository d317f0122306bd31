"""Every id in every form, as the checkers of Gymnasium and Stable-Baselines3 want it.

Environments with a model are checked in their default form by `test_skip_env`, each with its bundled model; here, where a
form is the same code for all of them, a small model stands for all.
"""

import warnings
from collections.abc import Iterator
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.envs.registration import registry
from gymnasium.utils.env_checker import check_env, data_equivalence
from gymnasium.vector.utils import batch_space
from stable_baselines3.common.env_checker import check_env as sb3_check_env

from das_gym.registration import CHECKPOINT_TABLES, ENVIRONMENTS, LIVE_ENV

ACTIONS = ("mask", "sequence", "scores")
TABULAR = [entry.tabular_id for entry in ENVIRONMENTS.values() if entry.table is not None]
UNMADE = [entry.tabular_id for entry in ENVIRONMENTS.values() if entry.table is None]
"""Environments without a table."""

LIVE, LIVE_OF_ALL = list(ENVIRONMENTS), "DAS-METER-VQA-v0"
FORMS = [(id, action) for id in (LIVE_OF_ALL, *TABULAR, *CHECKPOINT_TABLES) for action in ACTIONS]


@pytest.fixture(autouse=True)
def no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.fixture
def kwargs(small_kwargs) -> dict[str, Any]:
    """What makes the environment with a model small."""
    return {**small_kwargs, "reward_examples": 4, "skip_num": 2}


def test_all_ids_are_listed():
    per_input = {entry.per_input_id for entry in ENVIRONMENTS.values()}
    ids = {*LIVE, *TABULAR, *UNMADE, *CHECKPOINT_TABLES, *per_input, LIVE_ENV}
    assert {id for id in registry if id.startswith("DAS-")} == ids


@pytest.mark.parametrize("id", [LIVE_OF_ALL, TABULAR[0]])
def test_classes_name_gymnasium_as_skrl_expects(id, kwargs):
    """`wrap_env` of skrl reads the direct bases of a class."""
    given = kwargs if id == LIVE_OF_ALL else {}
    for env in (gymnasium.make(id, **given).unwrapped, gymnasium.make_vec(id, num_envs=2, **given)):
        assert any(base.__module__.startswith("gymnasium") for base in type(env).__bases__)


@pytest.mark.parametrize(("id", "action"), FORMS)
def test_checkers_accept_every_form(id, action, kwargs):
    env = gymnasium.make(id, action=action, **(kwargs if id == LIVE_OF_ALL else {})).unwrapped
    check_env(env, skip_render_check=True)
    sb3_check_env(env)


@pytest.mark.parametrize("id", [LIVE_OF_ALL, TABULAR[0]])
def test_unknown_arguments_raise_the_type_error_of_python(id):
    with pytest.raises(TypeError, match="unexpected keyword argument 'frameskip'"):  # TorchRL gives it, and looks for this
        gymnasium.make(id, frameskip=1)


@pytest.mark.parametrize(("id", "action"), FORMS)
@pytest.mark.parametrize("mode", ["own", "sync"])
def test_vector_env_follows_the_api(id, action, mode, kwargs):
    """Check the rules of Gymnasium's documentation for vector environments; it has no checker for them."""
    made: dict[str, Any] = {} if mode == "own" else {"vectorization_mode": mode}
    env = gymnasium.make_vec(id, num_envs=3, action=action, **made, **(kwargs if id == LIVE_OF_ALL else {}))
    assert env.observation_space == batch_space(env.single_observation_space, 3)
    assert env.action_space == batch_space(env.single_action_space, 3)
    assert env.autoreset_mode is env.metadata["autoreset_mode"]  # TorchRL reads the one, Gymnasium's wrappers the other
    if mode == "own":
        with pytest.raises(ValueError, match="`seed`"):
            env.reset(seed=[1, 2])
    env.action_space.seed(0)
    actions = [env.action_space.sample() for _ in range(6)]
    runs = []
    for _ in range(2):
        observations, _ = env.reset(seed=5)
        assert observations in env.observation_space
        runs.append([observations])
        for action_ in actions:
            observations, rewards, terminated, truncated, info = env.step(action_)
            assert observations in env.observation_space
            assert rewards.shape == terminated.shape == truncated.shape == (3,)
            assert (rewards.dtype, terminated.dtype, truncated.dtype) == (np.float64, np.bool_, np.bool_)
            assert not {key for key in info if not key.startswith("_")} - {key[1:] for key in info if key.startswith("_")}
            runs[-1] += [observations, rewards, terminated]
    for one, other in zip(*runs, strict=True):
        assert data_equivalence(one, other)
    env.close()
