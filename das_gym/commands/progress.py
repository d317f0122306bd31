"""Progress and estimates of long commands.

Progress is a bar on a terminal, else a line a minute, as for the log of a job on a cluster. With `estimate=True`, a command
times some examples of each of its phases instead, and prints how long all of them take and how much memory. Progress bars
of transformers are silenced here, too.
"""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from tqdm import tqdm

from das_gym.processes import is_main_process

LINE_SECONDS = 60.0
"""Seconds between two lines, and of work before the first."""

TIMED_SECONDS = 2.0
"""About how long a phase may be timed: with fewer examples than run together later, if these take longer."""

ROUNDS = 5
"""How often a quick phase is timed; the mean counts."""

LINE = "{desc}: {n:g}/{total} {unit}s ({percentage:.0f} %){postfix}, elapsed {elapsed}, remaining {remaining}"
"""The format of a line, with tqdm's names."""


_is_shown: ContextVar[bool] = ContextVar("progress", default=True)


def progress(total: int, description: str, unit: str = "it", initial: int = 0) -> tqdm:
    """Return the progress of work: tqdm's bar on a terminal or in a notebook, else `ProgressLines`.

    Nothing is shown within `show_progress(False)`, and in other processes than the main one.

    Args:
        total: How much there is to do.
        description: The work, as in "searching".
        unit: The singular of what is counted.
        initial: How much was done before.
    """
    from tqdm import auto  # it warns in a notebook without ipywidgets

    stream = sys.__stderr__  # Sacred captures `sys.stderr`
    settings: dict[str, Any] = {"total": total, "desc": description, "unit": unit, "initial": initial}
    if not _is_shown.get() or not is_main_process():
        return tqdm(**settings, disable=True)
    if _is_notebook():
        return auto.tqdm(**settings, leave=False)
    if stream is None or not stream.isatty():
        return ProgressLines(stream, **settings)
    return auto.tqdm(**settings, file=stream, leave=False, dynamic_ncols=True)


def _is_notebook() -> bool:
    """Return True in the kernel of a notebook, as tqdm finds out; another process may have imported ipykernel, too."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return shell is not None and "IPKernelApp" in shell.config


@contextmanager
def show_progress(is_shown: bool) -> Iterator[None]:
    """Show progress in the block, or none: what the argument `progress` of a function says."""
    token = _is_shown.set(is_shown)
    try:
        yield
    finally:
        _is_shown.reset(token)


class ProgressLines(tqdm):
    """Progress as a line a minute; the outermost of several tasks prints a last line, too."""

    monitor_interval = 0  # no thread is needed: `update` prints

    def __init__(self, stream: TextIO | None, **settings: Any) -> None:
        self.stream = stream
        self.printed: float | None = None
        every: dict[str, Any] = {"delay": LINE_SECONDS, "mininterval": LINE_SECONDS, "miniters": 1}
        # tqdm itself would write carriage returns and empty lines.
        super().__init__(**settings, **every, bar_format=LINE, leave=None, file=io.StringIO(), disable=stream is None)

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Print a line where tqdm draws a bar, unless it was the last; tqdm calls it with an empty `msg` to erase one."""
        if msg is None and self.n != self.printed:
            print(self, file=self.stream, flush=True)
            self.printed = self.n


