"""What is run of files from elsewhere, tried within limits first: a template may loop, a tokenizer may multiply texts."""

from __future__ import annotations

import os
import select
import signal
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import torch

SECONDS = 30
"""Of a processor's time; honest files take less than one."""

BYTES = 2 * 2**30
"""Of memory, beyond what the process has."""

PATIENCE = 20
"""Seconds by the clock without any work, after which nothing is known: a fork may wait for a lock that a thread of its
parent held."""

_NO_MEMORY = 3

_OUT_OF_MEMORY = (_NO_MEMORY, -signal.SIGABRT, -signal.SIGSEGV)
"""How a process ends that is given none: Python's error, Rust's and C++'s way out, and C that did not look."""

_PR_SET_PDEATHSIG = 1


def outgrown(work: Callable[[], object], seconds: int = SECONDS, size: int = BYTES) -> str | None:
    """What a piece of work takes more of than it may, in words; None = nothing, or that cannot be known.

    It is done in a fork, which ends with it; what it raises there is not told. Without Linux's limits nothing is done.

    Args:
        work: The same, done again, must be harmless.
        seconds: Of a processor's time.
        size: Bytes of memory beyond what this process has.
    """
    if sys.platform != "linux":
        return None
    reading, writing = os.pipe()  # its end is that of the fork
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of threads, which a fork does not have
            child = os.fork()
    except OSError:  # no memory or no process is left for one
        os.close(reading)
        os.close(writing)
        return None
    if child == 0:
        _try(work, seconds, size)
    os.close(writing)
    ended = False
    try:
        poll = select.poll()
        poll.register(reading)
        used = -1
        while not (ended := bool(poll.poll(1000 * PATIENCE))) and (now := _ticks(child)) > used:
            used = now
    finally:
        os.close(reading)
        if not ended:
            os.kill(child, signal.SIGKILL)
        try:
            status = os.waitpid(child, 0)[1]
        except ChildProcessError:  # whoever began this process ignores how others end
            status = 0
    code = os.waitstatus_to_exitcode(status)
    if code == -signal.SIGXCPU:
        return f"{seconds} s"
    return f"{size / 2**30:.0f} GiB of memory" if code in _OUT_OF_MEMORY else None


def _ticks(process: int) -> int:
    """The processor time that a process has used, in ticks of the system's clock."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def _try(work: Callable[[], object], seconds: int, size: int) -> None:
    """The fork: it never returns."""
    code = 0
    try:
        _limit(seconds, size)
        torch.set_num_threads(1)  # a fork has none of its parent's, and would wait for them
        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # likewise; and on large machines threads take much memory:
        os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"  # those of what the work imports
        work()
    except MemoryError:
        code = _NO_MEMORY
    except RuntimeError as error:
        code = _NO_MEMORY if "allocate memory" in str(error) else 0
    except BaseException:
        code = 0
    finally:
        os._exit(code)


def _limit(seconds: int, size: int) -> None:
    import ctypes
    import resource

    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # it ends with the process that waits for it
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    with open("/proc/self/statm") as file:  # noqa: PTH123
        has = int(file.read().split()[0]) * resource.getpagesize()
    for kind, wanted in ((resource.RLIMIT_CORE, 0), (resource.RLIMIT_CPU, seconds), (resource.RLIMIT_AS, has + size)):
        hard = resource.getrlimit(kind)[1]
        resource.setrlimit(kind, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))
    signal.signal(signal.SIGXCPU, signal.SIG_DFL)
