from __future__ import annotations

import json
import pickle
import warnings

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.wrappers import FlattenObservation
from stable_baselines3.common.env_checker import check_env as sb3_check_env

from das_gym.envs.wrappers import ScoresWrapper, SequenceWrapper

ID = "DAS-METER-VQA-Tabular-v0"
WRAPPERS = {"sequence": SequenceWrapper, "scores": ScoresWrapper}


@pytest.fixture(scope="module")
def kwargs(small_table, tmp_path_factory: pytest.TempPathFactory) -> dict:
    path = tmp_path_factory.mktemp("table") / "table.npz"
    small_table.save(path)
    return {"table": str(path), "skip_num": 2}


@pytest.mark.parametrize("action", WRAPPERS)
def test_does_what_the_setting_does(kwargs: dict, action: str):
    wrapped = WRAPPERS[action](gymnasium.make(ID, **kwargs))
    made = gymnasium.make(ID, action=action, **kwargs)
    assert wrapped.observation_space == made.observation_space
    assert wrapped.action_space == made.action_space
    assert wrapped.get_wrapper_attr("feature_names") == made.get_wrapper_attr("feature_names")
    wrapped.action_space.seed(0)
    ended = True
    for _ in range(40):
        if ended:
            np.testing.assert_equal(wrapped.reset(seed=1), made.reset(seed=1))
        action = wrapped.action_space.sample()
        one, other = wrapped.step(action), made.step(action)
        np.testing.assert_equal(one, other)
        assert [type(value) for value in one[1:4]] == [float, bool, bool]
        ended = one[2] or one[3]


@pytest.mark.parametrize("action", WRAPPERS)
def test_checkers_have_nothing_to_say(kwargs: dict, action: str):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*is different from the unwrapped version")  # it is: it is wrapped
        wrapped = WRAPPERS[action](gymnasium.make(ID, **kwargs))
        check_env(gymnasium.make(wrapped.spec))
        sb3_check_env(wrapped)


def test_masks_are_found_through_wrappers(kwargs: dict):
    env = FlattenObservation(SequenceWrapper(gymnasium.make(ID, **kwargs)))
    env.reset(seed=0)
    info = env.step(3)[4]
    masks = env.get_wrapper_attr("action_masks")()
    assert masks.tolist() == [True, True, True, False, True, True]
    np.testing.assert_array_equal(info["action_mask"], masks)


@pytest.mark.parametrize("copy", ["pickle", "state"])
def test_goes_on_amid_an_episode(kwargs: dict, copy: str):
    env = SequenceWrapper(gymnasium.make(ID, **kwargs))
    env.reset(seed=0)
    env.step(1)
    if copy == "pickle":
        twin = pickle.loads(pickle.dumps(env))
    else:
        twin = SequenceWrapper(gymnasium.make(ID, **kwargs))
        twin.reset(seed=5)
        twin.set_state(json.loads(json.dumps(env.get_state())))
    np.testing.assert_equal(twin.step(4), env.step(4))


def test_what_cannot_be_wrapped(kwargs: dict):
    with pytest.raises(TypeError, match="SequenceWrapper wraps a das_gym environment made with action='mask'"):
        SequenceWrapper(gymnasium.make(ID, action="scores", **kwargs))
    with pytest.raises(TypeError, match="ScoresWrapper wraps a das_gym environment"):
        ScoresWrapper(gymnasium.make("CartPole-v1"))
