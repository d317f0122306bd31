"""Measured latency: what a clock says, beside the MACs that `das_gym.problem.costs` counts."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

import torch

WARMUP = 3


@torch.inference_mode()
def measure_latency(calls: Mapping[str, Callable[[], object]], repeats: int = 30) -> dict[str, float]:
    """Median wall-clock time of each call, in milliseconds.

    The calls take turns, so that whatever else the machine does weighs on all of them alike.

    Args:
        calls: Name to a function that runs the model once.
        repeats: Timed runs of each, after three that are not counted.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    for repeat in range(WARMUP + repeats):
        for name, call in calls.items():
            started = time.perf_counter()
            call()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if repeat >= WARMUP:
                times[name].append(1000 * (time.perf_counter() - started))
    return {name: statistics.median(values) for name, values in times.items()}
