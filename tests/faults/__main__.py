"""python -m tests.faults [--long [--every N]] [job ...]: kill and break jobs at their writes; --long at every (N-th) one."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: forks do not go with its threads

import argparse
import random
import sys
import tempfile
import time
from pathlib import Path

import torch

from tests.faults.harness import Fault, every, try_fault, undisturbed
from tests.faults.jobs import JOBS


def main() -> int:
    """Run them; 1 if a restart did not come to the same result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="job", help=f"{', '.join(JOBS)}; all where none is named")
    parser.add_argument("--long", action="store_true", help="every write, and 10 random moments a job")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="with --long: every N-th write only")
    given = parser.parse_args()
    torch.set_num_threads(1)
    points = wrong = 0
    with tempfile.TemporaryDirectory() as place:
        os.environ["DAS_GYM_CACHE"] = f"{place}/cache"
        for name in given.names or JOBS:
            job = JOBS[name](Path(place))
            began = time.monotonic()
            wanted, calls = undisturbed(job, Path(place) / name / "whole")
            took = time.monotonic() - began
            faults = list(every(calls, given.every if given.long else max(1, calls // 4)))
            if given.long:
                faults += [Fault("later", seconds=random.Random(i).uniform(0, took)) for i in range(10)]
            found = 0
            for fault in faults:
                told = try_fault(job, Path(place) / name / "hit", fault, wanted)
                if told is not None:
                    print(f"{name}, {told}", flush=True)
                    found += 1
            points, wrong = points + len(faults), wrong + found
            took = time.monotonic() - began
            print(f"{name}: {calls} writes and renames, {len(faults)} faults in {took:.0f} s, {found} wrong", flush=True)
    print(f"{points} faults, {wrong} wrong")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
