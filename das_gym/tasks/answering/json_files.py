"""Tells what JSON files of a folder hold by their first entries, and which of them belong to one data set by their names."""

from __future__ import annotations

import contextlib
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from das_gym.tasks.answering.image_files import subfolders

HEAD_BYTES = 1 << 20
"""So much of a file is looked at."""

FIRST_ENTRIES = 20

KINDS: Mapping[str, frozenset[str]] = {
    "llava": frozenset({"conversations"}),
    "slake": frozenset({"img_name", "question", "answer"}),
    "nlvr2": frozenset({"sentence", "identifier"}),
    "questions": frozenset({"question_id", "text"}),
}
"""What an entry of each kind of file has; `questions` are LLaVA's files for evaluation, without answers."""

MISSPELT = {"conversatons": "conversations"}

PARTS = {
    "train": ("train", "training", "trn", "trainval"),
    "val": ("val", "valid", "validate", "validation", "dev", "eval", "minival"),
    "test": ("test", "testing", "tst", "testval", "valtest", "testdev"),
}
"""Words in names of files, and what they are for."""

ALL = "all"
"""The part of a file whose name says nothing."""

ONE_OBJECT = "is one object"

_PART_OF = {word: part for part, words in PARTS.items() for word in words}

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")


@dataclass(frozen=True, slots=True)
class DataFile:
    """A JSON file, as its name and its beginning tell it.

    Attributes:
        path: The file.
        kind: One of `KINDS`; empty = none of them.
        part: `train`, `val`, `test` or `all`.
        rest: The other words of its name.
        entries: Whether it is a list of entries or has them a line.
        looks: What it holds, in words.
    """

    path: Path
    kind: str
    part: str
    rest: tuple[str, ...]
    entries: bool
    looks: str


def json_files(folder: Path) -> list[DataFile]:
    """The files of a folder whose names end with `.json` or `.jsonl`, by name; then those of folders `train`, `val`, `test`.

    What lies in such a folder is for that part, unless its own name says another.
    """
    files = [data_file(path) for path in _json_paths(folder)]
    for inner in subfolders(folder):
        part = _PART_OF.get(inner.name.lower())
        if part:
            found = map(data_file, _json_paths(inner))
            files += [replace(file, part=part) if file.part == ALL else file for file in found]
    return files


def _json_paths(folder: Path) -> list[Path]:
    paths = sorted(path for suffix in ("*.json", "*.jsonl") for path in folder.glob(suffix))
    return [path for path in paths if path.is_file() and not path.name.startswith(".")]


def data_file(path: Path) -> DataFile:
    """What a file is."""
    part, rest = part_of(path)
    entries, looks = _first_entries(path)
    keys = [{MISSPELT.get(key, key) for key in entry} for entry in entries if isinstance(entry, dict)]
    kind = next((kind for found in keys for kind, needed in KINDS.items() if needed <= found), "")
    return DataFile(path, kind, part, rest, bool(entries) and not looks.startswith(ONE_OBJECT), looks)


def part_of(path: Path) -> tuple[str, tuple[str, ...]]:
    """What a file is for by a word of its name, and the other words: `aid_train20.json` is train of (aid, 20)."""
    words = [word.lower() for word in _WORD.findall(path.stem)]
    for number, word in enumerate(words):
        if word in _PART_OF:
            return _PART_OF[word], (*words[:number], *words[number + 1 :])
    return ALL, tuple(words)


def _first_entries(path: Path) -> tuple[list[Any], str]:
    """The first entries of a list, or of a file with one a line, and in words what the file looks like."""
    with path.open("rb") as file:
        text = file.read(HEAD_BYTES).decode("utf-8-sig", errors="replace").lstrip()
    if text.startswith("["):
        entries = list(_listed(text))
        return entries, f"is a list of entries with {_keys(entries[0])}" if entries else "is a list that is empty or damaged"
    if not text.startswith("{"):
        return [], "is no JSON, or empty" if text.strip() else "is empty"
    entries = list(_lines(text))
    if len(entries) > 1 or (entries and KINDS["llava"] <= entries[0].keys()):
        return entries, f"has lines with {_keys(entries[0])}"
    names = list(entries[0]) if entries else re.findall(r'^\s*(?:\{\s*)?"([^"\n]{1,40})"\s*:', text, re.MULTILINE)
    return entries, f"{ONE_OBJECT}, with {_some(names)}, and no list of entries"


def _listed(text: str) -> Iterator[Any]:
    """The first entries of a list, as far as they are whole."""
    decoder, place = json.JSONDecoder(), 1
    with contextlib.suppress(ValueError, RecursionError):
        for _ in range(FIRST_ENTRIES):
            place += re.match(r"[\s,]*", text[place : place + 10_000]).end()  # type: ignore[union-attr] # matches nothing, too
            entry, place = decoder.raw_decode(text, place)
            yield entry


def _lines(text: str) -> Iterator[dict[str, Any]]:
    """The first lines; nothing if the first is no object."""
    for number, line in enumerate(text.split("\n", FIRST_ENTRIES)[:FIRST_ENTRIES]):
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            if number == 0:
                return
            continue
        if isinstance(entry, dict):
            yield entry


def _keys(entry: object) -> str:
    return _some(list(entry)) if isinstance(entry, dict) else f"{entry!r:.30}"


def _some(names: Sequence[str]) -> str:
    """The first names, in one line."""
    return " ".join(", ".join(names[:5]).split()) or "nothing"


def data_sets(files: Sequence[DataFile]) -> list[dict[str, DataFile]]:
    """The files by part of each data set; all of one kind.

    Where every part occurs once at most, they are one data set; otherwise those are whose names have the same other words,
    and each file that is for everything.

    Raises:
        ValueError: Two files are for the same part of the same.
    """
    parts = Counter(file.part for file in files)
    if max(parts.values(), default=0) <= 1 and (ALL not in parts or len(parts) == 1):
        return [_in_order({file.part: file for file in files})] if files else []
    sets: defaultdict[tuple[str, ...], dict[str, DataFile]] = defaultdict(dict)
    for file in files:
        name = (ALL, file.path.name) if file.part == ALL else file.rest
        before = sets[name].setdefault(file.part, file)
        if before is not file:
            raise ValueError(
                f"{before.path} and {file.path} are both for {file.part}; take one away, or pass the other as data_root"
            )
    return [_in_order(found) for found in sets.values()]


def _in_order(found: Mapping[str, DataFile]) -> dict[str, DataFile]:
    return {part: found[part] for part in (*PARTS, ALL) if part in found}


def check_companions(found: Mapping[str, DataFile], others: Iterable[DataFile]) -> None:
    """Refuse a data set beside a file that is named like a part of it and cannot be read as one.

    Args:
        found: Its files by part.
        others: The other JSON files of the folder.

    Raises:
        ValueError: Names the file.
    """
    rests = {file.rest for file in found.values()}
    for other in others:
        if not other.kind and other.part not in (ALL, *found) and other.rest in rests:
            some = next(iter(found.values())).path.name
            raise ValueError(
                f"{other.path} {other.looks}; beside {some} it should be the {other.part} part of the same data, a list of "
                "entries like its own: write it so, or take it out of the folder"
            )
