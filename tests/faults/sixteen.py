"""python -m tests.faults.sixteen FOLDER: 16 processes at once on the runs folder and the cache in a folder.

Each begins a run, asks for data that are generated once, and writes and reads one file that all of them write. Who
generates first is killed on the way, holding the lock that the others wait for.
"""

import multiprocessing
import multiprocessing.synchronize
import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from das_gym.commands.recorded import RecordedCommand, Run
from das_gym.commands.runs import RunSettings
from das_gym.files import read_json, replacing, write_json
from das_gym.shapes import BUNDLED, BundledData, bundled_root


@dataclass(frozen=True)
class Settings(RunSettings):
    """The settings of a process."""

    number: int = 0


PROCESSES = 16


def generate(folder: Path) -> None:
    """What must happen once."""
    with (folder.parent / "generations.txt").open("a") as file:
        file.write(f"{os.getpid()}\n")
    with replacing(folder, is_folder=True) as part:
        (part / "a.txt").write_text("a" * 1000)
        time.sleep(0.2)


def work(number: int, folder: Path, begin: multiprocessing.synchronize.Barrier) -> None:
    """One of the processes."""

    def main(settings: Settings, run: Run) -> int:
        del run
        BUNDLED["made"] = BundledData("made", "what is made", f"{__name__}:generate")
        assert (bundled_root("made") / "a.txt").read_text() == "a" * 1000
        for _ in range(20):
            write_json(folder / "all.json", {"by": [number] * 500})
            assert len(set(read_json(folder / "all.json")["by"])) == 1
        return settings.number

    sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115
    begin.wait()
    RecordedCommand("trial", Settings, main).run({"runs_dir": str(folder / "runs"), "number": number})


def hold(lock: Path, held: multiprocessing.synchronize.Event) -> None:
    """Take a lock and never give it back."""
    with FileLock(lock):
        held.set()
        time.sleep(600)


def main(folder: Path) -> int:
    """Run them all; how many failed."""
    os.environ["DAS_GYM_CACHE"] = str(folder / "cache")
    (folder / "cache").mkdir()
    fork = multiprocessing.get_context("fork")
    begin, held = fork.Barrier(PROCESSES + 1), fork.Event()
    holder = fork.Process(target=hold, args=(folder / "cache" / "made.lock", held), daemon=True)
    holder.start()
    held.wait()
    workers = [fork.Process(target=work, args=(number, folder, begin), daemon=True) for number in range(PROCESSES)]
    for worker in workers:
        worker.start()
    begin.wait()
    time.sleep(0.5)
    assert not (folder / "cache" / "made").exists()  # they wait
    os.kill(holder.pid or 0, signal.SIGKILL)
    for worker in workers:
        worker.join(120)
    return sum(worker.exitcode != 0 for worker in workers)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
