import gymnasium

from benchmarks.per_input import measure, run_episode
from tests.envs.test_per_input import METER, random_masks


def test_layers_are_a_part_of_the_episode(small_kwargs):
    env = gymnasium.make_vec(METER, num_envs=8, split="test", order="cycle", **small_kwargs)
    found = measure(env, repetitions=2)
    assert found.shape == (2, 3)
    assert (found > 0).all()


def test_episode_returns_the_examples_that_it_scored(small_kwargs):
    env = gymnasium.make_vec(METER, num_envs=3, split="test", order="cycle", **small_kwargs)
    env.reset(seed=0)
    for first in (0, 3):
        _, places = run_episode(env, random_masks(3, 6))
        assert places.tolist() == [first, first + 1, first + 2]
