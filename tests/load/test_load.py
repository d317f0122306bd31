"""Stepping an environment leaves neither memory nor handles nor threads behind."""

from __future__ import annotations

import gc
import itertools
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import gymnasium
import numpy as np
import psutil
import pytest
import torch

import das_gym  # noqa: F401  (registers the environments)

SAMPLES = 20
WARM = 0.25
"""This share of the steps fills what is kept on purpose, and is not looked at."""


@dataclass(frozen=True)
class Growth:
    """What came to be there while stepping, after the first quarter.

    Attributes:
        traced: Bytes a step that Python and numpy hold, see `tracemalloc`: the slope of a line through samples.
        handles, threads: How many more open files, and threads.
    """

    traced: float
    handles: int
    threads: int


def growth_of(step: Callable[[int], object], calls: int, steps_a_call: int = 1) -> Growth:
    """Call `step` with 0, 1, ... and watch.

    Args:
        step: Steps.
        calls: How often.
        steps_a_call: How many steps that counts as.
    """
    process, rows = psutil.Process(), []
    gc.collect()
    gc.freeze()  # existing objects are not scanned at every sample
    ends = np.linspace(0, calls, SAMPLES + 1).astype(int)
    for begin, end in itertools.pairwise(ends):
        for number in range(begin, end):
            step(number)
        gc.collect()
        traced = tracemalloc.get_traced_memory()[0]
        rows.append((end, traced, process.num_fds(), threading.active_count()))
    gc.unfreeze()
    table = np.array(rows[round(WARM * SAMPLES) :], dtype=float)
    slope = np.polyfit(table[:, 0], table[:, 1], 1)[0] / steps_a_call
    return Growth(float(slope), *(int(table[-1, column] - table[0, column]) for column in (2, 3)))


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
