"""Keeps what was read from VQAv2's large files, so that reading them again takes no time."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from das_gym.data.cache import cache_folder
from das_gym.data.checks import BadExamples
from das_gym.files import replacing
from das_gym.tasks.vqa.columns import Texts, VQAColumns

READER = 3
"""Version of the reader. Raise it with every change to what columns hold."""

CACHED_BYTES = 4_000_000
"""From this size of the files on, together, what was read is kept."""

_ARRAYS = tuple(field.name for field in dataclasses.fields(VQAColumns) if field.name not in ("questions", "names"))

_DAMAGED = (OSError, ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile)


def cached_columns(files: Sequence[Path], bad: BadExamples, read: Callable[[], VQAColumns]) -> VQAColumns:
    """Columns from the cache folder, else from the files; what was read from large files is kept until they change.

    Args:
        files: The files.
        bad: Told of every bad entry, also of those that were left out when the cache was made.
        read: Reads the files.
    """
    cache = _Cache.of(files)
    found = cache.load()
    if found is not None:
        columns, lines, count = found
        if bad.skips or not lines:  # a cache made with entries left out serves only those who want that
            bad.add_lines(lines, count)
            return columns
    lines_before, count_before = len(bad.lines), bad.count
    columns = read()
    cache.save(columns, bad.lines[lines_before:], bad.count - count_before)
    return columns


@dataclasses.dataclass(frozen=True)
class _Cache:
    """Where the columns of some files are kept, and for which state of the files.

    Attributes:
        path: The file in the cache folder.
        stamp: Reader version, sizes and times of change.
        wanted: Whether the files are large enough to be worth it.
    """

    path: Path
    stamp: str
    wanted: bool

    @classmethod
    def of(cls, files: Sequence[Path]) -> _Cache:
        """The place for these files, as they are now."""
        stats = [file.stat() for file in files]
        name = hashlib.blake2b("\n".join(str(file) for file in files).encode(), digest_size=12).hexdigest()
        stamp = json.dumps([READER, [[stat.st_size, stat.st_mtime_ns] for stat in stats]])
        wanted = sum(stat.st_size for stat in stats) >= CACHED_BYTES
        return cls(cache_folder() / "vqav2" / f"{name}.npz", stamp, wanted)

    def load(self) -> tuple[VQAColumns, tuple[str, ...], int] | None:
        """Columns, and lines and number of what was left out; None if they are not there, out of date or damaged."""
        if not self.wanted:
            return None
        try:
            with self.path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                if arrays["stamp"].tobytes().decode() != self.stamp:
                    return None
                columns = VQAColumns(
                    questions=_texts(arrays, "questions"),
                    names=tuple(_texts(arrays, "names").to_list()),
                    **{name: arrays[name] for name in _ARRAYS},
                )
                return columns, tuple(_texts(arrays, "lines").to_list()), int(arrays["count"])
        except _DAMAGED:
            return None

    def save(self, columns: VQAColumns, lines: tuple[str, ...], count: int) -> None:
        """Keep what `load` gives; a cache folder that cannot be written to costs reading the files again, no more."""
        if not self.wanted:
            return
        arrays = {"stamp": np.frombuffer(self.stamp.encode(), np.uint8), "count": np.array(count)}
        texts = {"questions": columns.questions, "names": Texts.of(columns.names), "lines": Texts.of(lines)}
        for name, value in texts.items():
            arrays |= {name: value.data, f"{name}.ends": value.ends}
        arrays |= {name: getattr(columns, name) for name in _ARRAYS}
        with contextlib.suppress(OSError), replacing(self.path) as part, part.open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)


def _texts(arrays: Mapping[str, np.ndarray], name: str) -> Texts:
    return Texts(arrays[name], arrays[f"{name}.ends"])
