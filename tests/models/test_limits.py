"""What takes time or memory without end is tried in a process of its own."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import numpy as np
import pytest
import torch

from das_gym.models.limits import outgrown

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the limits are Linux's")


@pytest.mark.parametrize(
    ("work", "told"),
    [
        (lambda: 10 ** (10**9), "1 s"),
        (lambda: "x" * 10**10, "0 GiB of memory"),
        (lambda: np.ones(10**10), "0 GiB of memory"),
        (lambda: torch.ones(10**10), "0 GiB of memory"),
        (lambda: time.sleep(0.01), None),
        (lambda: torch.ones(300, 300) @ torch.ones(300, 300), None),
        (lambda: 1 / 0, None),
        (lambda: sys.exit(3), None),
    ],
)
def test_what_is_too_much_is_told(work: Callable[[], object], told: str | None):
    assert outgrown(work, seconds=1, size=2**28) == told
