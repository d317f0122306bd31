"""Peak memory of the engine: the largest resident set of a process while it scores one set of masks.

    python -m benchmarks.memory all --size base      one set, in this process, as JSON

`python -m benchmarks.masks` runs that in a fresh process for each set, and compares them.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from typing import Any

from benchmarks.machine import memory_mib, restart_peak
from benchmarks.models import ALL, SETS, SIZES, TURN, load_subject, mask_sets
from das_gym.engine.evaluator import Evaluator

Json = dict[str, Any]


def peak_here(size: str, name: str, examples: int | None) -> Json:
    """Peak memory of this process while it scores a set; nothing else may have run in it."""
    subject = load_subject(size, examples)
    evaluator = Evaluator(subject.vlp, subject.head, subject.task, batch_size=len(subject.examples))
    evaluator.encoder(subject.task.pairs(subject.examples))
    alone = restart_peak()
    before = memory_mib("VmRSS")
    evaluator.losses(mask_sets(name, len(subject.vlp.layers), 1)[0], subject.examples)
    return {"peak_mib": memory_mib("VmHWM"), "before_mib": before, "of_scoring_alone": alone}


def compare_peaks(size: str, examples: int | None) -> Json:
    """Peak memory of all masks against that of a turn, each in a separate process."""
    found = {}
    for name in (TURN, ALL):
        print(f"METER-{size}: memory of {SETS[name]}, in a fresh process ...", flush=True)
        command = [sys.executable, "-m", "benchmarks.memory", name, "--size", size]
        command += [] if examples is None else ["--examples", str(examples)]
        found[name] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    ratio = found[ALL]["peak_mib"] / found[TURN]["peak_mib"]
    growth = [found[name]["peak_mib"] - found[name]["before_mib"] for name in (TURN, ALL)]
    print(
        f"METER-{size}: peak memory of all masks is {ratio:.3f} times that of a turn of 3 ({found[ALL]['peak_mib']:.0f} and "
        f"{found[TURN]['peak_mib']:.0f} MiB, of which scoring takes {growth[1]:.0f} and {growth[0]:.0f})",
        flush=True,
    )
    return {"size": size, "ratio": ratio, "growth_mib": dict(zip((TURN, ALL), growth, strict=True)), **found}


def main(arguments: list[str] | None = None) -> None:
    """Measure one set here."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.memory", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("set", choices=SETS)
    parser.add_argument("--size", choices=SIZES, default="base")
    parser.add_argument("--examples", type=int, help="in one batch; default 64 (mini), 2 (base)")
    options = parser.parse_args(arguments)
    print(json.dumps(peak_here(options.size, options.set, options.examples)))


if __name__ == "__main__":
    main()
