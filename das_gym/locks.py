"""One process at a time in a folder."""

from __future__ import annotations

import errno
import sys
from pathlib import Path

from filelock import FileLock, Timeout

LOCK = ".lock"
"""The file of a folder that says that a process is at work in it."""

NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP)
"""What file systems without locks, some of those of clusters, answer."""


def lock_folder(folder: Path) -> FileLock:
    """The lock of a folder, taken; it is released when its process ends, however that comes about.

    Where the file system knows no locks it is not taken, and a line says so.

    Raises:
        ValueError: another process has it.
        OSError: nothing can be written there.
    """
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ValueError(f"another process is at work in {folder}: wait for it, or stop it and then go on") from None
    except (OSError, NotImplementedError) as error:
        if isinstance(error, OSError) and error.errno not in NO_LOCKS:
            raise
        print(f"{folder.parent} knows no locks: let no two processes work in {folder.name} at a time", file=sys.stderr)
    return lock


def is_locked(folder: Path) -> bool | None:
    """Return whether a process works in a folder; None where that cannot be known: no locks, no permission, or a link."""
    if not (folder / LOCK).exists():
        return False
    if (folder / LOCK).is_symlink():
        return None  # filelock 3.13 empties the file that it leads to
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    except (OSError, NotImplementedError):
        return None
    lock.release()
    return False
