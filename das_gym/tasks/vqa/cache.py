"""Keep what was read from VQAv2's large files, so that later commands start at once."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from das_gym.data.bad_examples import BadExamples
from das_gym.data.cache import cache_folder
from das_gym.files import replacing
from das_gym.tasks.vqa.examples import VQAColumns

READER = 4
"""Version of the cached content. Raise it with every change to what columns hold."""

CACHED_BYTES = 4_000_000
"""Smaller files are not cached."""

_ARRAYS = [field.name for field in dataclasses.fields(VQAColumns) if field.name not in ("questions", "names")]


def cached_columns(files: Sequence[Path], bad: BadExamples, read: Callable[[], VQAColumns]) -> VQAColumns:
    """Return columns from the cache folder, else read them from the files and cache them until the files change.

    `bad` receives every bad entry, also those that were skipped when the cache was made.
    """
    stats = [file.stat() for file in files]
    if sum(stat.st_size for stat in stats) < CACHED_BYTES:
        return read()
    stamp = json.dumps([READER, [[stat.st_size, stat.st_mtime_ns] for stat in stats]])
    name = hashlib.blake2b("\n".join(map(str, files)).encode(), digest_size=12).hexdigest()
    path = cache_folder() / "vqav2" / f"{name}.npz"
    with contextlib.suppress(Exception), path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        texts = json.loads(arrays["texts"].tobytes())
        if texts["stamp"] == stamp and (bad.skips or not texts["lines"]):  # with `raise`, bad entries must raise again
            questions, names = tuple(texts["questions"]), tuple(texts["names"])
            columns = VQAColumns(questions=questions, names=names, **{name: arrays[name] for name in _ARRAYS})
            bad.lines += texts["lines"]
            bad.count += texts["count"]
            return columns
    lines, count = len(bad.lines), bad.count
    columns = read()
    texts = {"stamp": stamp, "questions": columns.questions, "names": columns.names}
    texts |= {"lines": bad.lines[lines:], "count": bad.count - count}
    content = {name: getattr(columns, name) for name in _ARRAYS}
    content["texts"] = np.frombuffer(json.dumps(texts).encode(), np.uint8)
    with contextlib.suppress(OSError), replacing(path) as part, part.open("wb") as out:
        np.savez(out, allow_pickle=False, **content)
    return columns
