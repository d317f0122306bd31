"""Find the image files of a data set whose entries name them relative to an unknown folder."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from das_gym.data.entries import check_text
from das_gym.data.images import ImageFile, files_in, is_folder

IMAGE_FOLDERS = ("", "images", "imgs", "image", "img")
"""Where images are searched first: in the folder of the file that names them, in the data root, and one folder above."""

DEPTH, MAX_FOLDERS = 2, 256
"""Then in the folders of the data root, up to this depth and number."""


class ImageFinder:
    """Finds the images that the entries of a file in `folder` name; lists each folder once."""

    def __init__(self, folder: Path, root: Path) -> None:
        self._root = root
        self._near = tuple(dict.fromkeys(b / name for b in (folder, root, folder.parent) for name in IMAGE_FOLDERS))
        self._found: dict[str, ImageFile] = {}
        self._places: dict[tuple[str, bool], list[tuple[Path, Path, frozenset[str]]]] = {}
        self._latest: Path | None = None

    def find(self, name: str, where: str) -> ImageFile:
        """Return the image that an entry names so; where it does not exist, the path at which it is expected."""
        if name not in self._found:
            check_text(name, f"{where}: `image`")
            if "://" in name or any(letter < " " for letter in name):
                raise ValueError(f"{where}: wrong `image`: got {name!r:.60}, expected the name of a local file")
            self._found[name] = ImageFile(self._path_of(name))
        return self._found[name]

    def _path_of(self, name: str) -> Path:
        file = name.rpartition("/")[2]
        for far in (False, True):
            for base, folder, names in self._places_of(name.removesuffix(file), far):
                if file in names:
                    self._latest = base
                    return folder / file
        # It is most likely expected where the last image was found, else in a folder that is named for images.
        expected = [base for base in self._near if base.name in IMAGE_FOLDERS[1:]]
        base = self._latest or next((base for base in expected if base.is_dir()), self._root)
        return _join(base, name)

    def _places_of(self, inner: str, far: bool) -> list[tuple[Path, Path, frozenset[str]]]:
        """Return every base, the folder of that name in it, and the files in that, where there are some."""
        if (inner, far) not in self._places:
            bases = folders_below(self._root) if far else self._near
            listed = [(base, folder, files_in(folder)) for base in bases if is_folder(folder := _join(base, inner))]
            self._places[inner, far] = [place for place in listed if place[2]]
        return self._places[inner, far]


def _join(base: Path, name: str) -> Path:
    return Path(os.path.normpath(base / name))


def plain_name(name: str) -> str:
    """Return the name of an image in one spelling: `./a//b.jpg` is `a/b.jpg`."""
    return Path(os.path.normpath(name)).as_posix()


def folders_below(root: Path) -> Iterator[Path]:
    """Yield the folders in a folder, then those in these, up to `DEPTH` and `MAX_FOLDERS`, by name."""
    level, left = [root], MAX_FOLDERS
    for _ in range(DEPTH):
        level = [inner for folder in level for inner in subfolders(folder)][:left]
        left -= len(level)
        yield from level


def subfolders(folder: Path) -> Sequence[Path]:
    """Return the folders in a folder by name, without hidden ones."""
    try:
        with os.scandir(folder) as listing:
            return sorted(folder / entry.name for entry in listing if entry.is_dir() and not entry.name.startswith("."))
    except OSError:
        return []
