"""Finds the image files of a data set whose entries name them relative to a folder that nobody tells."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from das_gym.data.checks import check_text
from das_gym.data.images import ImageFile, files_in, is_folder

IMAGE_FOLDERS = ("", "images", "imgs", "image", "img")
"""Where images are looked for first, beside the file that names them, in the data root and one folder above the file."""

DEPTH, MOST_FOLDERS = 2, 256
"""Then in the folders of the data root, so deep and so many."""


class ImageFinder:
    """Where the images of some entries lie.

    Args:
        folder: The folder of the file that names them.
        root: The data root.
    """

    def __init__(self, folder: Path, root: Path) -> None:
        self._root = root
        self._near = tuple(dict.fromkeys(b / name for b in (folder, root, folder.parent) for name in IMAGE_FOLDERS))
        self._found: dict[str, ImageFile] = {}
        self._places: dict[tuple[str, bool], list[tuple[Path, Path, frozenset[str]]]] = {}
        self._latest: Path | None = None

    def find(self, name: str, where: str) -> ImageFile:
        """The image that an entry calls so; where there is none, the place where others lie, or it should.

        Args:
            name: Relative to some folder, or absolute.
            where: Names file and entry, for errors.

        Raises:
            ValueError: No file can be called so.
        """
        if name not in self._found:
            _check_name(name, where)
            self._found[name] = ImageFile(self._path_of(name))
        return self._found[name]

    def _path_of(self, name: str) -> Path:
        file = name.rpartition("/")[2]
        inner = name.removesuffix(file)
        for far in (False, True):
            for base, folder, names in self._places_of(inner, far):
                if file in names:
                    self._latest = base
                    return folder / file
        should = [base for base in self._near if base.name in IMAGE_FOLDERS[1:]]
        base = self._latest or next((base for base in should if base.is_dir()), self._root)
        return _join(base, name)

    def _places_of(self, inner: str, far: bool) -> list[tuple[Path, Path, frozenset[str]]]:
        """Every base, the folder of that name in it, and the files in that, where there are some; each is listed once."""
        if (inner, far) not in self._places:
            bases = folders_below(self._root) if far else self._near
            listed = [(base, folder, files_in(folder)) for base in bases if is_folder(folder := _join(base, inner))]
            self._places[inner, far] = [place for place in listed if place[2]]
        return self._places[inner, far]


def _check_name(name: str, where: str) -> None:
    check_text(name, f"{where}: image")
    if any(letter < " " for letter in name):
        raise ValueError(f"{where} has the image {name!r:.60}, with a control character; write the name of a file")
    if "://" in name:
        raise ValueError(f"{where} has the image {name!r:.60}, a web address; download it and write the name of the file")


def _join(base: Path, name: str) -> Path:
    return Path(os.path.normpath(base / name))


def plain_name(name: str) -> str:
    """An image's name in one spelling: `./a//b.jpg` is `a/b.jpg`."""
    return Path(os.path.normpath(name)).as_posix()


def folders_below(root: Path, depth: int = DEPTH, most: int = MOST_FOLDERS) -> Iterator[Path]:
    """The folders in a folder, then those in these, in order of their names; hidden ones are none.

    Args:
        root: The folder.
        depth: How deep.
        most: How many.
    """
    level, left = [root], most
    for _ in range(depth):
        level = [inner for folder in level for inner in subfolders(folder)][:left]
        left -= len(level)
        yield from level


def subfolders(folder: Path) -> Sequence[Path]:
    """The folders in a folder, by name, but for hidden ones."""
    try:
        with os.scandir(folder) as listing:
            return sorted(folder / entry.name for entry in listing if entry.is_dir() and not entry.name.startswith("."))
    except OSError:
        return []
