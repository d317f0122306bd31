"""How much faster plain inference is when the pooled token is the last stage's only query, with equal logits.

    python -m benchmarks.pooled                  METER-mini and METER-base (random weights), about 2 minutes on 2 quiet cores
    python -m benchmarks.pooled --size base --examples 1 --json pooled.json

Whole forwards, encoders included, nothing skipped, nothing kept; the two take turns, and medians are compared.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.machine import describe_machine
from benchmarks.models import SIZES, load_subject
from das_gym.files import write_json
from das_gym.problem.latency import measure_latency

REPEATS = {"mini": 30, "base": 12}
"""Timed forwards of each kind, by size."""


def measure(size: str, examples: int | None, repeats: int | None) -> dict[str, Any]:
    """The record of one size."""
    subject = load_subject(size, examples)
    batch, mask = subject.batch(), np.zeros(len(subject.vlp.layers), dtype=bool)

    def pooled() -> torch.Tensor:
        return subject.head(subject.task.group_features(subject.vlp(batch, mask)))

    def every() -> torch.Tensor:
        return subject.logits(subject.vlp.encode(batch), mask)

    with torch.inference_mode():
        difference = float((pooled() - every()).abs().max())
    latencies = measure_latency({"pooled": pooled, "every": every}, repeats or REPEATS[size])
    milliseconds = {name: float(np.median(values)) for name, values in latencies.items()}
    return {
        "size": size,
        "examples": len(subject.examples),
        "milliseconds": milliseconds,
        "faster": milliseconds["every"] / milliseconds["pooled"] - 1,
        "largest_difference": difference,
    }


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, and write JSON if asked to."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.pooled", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--examples", type=int, help="in one batch; default 64 (mini), 2 (base)")
    parser.add_argument("--repeats", type=int, help="timed forwards of each kind; default 30 (mini), 12 (base)")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    machine, records = describe_machine(), []
    for size in options.size:
        record = measure(size, options.examples, options.repeats)
        times = record["milliseconds"]
        print(
            f"METER-{size}, {record['examples']} examples: {record['faster']:.1%} faster with the pooled token alone in the "
            f"last stage ({times['pooled']:.1f} ms for {times['every']:.1f}), logits differ by at most "
            f"{record['largest_difference']:.1e}",
            flush=True,
        )
        records.append(record)
    if options.json:
        write_json(options.json, {"machine": machine, "records": records})


if __name__ == "__main__":
    main()
