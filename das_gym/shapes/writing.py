"""Write generated data sets: complete or not at all, and once for all processes."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock
from PIL.Image import Image
from tqdm import tqdm

from das_gym.commands.progress import progress
from das_gym.files import CACHE_VARIABLE, absolute, cache_folder, replacing_folder

JPEG_QUALITY = 95


def jpeg(image: Image) -> bytes:
    """Return an image as the content of a JPEG file."""
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()


class NewImages:
    """Recognizes images that did not occur before by their bytes."""

    def __init__(self) -> None:
        self._seen: set[bytes] = set()

    def add(self, content: bytes) -> bool:
        """Return whether an image is new, and remember it."""
        digest = hashlib.blake2b(content, digest_size=16).digest()
        new = digest not in self._seen
        self._seen.add(digest)
        return new


def check_counts(least: int, **counts: int) -> None:
    """Raise ValueError for a number below `least`."""
    for name, count in counts.items():
        if count < least:
            raise ValueError(f"wrong `{name}`: got {count}, expected {least} or more")


@contextmanager
def new_data_set(folder: Path, title: str, total: int, unit: str = "scene") -> Iterator[tuple[Path, tqdm]]:
    """Yield a folder that becomes the new or empty `folder` (else FileExistsError) after the block, and a progress bar."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} exists, expected a new or empty folder for {title}")
    with replacing_folder(folder) as partial, progress(total, f"drawing {title}", unit) as bar:
        yield partial, bar


def bundled_root(name: str, write: Callable[[Path], object], title: str, cache: str | Path | None = None) -> Path:
    """Return the folder of a bundled data set, which the first process writes completely, or raises ValueError."""
    folder = (cache_folder() if cache is None else absolute(cache)) / name
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        # Several processes may need the data at once: one writes, the others wait and look again.
        with FileLock(f"{folder}.lock"):
            if not folder.is_dir():
                write(folder)
    except OSError as error:
        message = f"{title} cannot be written to {folder.parent} ({error}). Set {CACHE_VARIABLE} to a writable folder"
        raise ValueError(message) from error
    return folder
