from __future__ import annotations

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode

MASKS = np.array([[1, 1, 1, 1] + [0] * 8, [0] * 8 + [1] * 4, [1] * 12], dtype=np.int8)


@pytest.fixture
def vector(tiny_kwargs: dict[str, str]):
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
