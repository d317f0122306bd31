"""What takes time or memory without end is tried in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from das_gym.models import limits
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


def test_what_waits_for_ever_is_not_waited_for(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(limits, "PATIENCE", 0.2)
    assert outgrown(lambda: time.sleep(600)) is None
    assert outgrown(lambda: 10 ** (10**9), seconds=1) == "1 s"


def test_without_another_process_nothing_is_known(monkeypatch: pytest.MonkeyPatch):
    open_files = len([*Path("/proc/self/fd").iterdir()])
    monkeypatch.setattr(os, "fork", Mock(side_effect=BlockingIOError("Resource temporarily unavailable")))
    assert outgrown(lambda: None) is None
    assert len([*Path("/proc/self/fd").iterdir()]) == open_files


def test_where_nobody_is_told_how_a_process_ended_nothing_is_known():
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        assert outgrown(lambda: "x" * 10**10, size=2**28) is None
    finally:
        signal.signal(signal.SIGCHLD, before)


def test_what_is_ended_from_without_has_not_outgrown_anything():
    assert outgrown(lambda: os.kill(os.getpid(), signal.SIGHUP)) is None


@pytest.mark.slow
def test_it_ends_with_the_process_that_waits_for_it(tmp_path: Path):
    code = f"""
import os, pathlib
from das_gym.models import limits
from das_gym.models.limits import outgrown
def forever():
    pathlib.Path({str(tmp_path / "new")!r}).write_text(str(os.getpid()))
    pathlib.Path({str(tmp_path / "new")!r}).rename({str(tmp_path / "pid")!r})
    while True: pass
outgrown(forever)
"""
    with subprocess.Popen([sys.executable, "-c", code]) as waiting:
        while not (tmp_path / "pid").exists():
            time.sleep(0.05)
        waiting.kill()
    stat = Path(f"/proc/{(tmp_path / 'pid').read_text()}/stat")
    for _ in range(100):
        if not stat.exists() or stat.read_text().split(") ")[1][0] == "Z":
            return
        time.sleep(0.1)
    pytest.fail("it still runs")
