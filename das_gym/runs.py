"""Runs: folders `runs/<id>/` and the versions that they record."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import gymnasium

import das_gym
from das_gym.files import read_json

RUNS_DIR = "runs"
CONFIG = "config.json"
MISTAKES = (ValueError, TypeError, OSError, FloatingPointError, gymnasium.error.Error)
"""What a wrong setting or a broken file raises: told in one paragraph, without a traceback."""

LIBRARIES = ("torch", "transformers", "gymnasium", "stable_baselines3", "numpy", "sacred")


@dataclass(frozen=True)
class RunSettings:
    """What the settings of all commands that keep runs have in common.

    Attributes:
        runs_dir: Folder of all runs. Each run gets a numbered folder in it.
        use: Python modules to import first, for the models, tasks and agents that they register.
    """

    group: ClassVar[str] = "Run"

    runs_dir: str = RUNS_DIR
    use: tuple[str, ...] = ()


@dataclass(frozen=True)
class ResumableSettings(RunSettings):
    """Those of commands that can go on with a stopped run.

    Attributes:
        resume: Id of a stopped run to continue. Its settings are taken from that run.
    """

    group: ClassVar[str] = "Run"

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
        there = f"it holds runs {', '.join(map(str, ids))}: give one of them, or" if ids else "it holds no runs: give"
        raise FileNotFoundError(f"no run {run_id!r} in {runs_dir.absolute()}; {there} runs_dir=...")
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
            raise ValueError(f"{path} is not a regular file, which no run writes. Remove it")


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
