"""Runs: folders `runs/<id>/`, the versions they record, and progress bars."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Timer
from time import time
from typing import Any, ClassVar

import gymnasium
from tqdm import tqdm

import das_gym
from das_gym.files import read_json
from das_gym.processes import is_first

RUNS_DIR = "runs"
CONFIG = "config.json"
MISTAKES = (ValueError, TypeError, OSError, FloatingPointError, gymnasium.error.Error)
"""What a wrong setting or a broken file raises: told in one paragraph, without a traceback."""

LIBRARIES = ("torch", "transformers", "gymnasium", "stable_baselines3", "numpy", "sacred")


@dataclass(frozen=True)
class RunSettings:
    """What the settings of all commands that keep runs have in common.

    Attributes:
        runs_dir: Folder of all runs.
        use: Modules of one's own to import first, for what they register.
    """

    runs_dir: str = RUNS_DIR
    use: tuple[str, ...] = ()


@dataclass(frozen=True)
class ResumableSettings(RunSettings):
    """Those of commands that can go on with a stopped run.

    Attributes:
        resume: Id of a stopped run to go on with, or None.
    """

    resume: int | None = None


def runs_dir_words(folder: Path) -> str:
    """The setting `runs_dir` as it is typed to find the run in `folder`; empty for the usual place."""
    return "" if folder.parent == Path(RUNS_DIR) else shlex.quote(f"runs_dir={folder.parent}")


def find_run(runs_dir: str | Path, run_id: int | str) -> Path:
    """The folder of run `run_id`.

    Raises:
        FileNotFoundError: there is none; the message lists those that exist.
    """
    runs_dir = Path(runs_dir)
    ids = sorted(int(run.parent.name) for run in runs_dir.glob("*/run.json") if run.parent.name.isdecimal())
    if str(run_id) not in map(str, ids):
        there = f"it holds runs {', '.join(map(str, ids))}" if ids else "it holds no runs"
        raise FileNotFoundError(f"no run {run_id!r} in {runs_dir.absolute()}; {there}: give one of them, or runs_dir=...")
    return runs_dir / str(run_id)


def check_links(folder: Path) -> None:
    """Refuse a run folder through whose links something elsewhere would be written; a folder `_sources` beside it counts.

    Raises:
        ValueError: names the link, or the pipe or device, which would be waited for.
    """
    inside = (Path(root, name) for root, folders, files in os.walk(folder) for name in (*folders, *files))
    for path in (folder, folder.parent / "_sources", *inside):
        if path.is_symlink():
            raise ValueError(f"{path} is a link, and a run writes into its own folder alone: put a copy in its place")
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise ValueError(f"{path} is a pipe or a device, which no run writes: take it away")


def read_config(folder: Path) -> dict[str, Any]:
    """Read the settings of a run, as plain values.

    Raises:
        ValueError: `config.json` holds something else.
    """
    path = folder / CONFIG
    settings = read_json(path)
    if not isinstance(settings, dict):
        raise ValueError(f"{path} holds a {type(settings).__name__}, not settings; begin a new run")
    return settings


MISSING = "not installed"
"""The version of a library that is not there."""


def library_versions() -> dict[str, str]:
    """Version of Python, of das_gym and of each of `LIBRARIES`; `MISSING` where one is."""
    versions = {"python": platform.python_version(), "das_gym": das_gym.__version__}
    for name in LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = MISSING
    return versions


DELAY = 2.0
"""Seconds of work before its bar is shown."""


class Bar(tqdm):
    """A progress bar with the time that is left: shown once its work has taken a while, and below what is printed."""

    _open: ClassVar[list[Bar]] = []

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings, delay=DELAY)
        if not self.disable and not Bar._open:
            sys.stdout, sys.stderr = _Above(sys.stdout), _Above(sys.stderr)
        if not self.disable:
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


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """Say on a terminal what takes so long, where nothing can be counted; what is printed then takes its place.

    Args:
        what: Goes on within, in a word or three.
    """
    stream, shown = sys.__stderr__, f"{what} ...\r"
    if stream is None or not stream.isatty():
        yield
        return
    timer = Timer(DELAY, lambda: print(shown, end="", file=stream, flush=True))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()
        print(" " * len(shown), end="\r", file=stream, flush=True)


def progress(total: int, description: str, unit: str = "it", initial: int = 0) -> Bar:
    """A progress bar on the terminal's own error stream, which Sacred does not capture; nothing where that is no terminal.

    Args:
        total: Where it ends.
        description: What goes on.
        unit: What is counted.
        initial: Where it starts.
    """
    stream = sys.__stderr__
    return Bar(
        total=total,
        desc=description,
        unit=unit,
        initial=initial,
        file=stream,
        disable=stream is None or not stream.isatty() or not is_first(),
        dynamic_ncols=True,
    )
