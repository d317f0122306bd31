"""Checksums of a folder's weights in the file that `sha256sum --check` reads."""

from __future__ import annotations

import re
from pathlib import Path

from das_gym.bundled import checksum
from das_gym.files import write_text

SUMS = "SHA256SUMS"


def write_sums(folder: Path) -> None:
    """Write the checksums of all safetensors files of a folder into it."""
    lines = [f"{checksum(path)}  {path.name}\n" for path in sorted(folder.glob("*.safetensors"))]
    write_text(folder / SUMS, "".join(lines))


def check_sums(folder: Path) -> bool:
    """Compare a folder's files with its checksums, and return whether it has any."""
    path = folder / SUMS
    if not path.is_file():
        return False
    advice = f"Copy the folder again; if you changed the file yourself, remove {SUMS}"
    for line in path.read_text("utf-8", "replace").splitlines():
        match = re.fullmatch(r"([0-9a-f]{64}) [ *]([^/\\\0]+)", line)
        if match is None:
            raise ValueError(f"{path} is damaged: got {line[:80]!r}, expected a checksum and a name. {advice}")
        file = folder / match[2]
        if not file.is_file():
            raise ValueError(f"{folder} lacks {match[2]}, which {SUMS} names. {advice}")
        if checksum(file) != match[1]:
            raise ValueError(f"{file} is damaged: its checksum differs from the recorded one. {advice}")
    return True
