"""Locks that let one process at a time work in a folder."""

from __future__ import annotations

import errno
import sys
from pathlib import Path

from filelock import FileLock, Timeout

LOCK = ".lock"
"""Name of the lock file in a folder."""

NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP)
"""Errors of file systems without locks, which some clusters have."""


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


def is_locked(folder: Path) -> bool | None:
    """Return whether a process has locked a folder; None if it cannot be known: no locks, no permission, or a link."""
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
