"""Reads NLVR2, and any data set in its format, from the official files.

A data root holds `train.json` and `test1.json` or `dev.json` (JSON lines: an object a line, with `sentence`, `label`
"True" or "False", `identifier`, and in train `directory`), itself or in a folder `data`, `nlvr2/data` or
`nlvr/nlvr2/data`, as the official repository has them. The images are `{split}-{set}-{pair}-img0.png` (left) and
`-img1.png` (right), whatever format the files really have: of train in `images/train/{directory}/`, of the others in
`images/{split}/`; the folder `images` may be left out.

What is what: whole `directory` buckets of train, a tenth of them and at least one, score masks (reward), as the authors
of NLVR2 advise; the others train. Test is `test1.json` where there is one, else `dev.json`.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from das_gym.data.checks import BadExamples, check_fields, check_text, data_folder
from das_gym.data.entries import numbered_lines
from das_gym.data.images import ImageFile, ImageSource, is_folder
from das_gym.data.splits import Splits, hash_order, share_of

REWARD_SHARE = 0.1
"""Share of train's buckets that are the reward split."""

TEST_SPLITS = ("test1", "dev")
"""What the test split is read from: the first that is there."""

LABELS = {"True": True, "False": False}

FOLDERS = ("", "data", "nlvr2/data", "nlvr/nlvr2/data")
"""Where the JSON files are looked for, in the data root."""

Fields = dict[str, type | tuple[type, ...]]

_FIELDS: Fields = {"identifier": str, "sentence": str, "label": str}
_TRAIN_FIELDS: Fields = {**_FIELDS, "directory": (int, str)}


@dataclass(frozen=True, slots=True)
class NLVR2Example:
    """A sentence about two images, and whether it is true.

    Attributes:
        identifier: The data set's own name, `split-set-pair-sentence`.
        sentence: The sentence as written.
        images: The left and the right image.
        label: Whether the sentence is true of them.
    """

    identifier: str
    sentence: str
    images: tuple[ImageSource, ImageSource]
    label: bool

    @property
    def key(self) -> str:
        """The identifier: it begins with the split, so that no two splits share one."""
        return self.identifier

    @property
    def set_id(self) -> str:
        """What the pairs shown with the same sentence share: the identifier without its pair."""
        split, set_number, _, sentence_number = self.identifier.split("-")
        return f"{split}-{set_number}-{sentence_number}"


def load_nlvr2(data_root: str | Path, on_bad_example: str = "raise") -> Splits[NLVR2Example]:
    """Read a data set in NLVR2's format; which part is which stands at the top of this module.

    Args:
        data_root: The folder described there.
        on_bad_example: `raise`, or `skip` to leave bad entries out; then every image is decoded once, to see that it can be.

    Returns:
        The three splits, each in the order of its file.

    Raises:
        FileNotFoundError: The folder, a file or an image is missing.
        ValueError: An entry is damaged, does not fit the format or occurs twice, a split is empty, or all of train is in
            one directory.
    """
    root = data_folder(data_root, "NLVR2's JSON files and images")
    train_path, test_path = _find_file(root, "train"), _find_file(root, *TEST_SPLITS)
    bad = BadExamples(on_bad_example)
    train = _read(train_path, root, bad)
    buckets = {_bucket(example) for example in train}
    if len(buckets) < 2:
        raise ValueError(
            f"{train_path}: all entries have the directory {buckets.pop()!r}; whole directories are kept from training "
            "to score masks on, so there must be two or more: move some of the images to another"
            f"{bad.first_left_out}"
        )
    has_other = test_path.stem != TEST_SPLITS[-1] and _search(root, TEST_SPLITS[-1]) is not None
    test = _read(test_path, root, bad, f"remove {test_path.name}, and {TEST_SPLITS[-1]}.json is used" if has_other else "")
    return Splits(*divided(train, _bucket), test, bad.lines, bad.count)


def divided(
    examples: Sequence[NLVR2Example], bucket: Callable[[NLVR2Example], str]
) -> tuple[tuple[NLVR2Example, ...], tuple[NLVR2Example, ...]]:
    """Examples of train that stay there, and those whose whole buckets score masks, see `reward_buckets`."""
    chosen = reward_buckets(map(bucket, examples))
    train = tuple(example for example in examples if bucket(example) not in chosen)
    return train, tuple(example for example in examples if bucket(example) in chosen)


def reward_buckets(buckets: Iterable[str]) -> frozenset[str]:
    """Those buckets of train that are the reward split: a tenth of them, at least one, never all of two or more.

    They are the ones whose 8-byte BLAKE2b hash of the name is lowest: the same on every machine.

    Args:
        buckets: Names of all buckets; several times the same is no harm.
    """
    ranked = hash_order(buckets)
    return frozenset(ranked[: share_of(REWARD_SHARE, len(ranked))])


