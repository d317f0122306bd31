"""Run folders `runs/<id>/`: their settings and locks, finding one, and the versions that they record."""

from __future__ import annotations

import errno
import importlib.metadata
import os
import platform
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
from filelock import FileLock, Timeout

import das_gym
from das_gym.commands.settings import Settings
from das_gym.files import read_json_object

RUNS_DIR = "runs"
CONFIG = "config.json"
COMPARISON = "compare.json"
"""The record of a comparison of agents or of methods."""


USER_ERRORS = (ValueError, TypeError, OSError, FloatingPointError, ImportError, gymnasium.error.Error)
"""Exceptions that wrong settings, broken files and missing libraries raise: commands print the message, no traceback."""


class FailedResultError(ValueError):
    """A result is wrong, though no setting was: the folder of the run stays."""


LIBRARIES = ("torch", "transformers", "gymnasium", "stable_baselines3", "numpy", "sacred")
NOT_INSTALLED = "not installed"

LOCK = ".lock"
"""Name of the lock file in a folder."""

NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP)
"""Errors of file systems without locks, which some clusters have."""


@dataclass(frozen=True, kw_only=True)
class PluginSettings(Settings, group="Run"):
    """The setting of every command; it is read first.

    Attributes:
        plugins: Python modules to import first, for the models, tasks and agents that they register. A text lists several,
            separated by commas.
    """

    plugins: str | tuple[str, ...] = ()


@dataclass(frozen=True)
class RunSettings(PluginSettings, group="Run"):
    """The settings of every command that keeps runs.

    Attributes:
        runs_dir: Folder of all runs. Each run gets a numbered folder in it.
        estimate: Whether to print the expected time and peak memory and stop.
        resume: Id of a stopped run to continue. Its settings are taken from that run.
    """

    runs_dir: str = RUNS_DIR
    estimate: bool = False
    resume: int | None = None


def run_settings(folder: Path) -> dict[str, Any]:
    """Return the settings of a run; empty if its folder has none."""
    path = folder / CONFIG
    return read_json_object(path) if path.is_file() else {}


def runs_dir_setting(folder: Path) -> str:
    """Return `runs_dir=...` as typed on a command line to find the run in `folder`; empty for the default."""
    return "" if folder.parent == Path(RUNS_DIR) else shlex.quote(f"runs_dir={folder.parent}")


def find_run(runs_dir: str | Path, run_id: int | str) -> Path:
    """Return the folder of a run; FileNotFoundError, with the ids that there are, for an unknown one."""
    runs_dir = Path(runs_dir)
    ids = sorted(int(run.parent.name) for run in runs_dir.glob("*/run.json") if run.parent.name.isdecimal())
    if str(run_id) not in map(str, ids):
        known = f"it holds runs {', '.join(map(str, ids))}: give one of them, or" if ids else "it holds no runs: give"
        raise FileNotFoundError(f"no run {run_id!r} in {runs_dir.absolute()}; {known} runs_dir=...")
    return runs_dir / str(run_id)


def check_links(folder: Path) -> None:
    """Raise for a run folder with links, through which a run would write outside of it, or with pipes and devices.

    The folder `_sources` next to it, to which Sacred writes, is checked too.
    """
    inside = (Path(root, name) for root, folders, files in os.walk(folder) for name in (*folders, *files))
    for path in (folder, folder.parent / "_sources", *inside):
        if path.is_symlink():
            raise ValueError(f"{path} is a link, but a run writes only into its own folder. Replace it by a copy.")
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise ValueError(f"{path} is not a regular file. Remove it from the run folder.")


def lock_folder(folder: Path) -> FileLock:
    """Lock a folder and return the lock. The system releases it when the process ends, even if it is killed.

    On a file system without locks, a warning is printed and nothing is locked.
    """
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ValueError(f"another process uses {folder}. Wait for it, or stop it first") from None
    except (OSError, NotImplementedError) as error:
        if isinstance(error, OSError) and error.errno not in NO_LOCKS:
            raise
        print(f"{folder.parent} does not support locks. Use {folder.name} in one process at a time", file=sys.stderr)
    return lock


def library_versions() -> dict[str, str]:
    """Return the versions of Python, das_gym and `LIBRARIES`; `NOT_INSTALLED` for those that are missing."""
    versions = {"python": platform.python_version(), "das_gym": das_gym.__version__}
    for name in LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = NOT_INSTALLED
    return versions
