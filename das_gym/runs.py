"""Runs: folders `runs/<id>/`, the versions they record, and progress bars."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
        ValueError: names the link.
    """
    inside = (Path(root, name) for root, folders, files in os.walk(folder) for name in (*folders, *files))
    for path in (folder, folder.parent / "_sources", *inside):
        if path.is_symlink():
            raise ValueError(f"{path} is a link, and a run writes into its own folder alone: put a copy in its place")


def read_config(folder: Path) -> dict[str, Any]:
    """The settings of a run, as plain values: nothing in the file is rebuilt but tuples.

    Raises:
        ValueError: what `config.json` holds is something else; an object of Python's, for example.
    """
    path = folder / CONFIG
    settings = _plain(read_json(path), path)
    if not isinstance(settings, dict):
        raise ValueError(f"{path} holds a {type(settings).__name__}, not settings; begin a new run")
    return settings


def _plain(value: Any, path: Path) -> Any:
    """A value as it was before Sacred wrote it: `{"py/tuple": [...]}` is a tuple."""
    if isinstance(value, list):
        return [_plain(each, path) for each in value]
    if not isinstance(value, dict):
        return value
    if value.keys() == {"py/tuple"} and isinstance(value["py/tuple"], list):
        return tuple(_plain(each, path) for each in value["py/tuple"])
    odd = next((name for name in value if name.startswith("py/")), None)
    if odd is not None:
        raise ValueError(f"{path} holds an object of Python's ({odd}), which settings never are; it is not from das_gym")
    return {name: _plain(each, path) for name, each in value.items()}


def library_versions() -> dict[str, str]:
    """Version of Python, of das_gym and of each of `LIBRARIES`; "not installed" where one is missing."""
    versions = {"python": platform.python_version(), "das_gym": das_gym.__version__}
    for name in LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return versions


def progress(total: int, description: str, unit: str = "it", initial: int = 0) -> tqdm:
    """A progress bar on the terminal's own error stream, which Sacred does not capture.

    Args:
        total: Where it ends.
        description: What goes on.
        unit: What is counted.
        initial: Where it starts.
    """
    stream = sys.__stderr__
    calm = stream is None or not stream.isatty()  # a log file gets a line now and then
    return tqdm(
        total=total,
        desc=description,
        unit=unit,
        initial=initial,
        file=stream,
        disable=not is_first(),
        mininterval=5.0 if calm else 0.1,
        dynamic_ncols=not calm,
    )
