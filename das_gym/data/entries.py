"""Entries of JSON files: one list, or an object a line."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from das_gym.data.checks import BadExamples


def numbered_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Number, from 1, and content of every line that is not blank."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            content = line.removeprefix(codecs.BOM_UTF8).strip()
            if content:
                yield number, content


def read_whole_json(path: Path) -> Any:
    """What is in a JSON file.

    Raises:
        ValueError: It is not whole JSON in UTF-8.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:  # JSON and UTF-8 errors are ValueErrors
        raise ValueError(f"{path} is not whole JSON in UTF-8 ({error}); it is truncated or damaged: get it again") from error


def read_entries(path: Path, bad: BadExamples) -> Iterator[tuple[str, Any]]:
    """The entries of a file that holds one JSON list, or an object a line.

    Args:
        path: The file, whatever its name.
        bad: Told of lines that are no JSON.

    Yields:
        File and place of an entry, such as `train.json: [7]` or `train.jsonl: line 8`, and the entry.

    Raises:
        ValueError: The file cannot be read as either.
    """
    first = next((content for _, content in numbered_lines(path)), b"")
    if not first.startswith(b"{"):
        yield from ((f"{path}: [{index}]", entry) for index, entry in enumerate(_read_list(path)))
        return
    if not _is_json(first):
        whole = read_whole_json(path)
        raise ValueError(
            f"{path} is one JSON object with {', '.join(list(whole)[:8])}; it must be a list of entries, or have one a line"
        )
    for number, content in numbered_lines(path):
        try:
            yield f"{path}: line {number}", json.loads(content.decode("utf-8"))
        except (ValueError, RecursionError) as error:
            bad.report(ValueError(f"{path}: line {number} is not whole JSON in UTF-8 ({error}); write an object a line"))


def _is_json(content: bytes) -> bool:
    try:
        json.loads(content)
    except (ValueError, RecursionError):
        return False
    return True


def _read_list(path: Path) -> list[Any]:
    whole = read_whole_json(path)
    if not isinstance(whole, list):
        raise ValueError(f"{path} is JSON of type {type(whole).__name__}; it must be a list of entries, or have one a line")
    return whole
