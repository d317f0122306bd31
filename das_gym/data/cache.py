"""Where das_gym keeps what it generates once and uses again."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs

from das_gym.files import absolute

CACHE_VARIABLE = "DAS_GYM_CACHE"
"""The environment variable that moves the cache folder."""


def cache_folder() -> Path:
    """The cache folder, absolute; it need not exist yet.

    Returns:
        The folder named by the environment variable DAS_GYM_CACHE where that is set and not empty, else
        the user's cache folder of the operating system, such as `~/.cache/das_gym`.

    Raises:
        ValueError: DAS_GYM_CACHE names something that is not a folder; or it is not set, and the person has no home.
    """
    named = os.environ.get(CACHE_VARIABLE, "").strip()
    if not named:
        try:
            usual = platformdirs.user_cache_path("das_gym", appauthor=False)
        except RuntimeError:  # of newer versions; older ones name the working folder, which may be anybody's
            usual = Path()
        if not usual.is_absolute():
            raise ValueError(f"no home folder is known to keep a cache in: set {CACHE_VARIABLE} to a folder of your own")
        return usual
    folder = absolute(named)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{CACHE_VARIABLE}={named} is a file; set it to a folder that das_gym may write to, or unset it")
    return folder
