"""python -m benchmarks.checksums: write das_gym/assets/checksums.json again, after a bundled file was made or changed."""

from __future__ import annotations

from das_gym.bundled import CHECKSUMS, bundled_files, checksum
from das_gym.files import write_json


def main() -> None:
    """Write the checksum of every bundled file."""
    sums = {name: checksum(path) for name, path in bundled_files().items()}
    write_json(CHECKSUMS, sums)
    print(f"{len(sums)} checksums written to {CHECKSUMS}")


if __name__ == "__main__":
    main()
