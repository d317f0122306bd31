"""Image sources: what a reader of data gives instead of pixels. Anything that can be opened is an image to das_gym."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from das_gym.data.decoding import load_image

if TYPE_CHECKING:
    from PIL.Image import Image


SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")
"""Usual suffixes of image files, in lower case."""


class ImageSource(Protocol):
    """An image that is read when it is needed."""

    @property
    def key(self) -> str:
        """A name that is unique to the image."""
        ...

    def stamp(self) -> str:
        """Return a text that changes when the image changes, as far as that is cheap to know."""
        ...

    def open(self) -> Image:
        """Return the image, mode RGB, fully decoded.

        Raises:
            FileNotFoundError: it does not exist.
            ValueError: it is damaged; the message names it.
        """
        ...


class OneImage:
    """An example or a row of a batch with a single image."""

    __slots__ = ()
    image: ImageSource

    @property
    def images(self) -> tuple[ImageSource, ...]:
        """The image, in a tuple."""
        return (self.image,)


@dataclass(frozen=True, slots=True)
class ImageFile:
    """An image file.

    Example:
        >>> from pathlib import Path
        >>> from das_gym.data.images import ImageFile
        >>> ImageFile(Path("images/1.jpg")).key
        'images/1.jpg'

    Attributes:
        path: The file, in a format that `das_gym.data.decoding` reads.
    """

    path: Path

    @property
    def key(self) -> str:
        """The path."""
        return str(self.path)

    def stamp(self) -> str:
        """Return size and modification time."""
        stat = self.path.stat()
        return f"{stat.st_size} {stat.st_mtime_ns}"

    def size(self) -> int:
        """Return the size of the file in bytes."""
        return self.path.stat().st_size

    def read(self, last: int | None = None) -> bytes:
        """Return the bytes of the file, or at most the `last` ones."""
        with self.path.open("rb") as file:
            if last is not None:
                file.seek(max(0, self.size() - last))
            return file.read()

    def open(self) -> Image:
        """Decode the file; see `das_gym.data.decoding.load_image`."""
        return load_image(self.path)


def is_folder(path: Path) -> bool:
    """Return whether a folder exists; False for a path that the system rejects, such as one that is too long."""
    try:
        return path.is_dir()
    except OSError:
        return False


def files_in(folder: str | Path) -> frozenset[str]:
    """Return the names of the files in a folder, with one listing; empty where the folder does not exist."""
    try:
        with os.scandir(folder) as listing:
            return frozenset(
                entry.name for entry in listing if entry.is_file(follow_symlinks=False) or Path(entry).is_file()
            )
    except (OSError, ValueError):  # ValueError: a path with a zero byte
        return frozenset()


@dataclass(frozen=True)
class FolderListings:
    """Finds files among several candidate paths; lists each folder once."""

    _names: dict[Path, frozenset[str]] = field(default_factory=dict)

    def has(self, path: Path) -> bool:
        """Return whether a file exists."""
        if path.parent not in self._names:
            self._names[path.parent] = files_in(path.parent)
        return path.name in self._names[path.parent]

    def first_of(self, paths: Sequence[Path]) -> Path:
        """Return the first path that exists; else the first whose folder exists; else the first."""
        found = next(filter(self.has, paths), None)
        return found or next((path for path in paths if is_folder(path.parent)), paths[0])


@dataclass(frozen=True, slots=True)
class NoiseImage:
    """An image of random pixels, the same for the same seed, on which two forms of a model are compared."""

    seed: int
    width: int = 64
    height: int = 48

    @property
    def key(self) -> str:
        """Its seed and size."""
        return f"noise {self.seed} {self.width} {self.height}"

    def stamp(self) -> str:
        """Return an empty text, since it never changes."""
        return ""

    def open(self) -> Image:
        """Return the image."""
        import numpy as np
        from PIL import Image

        pixels = np.random.default_rng(self.seed).integers(0, 256, (self.height, self.width, 3), dtype=np.uint8)
        return Image.fromarray(pixels)