@dataclass(frozen=True)
class Phase:
    """Work of a long command that is done for many examples.

    Attributes:
        name: Description of the work.
        examples: Number of examples.
        run: Does the work once for a number of examples together, and changes nothing that the command uses.
        together: Number of examples that the command processes together.
        repeats: How often the work is done for each example.
        prepare: Called before `run` is timed, with the same number: what the command does only once for an example.
        example_bytes: Memory that an example holds while it runs, where fewer are timed than run together.
        kept_bytes: Returns pairs of what the timed examples left in memory, and the most that all may leave.
        is_certain: Whether it takes place in any case.
        extra_seconds: Time that cannot be measured here, such as that of another process.
    """

    name: str
    examples: int
    run: Callable[[int], object]
    together: int = 1
    repeats: float = 1.0
    prepare: Callable[[int], object] | None = None
    example_bytes: int = 0
    kept_bytes: Callable[[], Sequence[tuple[int, int]]] | None = None
    is_certain: bool = True
    extra_seconds: float = 0.0

    def measure(self) -> Measurement:
        """Time some examples, at most as many as run together."""
        together = max(1, min(self.together, self.examples))
        size = min(2, together)  # in a large model, two examples take little longer than one
        earlier = (0, 0.0)
        while True:
            self._time(size)  # the first call with a size takes longer: MACs are counted, kernels chosen
            seconds = self._time(size)
            slope = max(0.0, (seconds - earlier[1]) / (size - earlier[0]))
            if size == together or seconds > TIMED_SECONDS / 4:
                break
            earlier = (size, seconds)
            size = min(together, max(4 * size, int(size * TIMED_SECONDS / 4 / seconds)))
        if ROUNDS * seconds < TIMED_SECONDS:
            seconds = sum(self._time(size) for _ in range(ROUNDS)) / ROUNDS
        calls = self.repeats * self.examples / together
        left = [] if self.kept_bytes is None else self.kept_bytes()
        return Measurement(
            name=self.name,
            seconds=self.extra_seconds + calls * (seconds + slope * (together - size)),
            kept=sum(min(most, kept * self.examples // size) - min(most, kept) for kept, most in left),
            held=(together - size) * self.example_bytes,
            is_certain=self.is_certain,
        )

    def _time(self, size: int) -> float:
        if self.prepare is not None:
            self.prepare(size)
        start = _now()
        self.run(size)
        return _now() - start


class Measurement(NamedTuple):
    """Expected seconds of a phase, and the bytes that it keeps and holds besides those of its timed examples."""

    name: str
    seconds: float
    kept: int = 0
    held: int = 0
    is_certain: bool = True


def print_estimate(phases: Iterable[Phase]) -> None:
    """Time some examples of each phase, one phase after another, and print the expected time and peak memory of all."""
    found = [phase.measure() for phase in phases]
    print(format_estimate(found, peak_bytes()) if found else "estimate: no model has to run")


def format_estimate(found: Sequence[Measurement], before: int) -> str:
    """Return the expected time and peak memory of phases, after `before` bytes at the peak so far.

    Example:
        >>> print(format_estimate([Measurement("search", 50.0), Measurement("training", 20.0, held=2**30)], before=2**30))
        estimate: 1 min 10 s (search 50 s, training 20 s), peak memory 2.00 GiB
    """
    certain = [each for each in found if each.is_certain]
    named = ", ".join(f"{each.name} {format_duration(each.seconds)}" for each in certain)
    more = "".join(f", {each.name} up to {format_duration(each.seconds)} more" for each in found if not each.is_certain)
    kept = 0
    peak = 0
    for each in found:
        kept += each.kept
        peak = max(peak, kept + each.held)
    gib = (before + peak) / 2**30
    return f"estimate: {format_duration(sum(each.seconds for each in certain))} ({named}){more}, peak memory {gib:.2f} GiB"


def format_duration(seconds: float) -> str:
    """Return a time such as `45 s`, `2 min 5 s` or `3 h 20 min`."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60} min"


def peak_bytes() -> int:
    """Return the peak memory so far of the GPUs that this process uses, or of the process if it uses none."""
    import torch

    if peak := sum(map(torch.cuda.max_memory_allocated, range(torch.cuda.device_count()))):
        return peak
    try:  # `getrusage` has the peak of the process that started this one, if that was larger
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    except OSError:  # not Linux
        import resource  # Windows has none

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _now() -> float:
    """Return the time in seconds, when all work that is queued on GPUs is done."""
    import torch

    for number in range(torch.cuda.device_count() if torch.cuda.is_initialized() else 0):
        if torch.cuda.memory_allocated(number):  # waiting for a GPU that is not used would take memory there
            torch.cuda.synchronize(number)
    return time.perf_counter()


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Suppress progress bars and warnings of transformers."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with _no_bars():
            yield
    finally:
        logging.set_verbosity(verbosity)


def bars_on_terminals() -> AbstractContextManager[None]:
    """Show progress bars of transformers only on a terminal."""
    return nullcontext() if sys.stderr.isatty() else _no_bars()


@contextmanager
def _no_bars() -> Iterator[None]:
    from transformers.utils import logging

    enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if enabled:
            logging.enable_progress_bar()
