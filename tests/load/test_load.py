"""Stepping an environment leaves neither memory nor handles nor threads behind."""

import gc
import itertools
import threading
import tracemalloc
from collections.abc import Callable

import gymnasium
import numpy as np
import psutil
import pytest

import das_gym  # noqa: F401  (registers the environments)

SAMPLES, WARM = 20, 5
"""Samples of memory, and how many of them are left out: the first steps fill what is kept on purpose."""


def growth_of(step: Callable[[int], object], calls: int) -> tuple[float, int, int]:
    """Call `step` with 0, 1, ...; return how many bytes a call keeps, and how many more open files and threads there are."""
    process, rows = psutil.Process(), []
    tracemalloc.start()
    gc.collect()
    gc.freeze()  # existing objects are not scanned at every sample
    for begin, end in itertools.pairwise(np.linspace(0, calls, SAMPLES + 1).astype(int)):
        for number in range(begin, end):
            step(number)
        gc.collect()
        rows.append((end, tracemalloc.get_traced_memory()[0], process.num_fds(), threading.active_count()))
    gc.unfreeze()
    tracemalloc.stop()
    table = np.array(rows[WARM:], dtype=float)
    slope = np.polyfit(table[:, 0], table[:, 1], 1)[0]
    handles, threads = (int(table[-1, column] - table[0, column]) for column in (2, 3))
    return float(slope), handles, threads


@pytest.mark.parametrize("action", ["mask", "sequence", "scores"])
def test_steps_of_a_table(action):
    env = gymnasium.make_vec("DAS-METER-VQA-Tabular-v0", num_envs=16, action=action, skip_num=4)
    env.reset(seed=0)
    env.action_space.seed(0)
    actions = [env.action_space.sample() for _ in range(8)]
    slope, handles, threads = growth_of(lambda number: env.step(actions[number % 8]), 1500)
    assert slope < 16.0
    assert max(handles, threads) <= 0
    env.close()


@pytest.mark.long
@pytest.mark.parametrize("batches", ["fixed", "cycle"])
def test_live_steps_and_environments_that_are_closed(small_kwargs, batches):
    settings = {**small_kwargs, "skip_num": 2, "reward_examples": 2, "reward_batches": batches}
    env = gymnasium.make("DAS-METER-VQA-v0", **settings)
    masks = np.array([row for row in np.ndindex(*[2] * 6) if sum(row) == 2], dtype=np.int8)

    def step(number: int) -> None:
        env.reset(seed=0)
        env.step(masks[number % len(masks)])

    for number in range(len(masks) * 2):
        step(number)
    slope, handles, threads = growth_of(step, 400)
    assert slope < 50.0
    assert max(handles, threads) <= 0

    def once(number: int) -> None:
        other = gymnasium.make("DAS-METER-VQA-v0", **settings)
        other.reset(seed=number)
        other.close()

    slope, handles, threads = growth_of(once, 20)
    assert slope < 5000.0
    assert max(handles, threads) <= 0
    env.close()
