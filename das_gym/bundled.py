"""Checksums of the bundled files, compared when a file is read. `python -m benchmarks.assets checksums` writes them."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path

ASSETS = Path(__file__).parent / "assets"

CHECKSUMS = ASSETS / "checksums.json"
"""SHA-256 of every bundled file, by its path within `ASSETS`."""


def check_bundled(path: Path) -> None:
    """Check a bundled file, or every file of a bundled folder, against its checksum, once per process."""
    if path.is_relative_to(ASSETS):
        _compare(path)


@cache
def _compare(path: Path) -> None:
    name = path.relative_to(ASSETS).as_posix()
    for listed, wanted in json.loads(CHECKSUMS.read_bytes()).items():
        if listed == name or listed.rpartition("/")[0] == name:
            file = ASSETS / listed
            if not file.is_file() or checksum(file) != wanted:
                raise ValueError(
                    f"{file} is not the file that came with das_gym: its SHA-256 differs from {CHECKSUMS.name}. Install "
                    "das_gym again; if you regenerated the file, run `python -m benchmarks.assets checksums`"
                )


def checksum(path: Path) -> str:
    """Return the SHA-256 of a file, 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
