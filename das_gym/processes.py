"""The processes of a command: signals, standard streams, and several processes that train together.

Ctrl-C, SIGTERM and SIGHUP end a command without a traceback, and its run can be resumed.

Slurm, Kubernetes and `timeout` send SIGTERM, a terminal that closes sends SIGHUP. In a command each of them raises a
KeyboardInterrupt, and the exit code is 128 plus the signal's number, as in shells. A signal that the caller ignores stays
ignored: `nohup` ignores SIGHUP, a shell script ignores SIGINT for its background jobs.

In a process that was started as a command of ours, `das_gym` calls `end_on_signals` before its own imports, which take a
moment, and `main` of a program before those that take seconds. In a program that is not ours nothing is installed.

Several processes are started by `accelerate launch` or `torchrun`. The main process keeps the run, prints and writes. A
single process is the main process.
"""

from __future__ import annotations

import ctypes
import os
import platform
import signal
import stat
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any, TypeVar

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]  # Windows: two

IGNORE_SECONDS = 5.0
"""Seconds during which further signals are ignored, since a scheduler and a launcher may both send one."""

_last_raised = -IGNORE_SECONDS
_is_installed = False

BROKEN_PIPE = 141
"""Exit code of a command whose standard output was closed, as in `... | head`; shells use the same."""

TRIM_THRESHOLD = -1, 2**30
MMAP_THRESHOLD = -3, 2**28
"""Number in glibc's malloc.h, and bytes: more free memory at the heap's end, or larger blocks, go back to the system."""

STREAMS = (("stdin", "r"), ("stdout", "w"), ("stderr", "w"))

Value = TypeVar("Value")


class Terminated(KeyboardInterrupt):
    """Raised for SIGTERM and SIGHUP. Code that handles Ctrl-C handles it too."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number


def exit_code(interrupt: KeyboardInterrupt) -> int:
    """Return the exit code of a command that was interrupted: 130 after Ctrl-C, 143 after SIGTERM."""
    return interrupt.exit_code if isinstance(interrupt, Terminated) else 128 + signal.SIGINT


def stop_message(interrupt: KeyboardInterrupt) -> str:
    """Return the message of an interrupt, with its notes."""
    stopped = f"Stopped by {interrupt}." if isinstance(interrupt, Terminated) else "Stopped."
    first, *others = getattr(interrupt, "__notes__", None) or [""]
    return "\n".join([f"{stopped} {first}".rstrip(), *others])


def is_command() -> bool:
    """Return True if this process was started as `das-agents`, `das-adapt` or `python -m` with one of their packages."""
    name = os.path.basename(sys.argv[0]) if getattr(sys, "argv", None) else ""  # noqa: PTH119 - pathlib takes time to import
    if name != "-m":
        return name.removesuffix(".exe") in ("das-agents", "das-adapt")
    words = sys.orig_argv
    module = words[words.index("-m") + 1] if "-m" in words else ""
    return module in ("agents", "adapt", "das_gym.agents", "das_gym.adapt")


def end_on_signals() -> None:
    """Install handlers, in a program of ours: a signal ends the process at once, without a traceback."""
    global _is_installed
    if not _is_installed and hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_restore_defaults)
    _is_installed = True
    _handle(_end)


def raise_interrupts() -> None:
    """Make signals raise exceptions from now on, so that the run can save and clean up."""
    _handle(raise_interrupt)


def ignore_signals() -> None:
    """Ignore further signals, since everything is saved; only Ctrl-C ends the process at once."""
    _handle(_end, signal.SIGINT)
    _handle(signal.SIG_IGN, *SIGNALS[1:])  # a handler would not last: Python removes all of them before it ends


def _handle(handler: Any, *numbers: int) -> None:
    if _is_installed and threading.current_thread() is threading.main_thread():
        for number in numbers or SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, handler)


def _end(number: int, frame: Any) -> None:
    with suppress(OSError):
        os.write(2, b"Stopped.\n")  # printing may not be entered twice
    os._exit(128 + number)


def raise_interrupt(number: int, frame: Any) -> None:
    """Handle a signal by raising a KeyboardInterrupt."""
    global _last_raised
    if time.monotonic() - _last_raised < IGNORE_SECONDS:
        return
    _last_raised = time.monotonic()
    for stream in (1, 2):  # writing to a closed terminal would fail the run
        if stat.S_ISCHR(os.fstat(stream).st_mode) and not os.isatty(stream):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
    raise KeyboardInterrupt if number == signal.SIGINT else Terminated(number)


def _restore_defaults() -> None:
    """Restore the default handlers in a forked process: a worker ends silently, its parent reports."""
    for number in SIGNALS:
        if signal.getsignal(number) in (raise_interrupt, _end):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


def prepare_streams() -> None:
    """Open closed streams, and let standard output write line by line, with "?" for what its encoding lacks.

    Sacred ignores errors of a flush: without line buffering, a closed pipe would go unnoticed until the end.
    The next opened file would take the number of a closed stream, and a library's messages would be written into it.
    An encoding may lack letters of names and the lines of our tables, which come at the end of a long search.
    """
    for number, (name, mode) in enumerate(STREAMS):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
        if getattr(sys, name) is None:
            stream = open(os.devnull, mode, encoding="utf-8")  # noqa: PTH123, SIM115  (as long as the process)
            setattr(sys, name, stream)
            setattr(sys, f"__{name}__", stream)
    reconfigure = getattr(sys.stdout, "reconfigure", None)  # not every stand-in of a stream has it
    if reconfigure is not None:
        reconfigure(errors="replace", line_buffering=True)


def keep_freed_memory() -> None:
    """Let glibc keep freed memory for the process's next tensors: handed back, each page is cleared and mapped again.

    The environment variable `DAS_GYM_KEEP_MEMORY=0` turns it off; the system then gets freed memory back earlier.
    """
    if platform.libc_ver()[0] == "glibc" and os.environ.get("DAS_GYM_KEEP_MEMORY") != "0":
        library = ctypes.CDLL(None)
        library.mallopt(*TRIM_THRESHOLD)
        library.mallopt(*MMAP_THRESHOLD)


def silence_stdout() -> int:
    """Discard further standard output, so that Python reports no broken pipe when it ends; return the exit code."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
    return BROKEN_PIPE


def rank() -> int:
    """Return the number of this process, from 0 on."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """Return the number of processes."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main_process() -> bool:
    """Return True in the one of several processes (`accelerate launch`) that keeps the run, prints and writes."""
    return rank() == 0


def join_process_group() -> None:
    """Join the process group, and select this process's device."""
    if world_size() > 1:
        import torch
        from accelerate import PartialState

        use_cpu = os.environ.get("ACCELERATE_USE_CPU", "false").lower() in ("1", "true", "yes")
        # The others wait while the main process searches or measures, for longer than torch's 10 minutes.
        PartialState(cpu=use_cpu or not torch.cuda.is_available(), timeout=timedelta(days=1))
        if not torch.distributed.is_initialized():
            raise ValueError(
                f"WORLD_SIZE={world_size()}, but the processes did not join: use `accelerate launch`, on CPUs `torchrun`"
            )


def run_on_main_process(make: Callable[[], Value]) -> Value:
    """Call `make` on the main process, and return its value on all processes."""
    if world_size() == 1:
        return make()
    from accelerate.utils import broadcast_object_list

    join_process_group()
    box: list[Any] = [None]
    if is_main_process():
        try:
            box = [make()]
        except FloatingPointError as error:
            box = [error]
    broadcast_object_list(box)
    if isinstance(box[0], FloatingPointError):
        raise box[0]
    return box[0]
