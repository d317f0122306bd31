"""Stepping an environment leaves neither memory nor handles nor threads behind."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Iterator

import gymnasium
import numpy as np
import pytest
import torch

import das_gym  # noqa: F401  (registers the environments)
from tests.load.growth import Growth, growth_of


@pytest.fixture(autouse=True)
def traced() -> Iterator[None]:
    """Measure the memory allocated meanwhile."""
    tracemalloc.start()
    yield
    tracemalloc.stop()


def tensors() -> int:
    gc.collect()
    return sum(issubclass(type(each), torch.Tensor) for each in gc.get_objects())


def none(found: Growth, most: float) -> bool:
    return found.traced < most and found.handles <= 0 and found.threads <= 0


@pytest.mark.parametrize("action", ["mask", "sequence", "scores"])
def test_steps_of_a_table(action: str):
    env = gymnasium.make_vec("DAS-METER-VQA-Tabular-v0", num_envs=16, action=action, skip_num=4)
    env.reset(seed=0)
    env.action_space.seed(0)
    actions = [env.action_space.sample() for _ in range(8)]
    assert none(growth_of(lambda number: env.step(actions[number % 8]), 1500, 16), 1.0)
    env.close()


@pytest.mark.long
@pytest.mark.parametrize("batches", ["fixed", "cycle"])
def test_live_steps_and_environments_that_are_closed(small_kwargs: dict[str, str], batches: str):
    masks = np.array([np.binary_repr(number, 6) for number in range(64) if number.bit_count() == 2])
    masks = np.array([[int(bit) for bit in mask] for mask in masks], dtype=np.int8)
    settings = {**small_kwargs, "skip_num": 2, "reward_examples": 2, "reward_batches": batches}

    def make() -> gymnasium.Env:
        return gymnasium.make("DAS-METER-VQA-v0", **settings)

    env = make()

    def step(number: int) -> None:
        env.reset(seed=0)
        env.step(masks[number % len(masks)])

    for number in range(len(masks) * 2):
        step(number)
    before = tensors()
    assert none(growth_of(step, 30), 300.0)

    def once(number: int) -> None:
        other = make()
        other.reset(seed=number)
        other.close()

    assert none(growth_of(once, 20), 5000.0)
    env.close()
    assert tensors() <= before
