"""Reads pictures that lie in a folder for each class, such as AID's: what is shown is asked, the classes are the options.

The class folders lie in the data root, or in `train`, `val` and `test` in it. `BareLand` and `bare_land` are both called
`bare land`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from das_gym.data.checks import BadExamples, check_characters
from das_gym.data.images import SUFFIXES, ImageFile, files_in
from das_gym.data.splits import Splits
from das_gym.tasks.answering.conversations import Conversation, divided, drop_broken
from das_gym.tasks.answering.examples import AnswerExample
from das_gym.tasks.answering.image_files import IMAGE_FOLDERS, subfolders
from das_gym.tasks.answering.prompts import CLASS_QUESTION, instructed

SPLIT_FOLDERS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
"""Folders of class folders, and what they are for."""

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[^A-Z\W_]+|[^\w\s]+")


def class_name(folder: str) -> str:
    """The name of a folder in words: `BareLand`, `bare_land` and `bare-land` are `bare land`."""
    return " ".join(_WORD.findall(folder.replace("-", " "))).lower() or folder


def class_folders(folder: Path) -> dict[str, Sequence[Path]]:
    """The class folders of each part that a folder has, or of the one part ``; empty if it is no such folder."""
    inner = subfolders(folder)
    parts = {SPLIT_FOLDERS[path.name]: _with_images(path) for path in inner if path.name in SPLIT_FOLDERS}
    if parts and all(len(classes) > 1 for classes in parts.values()):
        return parts
    classes = [path for path in _with_images(folder) if path.name not in {*IMAGE_FOLDERS, *SPLIT_FOLDERS}]
    return {"": classes} if len(classes) > 1 else {}


def _with_images(folder: Path) -> Sequence[Path]:
    return [path for path in subfolders(folder) if any(_is_image(name) for name in files_in(path))]


def _is_image(name: str) -> bool:
    return Path(name).suffix.lower() in SUFFIXES and not name.startswith(".")


def load_class_folders(
    parts: Mapping[str, Sequence[Path]], root: Path, on_bad_example: str = "raise"
) -> Splits[AnswerExample]:
    """Read what `class_folders` found.

    Args:
        parts: The class folders of each part.
        root: The folder that they were found in.
        on_bad_example: `raise`, or `skip` to leave out images that cannot be read.

    Raises:
        ValueError: Two folders are one class, or there are too few images to divide.
    """
    bad = BadExamples(on_bad_example)
    names = sorted({folder.name for classes in parts.values() for folder in classes})
    labels = {name: class_name(name) for name in names}
    if len(set(labels.values())) < len(labels):
        labels = {name: name for name in names}
    for name in names:
        check_characters(name, f"{root}: the name of the folder {name!a}")
    read = {part: drop_broken(list(_read(part, classes, labels)), bad) for part, classes in parts.items()}
    for part, conversations in read.items():
        bad.require(conversations, str(root / part))
    return divided(read, str(root), bad)


def _read(part: str, classes: Sequence[Path], labels: Mapping[str, str]) -> Iterator[Conversation]:
    options = tuple(sorted(labels.values()))
    question = instructed(CLASS_QUESTION)
    for folder in classes:
        for name in sorted(filter(_is_image, files_in(folder))):
            key = f"{part}/{folder.name}/{name}".lstrip("/")
            image = ImageFile(folder / name)
            yield Conversation(str(image.path), key, (image,), (key,), ((question, labels[folder.name]),), options)
