"""The observer that keeps a Sacred run in `runs/<id>/`, written so that a kill or a full disk damages no file."""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", message="pkg_resources is deprecated")  # sacred 0.8.7 imports it
    warnings.filterwarnings("ignore", category=DeprecationWarning)  # and calls pkgutil.find_loader on Python 3.12
    from sacred.observers import FileStorageObserver
    from sacred.serializer import flatten

from filelock import FileLock

from das_gym.commands.runs import LOCK, lock_folder
from das_gym.commands.settings import plain
from das_gym.files import write_text

RUN = "run.json"
"""What Sacred records of a run."""

INFO = "info.json"
"""Sacred writes it only if it has content; incense, which reads run folders, always needs it."""

SACRED_FILES = {"config.json", "cout.txt", INFO, "metrics.json", RUN, LOCK}
"""Files of a run folder before its command has written anything."""


class RunError(ValueError):
    """A user error: its message is printed without a traceback, and the exit code is 1."""


def lock_run(folder: Path) -> FileLock:
    """Lock a run folder for this process and return the lock, see `das_gym.commands.runs`."""
    try:
        return lock_folder(folder)
    except ValueError as error:
        raise RunError(str(error)) from None
    except OSError as error:
        raise not_writable(folder.parent, error) from None


def not_writable(runs_dir: str | Path, error: OSError) -> RunError:
    """Return the error of a folder of runs that cannot be written to."""
    return RunError(f"runs_dir={runs_dir} cannot be written to ({error.strerror}); give another folder")


class RunFolder(FileStorageObserver):
    """Keeps a run in `<runs_dir>/<id>/`. Each of its JSON files is written completely or not at all.

    A database numbers runs by itself. This observer comes last, so that the run's id is the folder's.

    Args:
        runs_dir: Folder of all runs.
        reopen: Folder of a stopped run to continue, instead of a new one.
        on_started: Called with the id, once the folder exists.
    """

    cout: str

    def __init__(self, runs_dir: str | Path, reopen: Path | None, on_started: Callable[[str], object]) -> None:
        super().__init__(runs_dir)
        self.priority = -100
        self.had_base = Path(runs_dir).exists()
        self.reopen = reopen
        self.on_started = on_started
        self.lock: FileLock | None = None
        self.keeps_traceback = True
        self.run_entry: dict[str, Any] = {}  # Sacred reports the failure of a run whose folder could not be made here

    def _make_run_dir(self, _id: str | None) -> None:
        try:
            if self.reopen is None:
                super()._make_run_dir(_id)
            else:
                (self.reopen / "metrics.json").unlink(missing_ok=True)  # the run logs them again
                self.dir = str(self.reopen)
        except OSError as error:
            raise not_writable(self.basedir, error) from None
        if self.dir is not None and self.reopen is None:
            self.lock = lock_run(Path(self.dir))

    @property
    def is_untouched(self) -> bool:
        """Whether the command has not written anything into its new folder yet."""
        return self.reopen is None and {path.name for path in Path(self.dir).iterdir()} <= SACRED_FILES

    @property
    def traceback_hint(self) -> str:
        """A line for error messages; empty where the disk was too full for the traceback."""
        return f"\n(the whole traceback is in {Path(self.dir) / RUN})" if self.keeps_traceback else ""

    def discard(self) -> None:
        """Remove the folder, and Sacred's copies of the sources if no other run needs them."""
        shutil.rmtree(self.dir)
        base = Path(self.basedir)
        if {path.name for path in base.iterdir()} <= {Path(self.source_dir).name}:
            shutil.rmtree(self.source_dir, ignore_errors=True)
            if not self.had_base:
                base.rmdir()

    def started_event(self, *args: Any, **kwargs: Any) -> Any:
        """Start the run as Sacred does. Remove the run folder after an error or an interrupt."""
        try:
            id = super().started_event(*args, **{**kwargs, "_id": None})
            if not (Path(self.dir) / INFO).exists():
                self.save_json({}, INFO)
            self.on_started(id)
            return id
        except (OSError, RunError, KeyboardInterrupt) as error:
            if self.reopen is None and self.dir is not None:
                shutil.rmtree(self.dir, ignore_errors=True)
            self.dir = None  # type: ignore[assignment]  # as Sacred's own begins
            raise not_writable(self.basedir, error) if isinstance(error, OSError) else error from None

    def save_cout(self) -> None:
        """Write the output as Sacred does, also where file names in it are not UTF-8."""
        self.cout = self.cout.encode("utf-8", "replace").decode("utf-8")
        super().save_cout()

    def save_json(self, obj: Any, filename: str) -> None:
        """Write a file atomically and as plain JSON: tuples become lists. A full disk does not keep a run's status back."""
        if self.dir is None:
            return
        path = Path(self.dir) / os.fspath(filename)
        values = flatten(plain(obj))
        try:
            write_text(path, json.dumps(values, sort_keys=True, indent=2))
        except OSError:
            if path.name != RUN or not write_in_place(path, json.dumps(values | {"fail_trace": []}, sort_keys=True)):
                raise
            self.keeps_traceback = False


def write_in_place(path: Path, text: str) -> bool:
    """Overwrite a file by a text that takes no more room than it; return False if it does."""
    data, size = text.encode("utf-8", "replace"), path.stat().st_size if path.exists() else 0
    if len(data) > size:
        return False
    with path.open("r+b") as file:
        file.write(data.ljust(size))
    return True
