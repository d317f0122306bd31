"""Stops and breaks jobs at their writes, and checks that a restart gives the result of an undisturbed run.

Every job runs in a fork of this process. The two calls that make a write count, `os.fsync` and `os.replace`, are numbered;
at one of them the process is killed, the file having been cut in half before it was on the disk, or it gets a SIGTERM, or
the call fails.
"""

import errno
import importlib
import os
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from das_gym.files import read_json
from das_gym.processes import raise_interrupt
from tests.faults.jobs import Job

SIGNALS = ("SIGKILL", "SIGTERM")
ERRORS = ("ENOSPC", "EIO")


@dataclass(frozen=True)
class Fault:
    """What happens: one of `SIGNALS` or `ERRORS` at call `at`, from 1, or a signal after some seconds; 0 = never.

    SIGTERM comes again at every later call.
    """

    kind: str = "SIGKILL"
    at: int = 0
    seconds: float = 0.0

    def __str__(self) -> str:
        """Return it as text."""
        return f"{self.kind} after {self.seconds:.2f} s" if self.seconds else f"{self.kind} at write {self.at}"


def in_fork(job: Job, folder: Path, fault: Fault) -> tuple[int, int, str]:
    """Run a job in a child process; its exit code, negative for a signal, its number of calls, and its error."""
    told, counted, loaded = _beside(folder)
    for path in (told, counted, loaded):
        path.unlink(missing_ok=True)
    child = os.fork()
    if child == 0:
        _run(job, folder, fault)
    try:
        _, status = os.waitpid(child, 0)
    except KeyboardInterrupt:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        raise
    calls = len(counted.read_bytes()) if counted.is_file() else 0
    return os.waitstatus_to_exitcode(status), calls, told.read_text() if told.is_file() else ""


def _beside(folder: Path) -> list[Path]:
    """The file of a child's error, calls and modules: next to its folder, whose disk may be full."""
    return [folder.with_name(f"{folder.name}.{name}") for name in ("told", "calls", "modules")]


def _run(job: Job, folder: Path, fault: Fault) -> None:
    """The child: it never returns."""
    told, counted, loaded = _beside(folder)
    code = 0
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        sys.stdout = sys.stderr = sys.__stdout__ = sys.__stderr__ = open(os.devnull, "w")  # noqa: PTH123, SIM115
        _install(fault, counted)
        job.begin_or_go_on(folder)
        loaded.write_text("\n".join(sys.modules))
    except BaseException:
        code = 1
        told.write_text(traceback.format_exc())
    os._exit(code)


def _install(fault: Fault, counted: Path) -> None:
    signal.signal(signal.SIGTERM, raise_interrupt)
    if fault.seconds:
        timer = threading.Timer(fault.seconds, os.kill, (os.getpid(), signal.Signals[fault.kind]))
        timer.daemon = True
        timer.start()
    log = os.open(counted, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    real = {"fsync": os.fsync, "replace": os.replace}
    calls = 0

    def call(name: str, *arguments: object) -> object:
        nonlocal calls
        calls += 1
        os.write(log, b".")
        if calls == fault.at and fault.kind in ERRORS:
            code = getattr(errno, fault.kind)
            raise OSError(code, os.strerror(code))
        if calls == fault.at and fault.kind == "SIGKILL" and name == "fsync":
            _cut(arguments[0])
        if calls == fault.at or (fault.kind == "SIGTERM" and 0 < fault.at < calls):
            os.kill(os.getpid(), signal.Signals[fault.kind])
        return real[name](*arguments)

    os.fsync = lambda *arguments: call("fsync", *arguments)
    os.replace = lambda *arguments: call("replace", *arguments)


def _cut(file: object) -> None:
    """Half of a file that was not on the disk yet may be lost."""
    path = Path(f"/proc/self/fd/{file}")
    if path.is_file() and path.readlink().name.endswith(".part"):
        os.truncate(path, path.stat().st_size // 2)


def try_fault(job: Job, folder: Path, fault: Fault, wanted: dict[str, str]) -> str | None:
    """Run a job into a fault and then on; what differs from the files `wanted` of an undisturbed run, or None."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    code, _, told = in_fork(job, folder, fault)
    expected = ("Terminated",) if fault.kind == "SIGTERM" else ("OSError", "RunError", "ValueError")
    if code == 1 and not any(name in told for name in expected):
        return f"{fault}: {told}"
    if fault.kind == "SIGTERM" and (running := [run for run, status in statuses(folder).items() if status == "RUNNING"]):
        return f"{fault}: the runs {running} have the status RUNNING"
    before = job.written(folder)
    if code == 0 and before != wanted:
        return f"{fault}: it ended well, but its files differ from those of an undisturbed run"
    if any(wanted[name] != digest for name, digest in before.items()):
        return f"{fault}: it left a file that reads as whole and is another one"
    return f"{fault}: {wrong}" if (wrong := _again(job, folder, wanted)) else None


def statuses(folder: Path) -> dict[str, str]:
    """The status of each run in a job's folder."""
    return {path.parent.name: read_json(path)["status"] for path in folder.glob("runs/*/run.json")}


def _again(job: Job, folder: Path, wanted: dict[str, str]) -> str | None:
    """Return the error after a restart, or None."""
    again, _, told = in_fork(job, folder, Fault())
    if again != 0:
        return f"it does not resume: {told}"
    if job.written(folder) != wanted:
        return "the result differs from that of an undisturbed run"
    left = [str(path.relative_to(folder)) for path in folder.rglob("*.part") if _goes_on(path.parent)]
    return f"{left} are left behind" if left else None


def _goes_on(folder: Path) -> bool:
    """Whether the run is written again: not if it was killed before it could record what it is and was given."""
    return folder.parent.name != "runs" or all((folder / name).is_file() for name in ("run.json", "config.json"))


def undisturbed(job: Job, folder: Path) -> tuple[dict[str, str], int, float]:
    """Return what a job writes, with how many calls, and in how many seconds once its modules are imported.

    They are imported here, so that no later fork need do it. A second run must write the same.
    """
    folder.mkdir(parents=True)
    code, calls, told = in_fork(job, folder, Fault())
    if code != 0 or not (wanted := job.written(folder)):
        raise RuntimeError(f"the job fails undisturbed: {told}")
    for name in _beside(folder)[2].read_text().splitlines():
        with suppress(Exception):
            importlib.import_module(name)
    again, began = folder.with_name("again"), time.monotonic()
    again.mkdir()
    in_fork(job, again, Fault())
    took = time.monotonic() - began
    if job.written(again) != wanted:
        raise RuntimeError("the job writes something else the second time, undisturbed")
    return wanted, calls, took


def every(calls: int, step: int = 1) -> Iterator[Fault]:
    """A kill and a SIGTERM at every `step`-th call, and a failing disk at every fourth of them."""
    for at in range(1, calls + 1, step):
        yield Fault("SIGKILL", at)
        yield Fault("SIGTERM", at)
        if at % (4 * step) == 1:
            yield Fault("ENOSPC", at)
            yield Fault("EIO", at)
