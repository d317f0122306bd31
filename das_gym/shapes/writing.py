"""Writing a generated data set: whole or not at all, and once for all processes."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from filelock import FileLock
from PIL.Image import Image

from das_gym.data.cache import CACHE_VARIABLE, cache_folder
from das_gym.files import absolute

JPEG_QUALITY = 95


def jpeg(picture: Image) -> bytes:
    """The picture as a JPEG file."""
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()


class NewPictures:
    """Tells pictures that did not occur before by their bytes."""

    def __init__(self) -> None:
        self._seen: set[bytes] = set()

    def add(self, content: bytes) -> bool:
        """Whether the picture is new; from now on it is not."""
        digest = hashlib.blake2b(content, digest_size=16).digest()
        new = digest not in self._seen
        self._seen.add(digest)
        return new


def new_folder(folder: str | Path, what: str = "data") -> Path:
    """The folder as an absolute path.

    Args:
        folder: Where `what` is to be written.
        what: Names it in errors.

    Raises:
        FileExistsError: It holds something.
    """
    folder = absolute(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(
            f"{folder} exists already; {what} is written to a new or an empty folder: name another, or delete it"
        )
    return folder


def check_scenes(seed: int, scenes: Mapping[str, int], parts: Iterable[str], least: int = 1) -> None:
    """Refuse a seed below 0, and scenes of other parts or of fewer than `least`.

    Raises:
        ValueError: A number is out of its range.
    """
    if seed < 0:
        raise ValueError(f"seed={seed}; a seed is 0 or more")
    if set(scenes) != set(parts) or min(scenes.values()) < least:
        raise ValueError(f"scenes={dict(scenes)}; give {', '.join(parts)}, {least} or more of each")


def bundled_root(name: str, write: Callable[[Path], object], what: str, cache: str | Path | None = None) -> Path:
    """The folder of a bundled data set, written on first use; safe with many processes at once.

    Args:
        name: Of the folder.
        write: Writes it, whole or not at all.
        what: Names the data set in errors.
        cache: The cache folder; None is `cache_folder()`.

    Raises:
        ValueError: The cache folder cannot be written to.
    """
    folder = cache_folder() if cache is None else absolute(cache)
    return written_once(folder / name, write, what)


def written_once(folder: Path, write: Callable[[Path], object], what: str) -> Path:
    """The folder, written by whichever process comes first; what a killed one left beside it is swept away.

    Args:
        folder: Absolute.
        write: Writes it, whole or not at all.
        what: Names the data set in errors.

    Raises:
        ValueError: It cannot be written.
    """
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if not folder.is_dir():
                write(folder)
    except OSError as error:
        raise ValueError(
            f"{what} cannot be written to {folder.parent} ({error}); set {CACHE_VARIABLE} to a writable folder"
        ) from error
    return folder
