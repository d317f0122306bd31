"""python -m tests.hostile.fuzz [READER ...] [--seconds N]: atheris on every reader of bytes from outside, one after another.

The readers are those of `tests.hostile.test_readers`. Begins with a whole file, and with what lies in `corpus/READER`: bytes
that were read wrongly once. Needs the extra `fuzz`.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path


def fuzz(name: str, seconds: int) -> None:
    """Try bytes on a reader; ends the process, with 0 if all that was raised named the file."""
    import atheris

    with atheris.instrument_imports(include=["das_gym"]):
        from tests.hostile.test_readers import CORPUS, READERS

    file, write, read = READERS[name]
    place = Path(tempfile.mkdtemp())
    (place / "corpus").mkdir()
    (place / "read").mkdir()
    path = place / "read" / file
    write(path)
    (place / "corpus" / "whole").write_bytes(path.read_bytes())

    def one(content: bytes) -> None:
        path.write_bytes(content)
        try:
            read(path)
        except (ValueError, FileNotFoundError) as error:
            if file not in str(error):
                raise RuntimeError(f"{file} is not named: {error}") from error

    folders = [str(place / "corpus"), *([str(CORPUS / name)] if (CORPUS / name).is_dir() else [])]
    limits = [f"-max_total_time={seconds}", "-max_len=65536", "-timeout=30", "-rss_limit_mb=4096"]
    limits.append(f"-artifact_prefix={place}/")
    atheris.Setup([sys.argv[0], *folders, *limits], one)
    atheris.Fuzz()


def main() -> int:
    """Run them, each in a process of its own; how many failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="reader", help="all where none is named")
    parser.add_argument("--seconds", type=int, default=600)
    given = parser.parse_args()
    if len(given.names) == 1:
        fuzz(given.names[0], given.seconds)
    from tests.hostile.test_readers import READERS  # after `fuzz` has had it instrumented

    failed = 0
    for name in given.names or READERS:
        command = [sys.executable, "-W", "ignore", "-m", "tests.hostile.fuzz", name, "--seconds", str(given.seconds)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        failed += done.returncode != 0
        told = done.stderr.splitlines()
        runs = next((line for line in reversed(told) if line.startswith("Done ")), "")
        print(f"{name}: {runs or 'stopped'}", flush=True)
        if done.returncode != 0:
            print("\n".join(told[-40:]), flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main())
