"""Ctrl-C: exit code 130 and no traceback, also while libraries are still being imported.

`das_gym` imports this first. In a command it acts at once, since what follows takes seconds: see the end of this file.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

INTERRUPTED = 130
"""Exit code of a command that was interrupted, as shells have it."""


COMMANDS = ("agents", "adapt")


def in_command() -> bool:
    """Whether this process was started as one of our commands."""
    words = sys.orig_argv
    module = words[words.index("-m") + 1 :][:1] if "-m" in words else []
    scripts = [Path(word).stem.removeprefix("das-") for word in sys.argv[:1] if Path(word).stem.startswith("das-")]
    return any(name.removeprefix("das_gym.") in COMMANDS for name in (*module, *scripts))


def raise_again() -> None:
    """From here on Ctrl-C is a KeyboardInterrupt again, since there is something to tell."""
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _end(*_: Any) -> None:
    os._exit(INTERRUPTED)


if in_command() and threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGINT, _end)
