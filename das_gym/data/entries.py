"""Entries of JSON files: reading them, and checking their fields."""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from das_gym.data.bad_examples import BadExamples
from das_gym.files import absolute, check_plain, read_json

Fields = Mapping[str, type | tuple[type, ...]]
"""The fields that an entry needs, with the type or types of each."""


def read_entries(path: Path, bad: BadExamples) -> Iterator[tuple[str, Any]]:
    """Yield the entries of a file that holds one JSON list, or one JSON object per line, whatever its name.

    Each comes after its file and place, `train.json: [7]` or `train.jsonl: line 8`; `bad` receives lines that are not JSON.
    """
    if not _has_lines(path):
        for index, entry in enumerate(read_list(path)):
            yield f"{path}: [{index}]", entry
        return
    for number, content in _numbered_lines(path):
        try:
            entry = json.loads(content.decode("utf-8"))
        except (ValueError, RecursionError) as error:  # errors of JSON and of UTF-8 are ValueErrors
            bad.report(ValueError(f"{path}: line {number} is not valid JSON in UTF-8 ({error})"))
        else:
            yield f"{path}: line {number}", entry


def read_list(path: Path, key: str = "", object_hook: Callable[[dict[str, Any]], Any] | None = None) -> list[Any]:
    """Return the list that a JSON file holds, or the list named `key` of its object; ValueError for other content."""
    whole = read_json(path, object_hook)
    found = whole.get(key) if key and isinstance(whole, dict) else whole if not key else None
    if not isinstance(found, list):
        expected = f"an object with a list `{key}`" if key else "a list of entries, or one object per line"
        got = f"an object with {first_few(list(whole)) or 'nothing'}" if isinstance(whole, dict) else f"{whole!r:.30}"
        raise ValueError(f"{path} has an unexpected JSON structure: got {got}, expected {expected}")
    return found


def _numbered_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield number, from 1, and content of every line that is not blank."""
    check_plain([path])
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            content = line.removeprefix(codecs.BOM_UTF8).strip()
            if content:
                yield number, content


def _has_lines(path: Path) -> bool:
    """Return whether the first line is a JSON object by itself."""
    # A list, and an object that spans several lines, begin with a line that is no JSON object.
    first = next((content for _, content in _numbered_lines(path)), b"")
    try:
        return first.startswith(b"{") and isinstance(json.loads(first), dict)
    except (ValueError, RecursionError):
        return False


def first_few(names: Sequence[str], limit: int = 8) -> str:
    """Return the first few names on one line, and how many more there are."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return " ".join(", ".join(names[:limit]).split()) + more


def check_fields(entry: object, fields: Fields, where: str) -> None:
    """Raise ValueError for an entry that is no object, lacks a field or has a value of another type."""
    if not isinstance(entry, dict):
        raise ValueError(f"{where} is not an object: got {entry!r:.60}, expected {', '.join(fields)}")
    for name, allowed in fields.items():
        kinds = allowed if isinstance(allowed, tuple) else (allowed,)
        if name not in entry:
            raise ValueError(
                f"{where} has no `{name}`: got {first_few(list(entry)) or 'nothing'}, expected {', '.join(fields)}"
            )
        if type(entry[name]) not in kinds:
            expected = " or ".join(kind.__name__ for kind in kinds)
            raise ValueError(f"{where}: wrong type of `{name}`: got {entry[name]!r:.60}, expected {expected}")


def check_text(text: object, where: str) -> str:
    """Return a text without surrounding white space; raise ValueError where it is no text, blank, or not valid Unicode."""
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"{where} is empty: got {text!r:.60}, expected a text")
    check_characters(text, where)
    return text.strip()


def check_characters(text: str, where: str) -> None:
    """Raise ValueError for half of a surrogate pair, which JSON allows and no tokenizer reads; the text may be empty."""
    if not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
        raise ValueError(f"{where} is not valid Unicode: got {text!a:.60}")


def check_new(seen: dict[Any, str], value: Any, name: str, where: str) -> None:
    """Record that a value occurs at `where`; raise ValueError if it is in `seen` from another place."""
    before = seen.setdefault(value, where)
    if before != where:
        raise ValueError(f"{where} repeats `{name}` {value} of {before}")


def data_folder(data_root: str | Path, holds: str) -> Path:
    """Return the folder of a data set, absolute; raise FileNotFoundError, with what it should hold, if it is missing."""
    root = absolute(data_root)
    if not root.is_dir():
        raise FileNotFoundError(f"`data_root` is not a folder: got {str(data_root)!r}, expected a folder with {holds}")
    return root


def find_file(root: Path, names: Sequence[str], folders: Sequence[str] = ("",)) -> Path:
    """Return the first of the files that exists in one of the folders of a data root; raise FileNotFoundError for none."""
    for name in names:
        for folder in folders:
            if (root / folder / name).is_file():
                return root / folder / name
    places = "" if len(folders) == 1 else f" (looked in {', '.join(folder or '.' for folder in folders)})"
    raise FileNotFoundError(f"{root} has no {' or '.join(names)}{places}: got {content_of(root)}")


def content_of(folder: Path) -> str:
    """Return the first names in a folder, for errors."""
    return first_few(sorted(path.name for path in folder.iterdir())) or "an empty folder"