def _search(root: Path, split: str) -> Path | None:
    """The JSON file of a split, if it is there."""
    paths = (root / folder / f"{split}.json" for folder in FOLDERS)
    return next((path for path in paths if path.is_file()), None)


def _find_file(root: Path, *splits: str) -> Path:
    """The JSON file of the first of the splits that has one."""
    for split in splits:
        path = _search(root, split)
        if path is not None:
            return path
    names = " or ".join(f"{split}.json" for split in splits)
    there = ", ".join(sorted(path.name for path in root.iterdir())[:8]) if root.is_dir() else ""
    raise FileNotFoundError(f"{root} has no {names}, nor has a folder data in it; it holds {there or 'nothing'}")


def _read(path: Path, root: Path, bad: BadExamples, way_out: str = "") -> tuple[NLVR2Example, ...]:
    """The good examples of a file; bad ones are reported."""
    bad.new_file()
    read = list(_examples(path, root, bad))
    kept = bad.drop_broken(read, lambda example: example.images, lambda example: f"{path}: {example.identifier}")
    bad.require(kept, f"the {path.stem} split ({path})", way_out)
    return tuple(kept)


def _examples(path: Path, root: Path, bad: BadExamples) -> Iterator[NLVR2Example]:
    split, seen = path.stem, dict[str, int]()
    folders = _ImageFolders(root, split)
    fields = _TRAIN_FIELDS if split == "train" else _FIELDS
    for number, line in _lines(path):
        where = f"{path}: line {number}"
        try:
            entry = _read_line(line, fields, where)
            identifier = entry["identifier"]
            set_number, pair = _set_and_pair(identifier, split, where)
            if seen.setdefault(identifier, number) != number:
                raise ValueError(
                    f"{where} repeats the identifier {identifier} of line {seen[identifier]}; every one must occur once: "
                    "delete one of the two lines"
                )
            folder = folders.of(entry.get("directory") if split == "train" else None, where)
        except ValueError as error:
            bad.report(error)
            continue
        left, right = (ImageFile(folder / f"{split}-{set_number}-{pair}-img{side}.png") for side in (0, 1))
        yield NLVR2Example(identifier, entry["sentence"], (left, right), LABELS[entry["label"]])


def _set_and_pair(identifier: str, split: str, where: str) -> tuple[str, str]:
    """Image set and pair of `split-set-pair-sentence`."""
    parts = identifier.split("-")
    if len(parts) != 4 or parts[0] != split or not all(part.isascii() and part.isdigit() for part in parts[1:]):
        raise ValueError(
            f"{where} has the identifier {identifier!r:.80}; it must be {split}-set-pair-sentence with three numbers, "
            f"such as {split}-12-0-1"
        )
    return parts[1], parts[2]


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Number and content of every line that is not blank."""
    for number, content in numbered_lines(path):
        if number == 1:
            _check_start(content, path)
        yield number, content


def _check_start(line: bytes, path: Path) -> None:
    """Refuse a file of which no line can be read, by its first."""
    if line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in line:
        raise ValueError(f"{path} is not text in UTF-8, but in UTF-16 or still packed: save it in UTF-8, or get it again")
    if line.startswith(b"["):
        raise ValueError(f"{path} begins with '[': this is one JSON list; the format is one object a line, without commas")


def _read_line(line: bytes, fields: Fields, where: str) -> dict[str, Any]:
    """The entry of a line, checked."""
    try:
        entry = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError) as error:  # JSON and UTF-8 errors are ValueErrors
        raise ValueError(f"{where} is not whole JSON in UTF-8 ({error}); NLVR2's files have an object a line") from error
    check_fields(entry, fields, where)
    if entry["label"] not in LABELS:
        raise ValueError(f"{where} ({entry['identifier']}) has the label {entry['label']!r:.60}; it must be True or False")
    check_text(entry["sentence"], f"{where} ({entry['identifier']}): sentence")
    return entry


class _ImageFolders:
    """Where the images of a split lie."""

    def __init__(self, root: Path, split: str) -> None:
        self.bases = root / "images" / split, root / split
        self._found: dict[int | str | None, Path] = {}

    def of(self, directory: int | str | None, where: str) -> Path:
        """The folder of the images of a directory of train (None elsewhere): the first that is there."""
        if directory not in self._found:
            name = "" if directory is None else str(directory)
            if name in (".", "..") or "/" in name or "\\" in name or (not name and directory is not None):
                raise ValueError(f"{where} has directory={directory!r:.60}; it must be the name of a folder of images")
            options = [base / name for base in self.bases]
            self._found[directory] = next((folder for folder in options if is_folder(folder)), options[0])
        return self._found[directory]


def _bucket(example: NLVR2Example) -> str:
    """The directory of an example of train: the name of the folder of its images."""
    return Path(example.images[0].key).parent.name
