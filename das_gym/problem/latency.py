"""Measured latency of whole models, and its comparison."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.benchmark import Timer

from das_gym.intervals import bootstrap_interval

BLOCKS = 15
"""Timed blocks of each call: they take turns, so that other load on the machine affects all calls alike."""

RUNS = 4
"""Runs in a block; torch makes two more before them that are not counted."""


class Spread(NamedTuple):
    """Median and quartiles of measurements."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: np.ndarray) -> Spread:
        """Return median and quartiles of (n,) values."""
        low, median, high = np.percentile(values, (25, 50, 75)).tolist()
        return cls(median, low, high)


@torch.inference_mode()
def measure_latency(
    calls: Mapping[str, Callable[[], object]], blocks: int = BLOCKS, runs: int = RUNS
) -> dict[str, np.ndarray]:
    """Return the wall-clock time of each call, by `torch.utils.benchmark`, on as many threads as torch uses.

    Returns:
        Name to (blocks,) float64, milliseconds a run; entries of one index were measured one after the other.
    """
    threads = torch.get_num_threads()
    timers = {name: Timer("call()", globals={"call": call}, num_threads=threads) for name, call in calls.items()}
    times = [[1000 * timer.timeit(runs).mean for timer in timers.values()] for _ in range(blocks)]
    return dict(zip(timers, np.array(times).T, strict=True))


class Speedup(NamedTuple):
    """How many times as fast one call is as another: the ratio of their median times, with its 95 % interval."""

    ratio: float
    low: float
    high: float

    @property
    def is_measurable(self) -> bool:
        """Whether the interval excludes 1."""
        return not self.low <= 1 <= self.high


def speedup(of: np.ndarray, over: np.ndarray) -> Speedup:
    """Compare the times of a call with those of a reference, both as `measure_latency` returns them.

    Blocks of one index ran one after the other, and are resampled together.
    """
    low, high = bootstrap_interval(lambda rows: np.median(over[rows], axis=1) / np.median(of[rows], axis=1), len(of))
    return Speedup(float(np.median(over) / np.median(of)), low, high)
