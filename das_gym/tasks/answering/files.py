"""Find the files of data sets: JSON files, recognized by their first entries and names, and the images that entries name."""

import json
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from das_gym.data.entries import first_few
from das_gym.data.images import ImageFile, check_image_name, files_in

HEAD_BYTES = 1 << 20
"""Only this much of a file is looked at."""

FIRST_ENTRIES = 20

IMAGE_FOLDERS = ("images", "imgs", "image", "img", "")
"""Where images are looked for first: in the folder of the file that names them, the data root, and that folder's parent."""

DEPTH = 2
MAX_FOLDERS = 256
"""If they are not there, the folders of the data root are searched, up to this depth and number."""

MISSPELLED_KEY = "conversatons"
"""The field `conversations` in files of LLaVA-Med."""

QUESTIONS = "questions"
"""The kind of LLaVA's files for evaluation, which have no answers."""

KINDS: Mapping[str, frozenset[str]] = {
    "llava": frozenset({"conversations"}),
    "slake": frozenset({"img_name", "question", "answer"}),
    "nlvr2": frozenset({"sentence", "identifier"}),
    QUESTIONS: frozenset({"question_id", "text"}),
}
"""The fields of an entry of each kind of file."""

PARTS = {
    "train": ("train", "training", "trn", "trainval"),
    "val": ("val", "valid", "validate", "validation", "dev", "eval", "minival"),
    "test": ("test", "testing", "tst", "testval", "valtest", "testdev"),
}
"""Words in file names, and the part that they stand for."""

ALL_PARTS = "all"
"""The part of a file whose name has none of these words."""

_PART_OF = {word: part for part, words in PARTS.items() for word in words}

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")


@dataclass(frozen=True, slots=True)
class DataFile:
    """A JSON file, described by its name and its first entries.

    Attributes:
        kind: One of `KINDS`, by the fields of the entries; empty for another structure.
        part: The part of the data set that its name has, or `ALL_PARTS`.
        rest: The other words of its name.
        content: What its first entries are, for messages.
    """

    path: Path
    kind: str
    part: str
    rest: tuple[str, ...]
    content: str


def json_files(folder: Path) -> list[DataFile]:
    """Return the `.json` and `.jsonl` files of a folder by name."""
    paths = sorted(path for suffix in ("*.json", "*.jsonl") for path in folder.glob(suffix))
    return [data_file(path) for path in paths if path.is_file() and not path.name.startswith(".")]


def data_file(path: Path) -> DataFile:
    """Read the beginning of a JSON file, and return what it is."""
    part, rest = part_in_name(path)
    # Files may have a gigabyte: only the first entries are parsed, with a decoder that takes them one by one.
    with path.open("rb") as file:
        text = file.read(HEAD_BYTES).decode("utf-8-sig", errors="replace").lstrip()
    decoder = json.JSONDecoder()
    place = int(text.startswith("["))
    kind = ""
    content = ""
    try:
        for _ in range(FIRST_ENTRIES):
            place = re.compile(r"[\s,]*").match(text, place).end()  # type: ignore[union-attr] # always matches
            entry, place = decoder.raw_decode(text, place)
            keys = {"conversations" if key == MISSPELLED_KEY else key for key in entry} if isinstance(entry, dict) else set()
            kind = kind or next((kind for kind, needed in KINDS.items() if needed <= keys), "")
            content = content or f"entries with {first_few(sorted(keys), 8) or 'no fields'}"
    except (ValueError, RecursionError) as error:  # also the end of the list, or of what was read
        content = content or ("no entries" if text.strip() in ("", "[]") else f"damaged JSON ({error})")
    return DataFile(path, kind, part, rest, content)


def part_in_name(path: Path) -> tuple[str, tuple[str, ...]]:
    """Return the part that a word of a file's name stands for, and the other words: of `aid_train20` train, (aid, 20)."""
    words = [word.lower() for word in _WORD.findall(path.stem)]
    for number, word in enumerate(words):
        if word in _PART_OF:
            return _PART_OF[word], (*words[:number], *words[number + 1 :])
    return ALL_PARTS, tuple(words)


def group_by_part(files: Sequence[DataFile]) -> list[dict[str, DataFile]]:
    """Return the files, all of one kind, of each data set by part; ValueError for two files of a part.

    If every file names a part and no part occurs twice, all files are one data set. Otherwise files with the same other
    words are one, and each file that names no part.
    """
    parts = Counter(file.part for file in files)
    one = max(parts.values(), default=0) <= 1 and (ALL_PARTS not in parts or len(parts) == 1)
    sets: defaultdict[tuple[str, ...], dict[str, DataFile]] = defaultdict(dict)
    for file in files:
        name = (ALL_PARTS, file.path.name) if file.part == ALL_PARTS else file.rest
        before = sets[() if one else name].setdefault(file.part, file)
        if before is not file:
            raise ValueError(
                f"two files for {file.part}: got {before.path} and {file.path}. Remove one, or pass the other as `data_root`"
            )
    return [{part: found[part] for part in (*PARTS, ALL_PARTS) if part in found} for found in sets.values()]


def check_companions(found: Mapping[str, DataFile], others: Sequence[DataFile]) -> None:
    """Raise ValueError for a file that is named like a part of a data set but has another form."""
    rests = {file.rest for file in found.values()}
    for other in others:
        if not other.kind and other.part not in (ALL_PARTS, *found) and other.rest in rests:
            known = next(iter(found.values())).path.name
            form = "has another structure" if other.path.stat().st_size > len("[]\n") else "is empty"
            raise ValueError(
                f"{other.path} is named like the {other.part} part of {known} but {form}, expected a list of entries. "
                "Correct it or move it away"
            )


class ImageFinder:
    """Finds the images that the entries of a file in `folder` name; lists each folder once."""

    def __init__(self, folder: Path, root: Path) -> None:
        self._root = root
        self._near = [base / name for base in dict.fromkeys((folder, root, folder.parent)) for name in IMAGE_FOLDERS]
        self._found: dict[str, ImageFile] = {}
        self._places: dict[tuple[str, bool], list[tuple[Path, frozenset[str]]]] = {}

    def find(self, name: str, where: str) -> ImageFile:
        """Return the image of a name, with the expected path if there is none; ValueError for names of no local file."""
        if name not in self._found:
            check_image_name(name, where)
            self._found[name] = ImageFile(self._path_of(name))
        return self._found[name]

    def _path_of(self, name: str) -> Path:
        file = name.rpartition("/")[2]
        inner = name.removesuffix(file)
        # Most images lie near: the folders below the root are only listed for those that do not.
        for far in (False, True):
            if (inner, far) not in self._places:
                bases = folders_below(self._root) if far else self._near
                folders = [Path(os.path.normpath(base / inner)) for base in bases]
                self._places[inner, far] = [(folder, names) for folder in folders if (names := files_in(folder))]
            for folder, names in self._places[inner, far]:
                if file in names:
                    return folder / file
        expected = next((folder for folder, _ in self._places[inner, False]), self._near[0] / inner)
        return Path(os.path.normpath(expected / file))


def folders_below(root: Path) -> Iterator[Path]:
    """Yield the folders in a folder, then those in these, up to `DEPTH` and `MAX_FOLDERS`, by name."""
    level = [root]
    left = MAX_FOLDERS
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
