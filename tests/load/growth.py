"""Whether stepping an environment for long takes ever more memory, handles or threads."""

from __future__ import annotations

import gc
import itertools
import threading
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import psutil

SAMPLES = 20
WARM = 0.25
"""This share of the steps fills what is kept on purpose, and is not looked at."""


@dataclass(frozen=True)
class Growth:
    """What came to be there while stepping, after the first quarter.

    Attributes:
        resident: Bytes a step that only the process holds: the slope of a line through samples. (The resident size that
            Linux reports is behind by some hundred KiB.)
        traced: The same of what Python and numpy hold, see `tracemalloc`; 0 where that was not on.
        handles, threads: How many more open files, and threads.
    """

    resident: float
    traced: float
    handles: int
    threads: int

    def __str__(self) -> str:
        """Return it as text."""
        return (
            f"{self.resident:+.3f} bytes a step of the process, {self.traced:+.3f} of Python's, "
            f"{self.handles:+d} handles, {self.threads:+d} threads"
        )


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
        rows.append((end, process.memory_full_info().uss, traced, process.num_fds(), threading.active_count()))
    gc.unfreeze()
    table = np.array(rows[round(WARM * SAMPLES) :], dtype=float)
    resident, traced_slope = (np.polyfit(table[:, 0], table[:, column], 1)[0] / steps_a_call for column in (1, 2))
    handles, threads = (int(table[-1, column] - table[0, column]) for column in (3, 4))
    return Growth(float(resident), float(traced_slope), handles, threads)
