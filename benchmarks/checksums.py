"""python -m benchmarks.checksums: write das_gym/assets/checksums.json again, after a bundled file was made or changed."""

from __future__ import annotations

from pathlib import Path

from das_gym.bundled import ASSETS, CHECKSUMS, checksum
from das_gym.files import write_json


def bundled_files() -> dict[str, Path]:
    """Return every bundled file that has a checksum, by its path within `ASSETS`."""
    files = {path.relative_to(ASSETS).as_posix(): path for path in sorted(ASSETS.rglob("*")) if path.is_file()}
    return {name: path for name, path in files.items() if name not in ("checksums.json", "README.md")}


def main() -> None:
    """Write the checksum of every bundled file."""
    sums = {name: checksum(path) for name, path in bundled_files().items()}
    write_json(CHECKSUMS, sums)
    print(f"{len(sums)} checksums written to {CHECKSUMS}")


if __name__ == "__main__":
    main()
