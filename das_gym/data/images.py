"""Where pictures come from: anything that can be opened is an image to the rest of das_gym."""

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
"""What the names of image files usually end in, in small or capital letters."""


class ImageSource(Protocol):
    """A picture that is read when it is needed."""

    @property
    def key(self) -> str:
        """Tells it from every other image."""
        ...

    def stamp(self) -> str:
        """Changes when the picture does, as far as that is cheap to know."""
        ...

    def open(self) -> Image:
        """The picture, mode RGB, fully decoded.

        Raises:
            FileNotFoundError: it is not there.
            ValueError: it is damaged; the text names file and entry.
        """
        ...


@dataclass(frozen=True, slots=True)
class ImageFile:
    """A picture in a file of its own.

    Attributes:
        path: The file, in a format that `das_gym.data.decoding` reads.
    """

    path: Path

    @property
    def key(self) -> str:
        """The path."""
        return str(self.path)

    def stamp(self) -> str:
        """Size and time of change."""
        stat = self.path.stat()
        return f"{stat.st_size} {stat.st_mtime_ns}"

    def open(self) -> Image:
        """See `das_gym.data.decoding.load_image`."""
        return load_image(self.path)


def is_folder(path: Path) -> bool:
    """Whether there is such a folder; nothing is called by a name that is too long."""
    try:
        return path.is_dir()
    except OSError:
        return False


def files_in(folder: str | Path) -> frozenset[str]:
    """Names of the files in a folder, by one listing; folders and dangling links are none. Empty where it is not there."""
    try:
        with os.scandir(folder) as listing:
            return frozenset(
                entry.name for entry in listing if entry.is_file(follow_symlinks=False) or Path(entry).is_file()
            )
    except (OSError, ValueError):  # no folder can be called so
        return frozenset()


@dataclass(frozen=True)
class Listings:
    """Finds files among several places; each folder is listed once."""

    _names: dict[Path, frozenset[str]] = field(default_factory=dict)

    def has(self, path: Path) -> bool:
        """Whether there is such a file."""
        folder = path.parent
        if folder not in self._names:
            self._names[folder] = files_in(folder)
        return path.name in self._names[folder]

    def first_of(self, paths: Sequence[Path]) -> Path:
        """The first file that is there; where none is, the first whose folder is, or the first.

        Args:
            paths: One or more.
        """
        there = (path for path in paths if self.has(path))
        return next(there, next((path for path in paths if is_folder(path.parent)), paths[0]))
