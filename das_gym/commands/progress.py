"""Progress: a bar on a terminal, else a line a minute, as for the log of a job on a cluster."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from typing import Any, ClassVar

from tqdm import tqdm
from tqdm.contrib import DummyTqdmFile

from das_gym.processes import is_main_process

PAUSE = 60.0
"""Seconds between two lines, and of work before the first."""

LINE = "{desc}: {n:g}/{total} {unit}s ({percentage:.0f} %){postfix}, elapsed {elapsed}, remaining {remaining}"
"""The format of a line, with tqdm's names."""


def progress(total: int, description: str, unit: str = "it", initial: int = 0) -> tqdm:
    """Return a progress bar, or `ProgressLines` if standard error is not a terminal. Only the main process prints.

    Both write to the original standard error, which Sacred does not capture. `unit` is the singular of what is counted.
    """
    stream = sys.__stderr__ if is_main_process() else None
    kind = Bar if stream is not None and stream.isatty() else ProgressLines
    return kind(total=total, desc=description, unit=unit, initial=initial, file=stream, disable=stream is None)


class ProgressLines(tqdm):
    """Progress as a line a minute; the outermost of several tasks prints a last line, too."""

    monitor_interval = 0  # no thread is needed: `update` prints

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings, bar_format=LINE, delay=PAUSE, mininterval=PAUSE, miniters=1, leave=None)

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Print a line where tqdm draws a bar; tqdm calls it with an empty `msg` to erase one."""
        del pos
        if msg is None:
            # `close` disables the bar first, and ends the last line itself.
            print(self, end="" if self.disable else "\n", file=self.fp, flush=True)


class _Above(DummyTqdmFile):
    """A stream that writes complete lines above the bars."""

    def write(self, x: str, nolock: bool = False) -> None:
        # tqdm would clear the bars, which are on standard error, only for lines on standard error.
        with tqdm.external_write_mode(file=sys.__stderr__) if "\n" in x else nullcontext():
            super().write(x, nolock)


class Bar(tqdm):
    """A tqdm bar that stays below printed text, and disappears when it ends."""

    _open: ClassVar[list[Bar]] = []
    _streams: ClassVar[tuple[Any, Any]]

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings, dynamic_ncols=True, leave=False)
        if not Bar._open:
            Bar._streams = sys.stdout, sys.stderr
            sys.stdout, sys.stderr = (_Above(stream) for stream in Bar._streams)
        Bar._open.append(self)

    def close(self) -> None:
        """Close the bar. The last one restores the streams."""
        super().close()
        if self in Bar._open:
            Bar._open.remove(self)
            if not Bar._open:
                sys.stdout, sys.stderr = Bar._streams
