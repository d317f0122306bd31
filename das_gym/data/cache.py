"""The cache folder: what das_gym generates once and uses again."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs

from das_gym.files import absolute

CACHE_VARIABLE = "DAS_GYM_CACHE"
"""The environment variable that moves the cache folder."""


def cache_folder() -> Path:
    """Return the absolute cache folder: DAS_GYM_CACHE, else the operating system's. ValueError if it cannot be one."""
    setting = os.environ.get(CACHE_VARIABLE, "").strip()
    if setting:
        folder = absolute(setting)
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"{CACHE_VARIABLE} is not a folder: got {setting}, expected a writable folder")
        return folder
    try:
        folder = platformdirs.user_cache_path("das_gym", appauthor=False)
    except RuntimeError:  # newer versions of platformdirs; older ones return a relative path
        folder = Path()
    if not folder.is_absolute():
        raise ValueError(f"there is no home folder for the cache. Set {CACHE_VARIABLE} to a writable folder")
    return folder
