"""python -m tests.faults [--long] [job ...]: kill and break jobs at some of their writes; --long at every one."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: forks do not go with its threads

import argparse
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

import torch

from tests.faults.harness import SIGNALS, Fault, every, try_fault, undisturbed
from tests.faults.jobs import JOBS


def main() -> int:
    """Run them; 1 if a restart gave another result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="job", help=f"{', '.join(JOBS)}; all where none is named")
    parser.add_argument("--long", action="store_true", help="every write, 10 random moments a job")
    given = parser.parse_args()
    torch.set_num_threads(1)
    for stopped in (signal.SIGINT, signal.SIGTERM):  # attempts are printed all the same, in the background too
        signal.signal(stopped, signal.default_int_handler)
    points = wrong = 0
    with tempfile.TemporaryDirectory() as place:
        os.environ["DAS_GYM_CACHE"] = f"{place}/cache"
        for name in given.names or JOBS:
            job = JOBS[name](Path(place))
            began = time.monotonic()
            wanted, calls, took = undisturbed(job, Path(place) / name / "whole")
            faults = list(every(calls, 1 if given.long else max(1, calls // 4)))
            if given.long:
                faults += [Fault(SIGNALS[i % 2], seconds=random.Random(i).uniform(0, took)) for i in range(10)]
            print(f"{name}: {calls} writes and renames in {took:.1f} s; {len(faults)} faults to try", flush=True)
            found = 0
            for fault in faults:
                told = try_fault(job, Path(place) / name / "hit", fault, wanted)
                if told is not None:
                    found += 1
                    print(f"{name}, {told}", flush=True)
            print(f"{name}: {len(faults)} faults in {time.monotonic() - began:.0f} s, {found} wrong", flush=True)
            points, wrong = points + len(faults), wrong + found
    print(f"{points} faults, {wrong} wrong")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
