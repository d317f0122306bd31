from __future__ import annotations

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode

from das_gym.envs.scoring import INFO_KEYS

MASKS = np.array([[1, 1, 1, 1] + [0] * 8, [0] * 8 + [1] * 4, [1] * 12], dtype=np.int8)


@pytest.fixture
def vector(tiny_kwargs: dict[str, str]):
    env = gymnasium.make_vec("DAS-METER-VQA-v0", num_envs=3, reward_examples=10, **tiny_kwargs)
    env.reset(seed=0)
    return env


def test_vector_env_agrees_with_single_envs(vector, tiny_kwargs: dict[str, str]):
    _, rewards, terminated, truncated, info = vector.step(MASKS)
    single = gymnasium.make("DAS-METER-VQA-v0", reward_examples=10, **tiny_kwargs)
    observation, _ = single.reset(seed=0)
    for index, mask in enumerate(MASKS):
        _, reward, *_, told = single.step(mask)
        single.reset()
        assert rewards[index] == reward
        assert {key: info[key][index].item() for key in INFO_KEYS} == told
    assert terminated.all()
    assert not truncated.any()
    np.testing.assert_array_equal(vector.step(MASKS)[0], np.repeat(observation[None], 3, axis=0))


def test_step_is_one_engine_call(vector):
    evaluator = vector.unwrapped.template.scorer.problem.evaluator
    evaluator.forget()
    evaluator.reset_spent()
    vector.step(MASKS)
    assert evaluator.spent.masks == 2  # the third is off budget
    assert evaluator.spent.layer_runs < 2 * 8


def test_step_resets_episodes_that_ended(vector):
    assert vector.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    _, rewards, _, _, info = vector.step(MASKS)
    np.testing.assert_array_equal(info["final_info"]["loss"], info["loss"])
    assert len(info["final_obs"]) == 3
    assert info["final_obs"][0] in vector.single_observation_space
    np.testing.assert_array_equal(vector.step(MASKS)[1], rewards)


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_vector_env_agrees_with_gymnasiums_own(tiny_kwargs: dict[str, str], vector, mode: str):
    other = gymnasium.make_vec(
        "DAS-METER-VQA-v0",
        num_envs=3,
        vectorization_mode=mode,
        vector_kwargs={"autoreset_mode": AutoresetMode.SAME_STEP},
        reward_examples=10,
        **tiny_kwargs,
    )
    try:
        other.reset(seed=0)
        np.testing.assert_allclose(other.step(MASKS)[1], vector.step(MASKS)[1], rtol=1e-6)
    finally:
        other.close()
