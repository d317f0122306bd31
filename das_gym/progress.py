"""Progress: a bar on a terminal, plain lines elsewhere, such as in the log of a job on a cluster."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Timer
from time import monotonic, time
from typing import Any, ClassVar, TextIO

from tqdm import tqdm

from das_gym.processes import is_main_process

DELAY = 2.0
"""Seconds of work before a bar is shown."""

MIN_PAUSE, MAX_PAUSE = 30.0, 600.0
"""Seconds between two lines: a twentieth of the time that the work has taken, within these bounds."""


def progress(total: int, description: str, unit: str = "it", initial: int = 0) -> Progress:
    """Return a progress bar, or what prints lines where standard error is no terminal; only the main process shows any.

    It writes to the process's own standard error, which Sacred does not capture.

    Args:
        total: Where it ends.
        description: What goes on.
        unit: What is counted, singular.
        initial: Where it starts.
    """
    stream = sys.__stderr__ if is_main_process() else None
    if stream is None or not stream.isatty():
        return Lines(total, description, unit, initial, stream)
    return Bar(total=total, desc=description, unit=unit, initial=initial, file=stream, dynamic_ncols=True, leave=None)


class Lines:
    """Progress as plain lines, each of all that goes on: the first one when the outermost work has taken 30 s."""

    _open: ClassVar[list[Lines]] = []
    _last_line: ClassVar[float] = 0.0

    def __init__(self, total: int, description: str, unit: str, initial: int, stream: TextIO | None) -> None:
        self.total, self.description, self.unit = total, description, unit
        self.n: float = initial
        self._done_before: float = initial
        self.stream = stream
        self.postfix = ""
        self.start = self._speed_from = monotonic()
        if not Lines._open:
            Lines._last_line = self.start
        Lines._open.append(self)

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def set_postfix_str(self, text: str, refresh: bool = True) -> None:
        """Set what is shown beside the counts, as tqdm's method does; it is printed with the next line."""
        del refresh
        self.postfix = text

    def update(self, n: float = 1) -> None:
        """Count, and print a line if it is time for one."""
        self.n += n
        now = monotonic()
        if now - self.start < 1:  # a resumed search counts at once what it had done: that is not its speed
            self._done_before, self._speed_from = self.n, now
        elapsed = now - Lines._open[0].start
        if now - Lines._last_line >= min(max(MIN_PAUSE, elapsed / 20), MAX_PAUSE):
            self._print(" | ".join(map(str, Lines._open)))

    def close(self) -> None:
        """End; the outermost work prints how far it came if it has printed before."""
        if self in Lines._open:
            Lines._open.remove(self)
            if not Lines._open and Lines._last_line > self.start:
                self._print(str(self))

    def _print(self, line: str) -> None:
        Lines._last_line = monotonic()
        if self.stream is not None:
            print(line, file=self.stream, flush=True)

    def __str__(self) -> str:
        """Return `fine-tuning: 120/300 steps (40 %), loss 0.412, elapsed 00:45, remaining 01:07`."""
        now, done = monotonic(), self.n - self._done_before
        parts = [f"{self.description}: {self.n:g}/{self.total} {self.unit}s ({100 * self.n / max(self.total, 1):.0f} %)"]
        parts += [self.postfix] if self.postfix else []
        parts += [f"elapsed {tqdm.format_interval(now - self.start)}"]
        if done > 0 and self.n < self.total:
            parts += [f"remaining {tqdm.format_interval((now - self._speed_from) * (self.total - self.n) / done)}"]
        return ", ".join(parts)


class Bar(tqdm):
    """A tqdm bar that is shown after `DELAY` seconds, and below what is printed meanwhile.

    tqdm itself ignores its `delay` when a postfix is set or when somebody prints.
    """

    _open: ClassVar[list[Bar]] = []

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings, delay=DELAY)
        if not Bar._open:
            sys.stdout, sys.stderr = _Above(sys.stdout), _Above(sys.stderr)
        Bar._open.append(self)

    def _shown(self) -> bool:
        return not self.disable and time() >= self.start_t + DELAY

    def refresh(self, *args: Any, **settings: Any) -> Any:
        """As tqdm's own; not before the bar is to be seen."""
        if not self._shown():
            return None
        self.last_print_t = time()  # or `close` takes it for one that was never seen
        return super().refresh(*args, **settings)

    def clear(self, *args: Any, **settings: Any) -> None:
        """As tqdm's own; not before the bar is to be seen."""
        if self._shown():
            super().clear(*args, **settings)

    def close(self) -> None:
        """As tqdm's own; the last bar gives the streams back."""
        super().close()
        if self in Bar._open:
            Bar._open.remove(self)
            for name in ("stdout", "stderr") if not Bar._open else ():
                stream = getattr(sys, name)
                if isinstance(stream, _Above):
                    setattr(sys, name, stream.end())


class _Above:
    """A stream whose lines, once they are whole, are written above the bars."""

    def __init__(self, stream: Any) -> None:
        self._stream, self._rest = stream, ""

    def write(self, text: str) -> int:
        lines, end, self._rest = (self._rest + text).rpartition("\n")
        if end:
            with tqdm.external_write_mode(file=sys.__stderr__):
                self._stream.write(lines + end)
                self._stream.flush()
        return len(text)

    def end(self) -> Any:
        """The stream itself, with what was not a whole line yet."""
        self._stream.write(self._rest)
        return self._stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


Progress = Bar | Lines


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """Say what takes so long where nothing can be counted: soon on a terminal, where it is then wiped, else after 30 s.

    Args:
        what: Goes on within, in a word or three.
    """
    stream = sys.__stderr__ if is_main_process() else None
    if stream is None:
        yield
        return
    line = f"{what} ..."
    delay, end = (DELAY, "\r") if stream.isatty() else (MIN_PAUSE, "\n")
    timer = Timer(delay, lambda: print(line, end=end, file=stream, flush=True))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()
        if end == "\r":
            print(" " * len(line), end="\r", file=stream, flush=True)
