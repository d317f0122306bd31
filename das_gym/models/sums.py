"""Checksums of a folder's weights in the file that `sha256sum --check` reads, so that anybody can look."""

from __future__ import annotations

import re
from pathlib import Path

from das_gym.bundled import checksum
from das_gym.files import write_text

SUMS = "SHA256SUMS"
_LINE = re.compile(r"([0-9a-f]{64}) [ *]([^/\\\0]+)")


def write_sums(folder: Path) -> None:
    """Keep the checksums of all safetensors files of a folder in it."""
    lines = [f"{checksum(path)}  {path.name}\n" for path in sorted(folder.glob("*.safetensors"))]
    write_text(folder / SUMS, "".join(lines))


def check_sums(folder: Path) -> bool:
    """Compare a folder's files with its checksums.

    Returns:
        Whether it has any; most folders of others have none.

    Raises:
        ValueError: a file is missing or has changed, or the checksums cannot be read.
    """
    path = folder / SUMS
    if not path.is_file():
        return False
    way_out = f"copy the folder again; where you changed the file yourself, remove {SUMS}"
    for line in path.read_text("utf-8", "replace").splitlines():
        match = _LINE.fullmatch(line)
        if match is None:
            raise ValueError(f"{path} is damaged: {line[:80]!r} is no checksum and name; {way_out}")
        file = folder / match[2]
        if not file.is_file():
            raise ValueError(f"{folder} lacks {match[2]}, which {SUMS} names; {way_out}")
        if checksum(file) != match[1]:
            raise ValueError(f"{file} is damaged: its checksum is another one than when it was written; {way_out}")
    return True
