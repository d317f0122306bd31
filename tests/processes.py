"""Starts our commands as separate processes, as a scheduler does, and stops them."""

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[1]


def start(command: str, *paths: Path) -> subprocess.Popen[str]:
    """Start a command in the working folder.

    Args:
        command: As it is typed: "python -m agents with ...".
        paths: More folders to import from.
    """
    return subprocess.Popen(
        [sys.executable, *shlex.split(command)[1:]],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (ROOT, *paths))), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=_handle_signals,
    )


def finish(process: subprocess.Popen[str]) -> None:
    """Wait for a process that ends well."""
    output, error = process.communicate(timeout=120)
    assert process.returncode == 0, output + error


def _handle_signals() -> None:
    for number in (signal.SIGINT, signal.SIGHUP):  # may be ignored where tests run
        signal.signal(number, signal.SIG_DFL)


def stop_when(process: subprocess.Popen[str], is_time: Callable[[], bool], *signals: int) -> str:
    """Send signals to a process once it is time, and return its standard error when it has ended."""
    while process.poll() is None and not is_time():
        time.sleep(0.01)
    for number in signals:
        process.send_signal(number)
        time.sleep(0.05)
    return process.communicate(timeout=120)[1]
