"""Read images that are in one folder per class, such as AID's, as questions whose options are the classes.

The class folders are in the data root, or in `train`, `val` and `test` in it. `BareLand` and `bare_land` are both the class
`bare land`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from das_gym.data.bad_examples import BadExamples
from das_gym.data.entries import check_characters
from das_gym.data.images import SUFFIXES, ImageFile, files_in
from das_gym.data.splits import Splits
from das_gym.tasks.answering.conversations import Conversation, divide, drop_broken
from das_gym.tasks.answering.examples import CLASS_QUESTION, AnswerExample, instructed
from das_gym.tasks.answering.image_files import IMAGE_FOLDERS, subfolders

SPLIT_FOLDERS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
"""Folders of class folders, and their parts."""

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[^A-Z\W_]+|[^\w\s]+")


def class_name(folder: str) -> str:
    """Return the name of a folder in words: `BareLand`, `bare_land` and `bare-land` are `bare land`."""
    return " ".join(_WORD.findall(folder.replace("-", " "))).lower() or folder


def class_folders(folder: Path) -> dict[str, Sequence[Path]]:
    """Return the class folders of each part in a folder, or of a single part ``; empty where there are none."""
    parts = {SPLIT_FOLDERS[p.name]: _with_images(p) for p in subfolders(folder) if p.name in SPLIT_FOLDERS}
    if parts and all(len(classes) > 1 for classes in parts.values()):
        return parts
    classes = [path for path in _with_images(folder) if path.name not in {*IMAGE_FOLDERS, *SPLIT_FOLDERS}]
    return {"": classes} if len(classes) > 1 else {}


def _with_images(folder: Path) -> Sequence[Path]:
    return [path for path in subfolders(folder) if _image_names(path)]


def _image_names(folder: Path) -> list[str]:
    return sorted(n for n in files_in(folder) if Path(n).suffix.lower() in SUFFIXES and not n.startswith("."))


def load_class_folders(
    parts: Mapping[str, Sequence[Path]], root: Path, on_bad_example: str = "raise"
) -> Splits[AnswerExample]:
    """Read what `class_folders` found in `root`; errors are those of `Task.load_splits`."""
    bad, question = BadExamples(on_bad_example), instructed(CLASS_QUESTION)
    names = sorted({folder.name for classes in parts.values() for folder in classes})
    labels = {name: class_name(name) for name in names}
    if len(set(labels.values())) < len(labels):
        labels = {name: name for name in names}
    for name in names:
        check_characters(name, f"{root}: the name of the folder {name!a}")
    read = {}
    for part, classes in parts.items():
        options = tuple(sorted(labels.values()))
        conversations = []
        for folder in classes:
            for name in _image_names(folder):
                key, image = f"{part}/{folder.name}/{name}".lstrip("/"), ImageFile(folder / name)
                rounds = ((question, labels[folder.name]),)
                conversations.append(Conversation(str(image.path), key, (image,), (key,), rounds, options))
        read[part] = drop_broken(conversations, str(root / part), bad)
    return divide(read, str(root), bad)
