"""How long each algorithm of Stable-Baselines3 takes to search, as a person who types the command sees it.

    python -m benchmarks.sb3                              every algorithm, on the table and live
    python -m benchmarks.sb3 ppo dqn --where table        some of them, on the table alone
    python -m benchmarks.sb3 --problem vilt_vqa --json sb3.json

A time is that of the whole command, with imports, loading, SB3's own overhead, TensorBoard's and Sacred's files.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from das_gym.agents.sb3.algorithms import ALGORITHMS
from das_gym.agents.sb3.config import SB3_DEFAULTS

from benchmarks.machine import describe_machine
from das_gym.files import write_json
from das_gym.registration import ENVIRONMENTS

WHERE = {"table": "_table", "live": ""}
"""Where masks are scored, to what the named config is called beyond the problem's name."""


def search(problem: str, where: str, algorithm: str, evaluations: int, seed: int, runs_dir: str) -> dict[str, Any]:
    """Run one search and tell its seconds and what it found.

    Raises:
        RuntimeError: the command failed; its output is the message.
    """
    settings = [problem + WHERE[where], algorithm, f"evaluations={evaluations}", f"seed={seed}", f"runs_dir={runs_dir}"]
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "agents", "with", *settings], capture_output=True, text=True, check=False)
    seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise RuntimeError(f"{' '.join(settings)} failed:\n{done.stdout}{done.stderr}")
    newest = max(Path(runs_dir).glob("*/search.json"), key=lambda path: path.stat().st_mtime_ns)
    found = json.loads(newest.read_text(encoding="utf-8"))
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {
        "where": where,
        "algorithm": algorithm,
        "evaluations": found["evaluations"],
        "seconds": seconds,
        "processor_seconds": processor,
        "reward": found["reward"],
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, and write JSON if asked to."""
    problems = [entry.short for entry in ENVIRONMENTS.values()]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("algorithms", nargs="*", help=f"some of {', '.join(ALGORITHMS)}; all of them by default")
    parser.add_argument("--problem", choices=problems, default="meter_vqa")
    parser.add_argument("--where", choices=WHERE, nargs="+", default=list(WHERE))
    parser.add_argument("--evaluations", type=int, default=SB3_DEFAULTS["evaluations"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    machine = describe_machine()
    records = []
    with tempfile.TemporaryDirectory() as runs_dir:
        for where in options.where:
            for algorithm in options.algorithms or ALGORITHMS:
                record = search(options.problem, where, algorithm, options.evaluations, options.seed, runs_dir)
                records.append(record)
                took = f"{record['seconds']:6.1f} s ({record['processor_seconds']:6.1f} s of processor time)"
                print(
                    f"{where:5s} {algorithm:12s} {took}, {record['evaluations']} masks, reward {record['reward']:.4f}",
                    flush=True,
                )
    if options.json:
        write_json(options.json, {"problem": options.problem, "machine": machine, "records": records})


if __name__ == "__main__":
    main()
