"""Progress: a bar on a terminal, else lines, as for the log of a job on a cluster."""

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
"""Bounds of the seconds between two lines, which are a twentieth of the elapsed time."""


def progress(total: int, description: str, unit: str = "it", initial: int = 0) -> Progress:
    """Return a progress bar, or `ProgressLines` if standard error is not a terminal. Only the main process prints.

    Both write to the original standard error, which Sacred does not capture.

    Args:
        total: Final count.
        description: Title.
        unit: Singular noun of what is counted.
        initial: First count.
    """
    stream = sys.__stderr__ if is_main_process() else None
    if stream is None or not stream.isatty():
        return ProgressLines(total, description, unit, initial, stream)
    return Bar(total=total, desc=description, unit=unit, initial=initial, file=stream, dynamic_ncols=True, leave=None)


class ProgressLines:
    """Progress as lines, each about all open tasks. The first is printed after the outermost task has run for 30 s."""

    _open: ClassVar[list[ProgressLines]] = []
    _last_line: ClassVar[float] = 0.0

    def __init__(self, total: int, description: str, unit: str, initial: int, stream: TextIO | None) -> None:
        self.total, self.description, self.unit = total, description, unit
        self.n: float = initial
        self._done_before: float = initial
        self.stream = stream
        self.postfix = ""
        self.start = self._speed_from = monotonic()
        if not ProgressLines._open:
            ProgressLines._last_line = self.start
        ProgressLines._open.append(self)

    def __enter__(self) -> ProgressLines:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def set_postfix_str(self, text: str, refresh: bool = True) -> None:
        """Set a text that is printed next to the counts with the next line, like the method of tqdm."""
        del refresh
        self.postfix = text

    def update(self, n: float = 1) -> None:
        """Increase the count, and print a line if one is due."""
        self.n += n
        now = monotonic()
        if now - self.start < 1:  # a resumed search counts its earlier work at once; leave it out of the speed
            self._done_before, self._speed_from = self.n, now
        elapsed = now - ProgressLines._open[0].start
        if now - ProgressLines._last_line >= min(max(MIN_PAUSE, elapsed / 20), MAX_PAUSE):
            self._print(" | ".join(map(str, ProgressLines._open)))

    def close(self) -> None:
        """Finish the task. The outermost one prints a last line if it has printed before."""
        if self in ProgressLines._open:
            ProgressLines._open.remove(self)
            if not ProgressLines._open and ProgressLines._last_line > self.start:
                self._print(str(self))

    def _print(self, line: str) -> None:
        ProgressLines._last_line = monotonic()
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
    """A tqdm bar that appears after `DELAY` seconds and stays below printed text.

    tqdm ignores its own `delay` when a postfix is set or text is printed.
    """

    _open: ClassVar[list[Bar]] = []

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings, delay=DELAY)
        if not Bar._open:
            sys.stdout, sys.stderr = _Above(sys.stdout), _Above(sys.stderr)
        Bar._open.append(self)

    def _is_visible(self) -> bool:
        return not self.disable and time() >= self.start_t + DELAY

    def refresh(self, *args: Any, **settings: Any) -> Any:
        """Do as tqdm does, once the bar is visible."""
        if not self._is_visible():
            return None
        self.last_print_t = time()  # or `close` takes the bar for an invisible one
        return super().refresh(*args, **settings)

    def clear(self, *args: Any, **settings: Any) -> None:
        """Do as tqdm does, once the bar is visible."""
        if self._is_visible():
            super().clear(*args, **settings)

    def close(self) -> None:
        """Close the bar. The last one restores the streams."""
        super().close()
        if self in Bar._open:
            Bar._open.remove(self)
            for name in ("stdout", "stderr") if not Bar._open else ():
                stream = getattr(sys, name)
                if isinstance(stream, _Above):
                    setattr(sys, name, stream.end())


class _Above:
    """A stream that writes complete lines above the bars."""

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
        """Write the incomplete last line, and return the original stream."""
        self._stream.write(self._rest)
        return self._stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


Progress = Bar | ProgressLines


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """Print a description while the body runs: after 2 s on a terminal, where it is erased afterwards, else after 30 s.

    Args:
        what: The description, a few words.
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
