"""How much faster the engine evaluates many masks of METER than one plain forward per mask, as ratios of one run.

    python -m benchmarks.masks                       METER-mini and METER-base, about 8 minutes on 2 quiet cores
    python -m benchmarks.masks --size mini           METER-mini with the bundled weights, 1 minute
    python -m benchmarks.masks --json masks.json

METER-base has random weights, 384 px, 40 tokens, 3,129 answers and 2 examples. Both sides use the same attention kernels.
Plain forwards compute every token in the last stage, as METER's own code does. `--plain` of the masks are timed, spread
evenly over the set, and their mean time is multiplied by the size of the set. Two ratios are printed:

  full      with encoders. The engine runs them once per set, and not at all for a turn of 3, since all turns of a search but
            the first find their outputs in the cache.
  masked    without encoders on either side: what masks save by sharing layers.

Images are read and texts tokenized beforehand. bfloat16 is used by the engine only: its ratios are to plain forwards in
float32, and "of float32" compares the engine with itself.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.machine import describe_machine
from benchmarks.models import EXAMPLES, Subject, load_subject
from das_gym.engine.evaluator import Evaluator
from das_gym.engine.precision import PRECISIONS, bfloat16_hardware
from das_gym.files import write_json

TURN, FOUR, ALL = "a turn of 3", "all of k = 4", "all masks"
TURNS = 8
"""Random turns, whose times are averaged."""

PLAIN = {"mini": 40, "base": 6}
"""Masks that plain forwards are timed on, by model size."""


def mask_sets(n_layers: int) -> dict[str, list[np.ndarray]]:
    """Return the sets of masks by name; a turn is drawn several times."""
    every = np.array(list(itertools.product((False, True), repeat=n_layers)))
    four = every[every.sum(axis=1) == 4]
    rng = np.random.default_rng(0)
    return {TURN: [four[rng.choice(len(four), 3, replace=False)] for _ in range(TURNS)], FOUR: [four], ALL: [every]}


def seconds_of(call: Callable[[], object]) -> float:
    """Return the wall-clock seconds of a call."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


class Comparison:
    """The engine and plain forwards on the same examples.

    Args:
        subject: Model and examples.
        plain: Number of masks that plain forwards are timed on.
    """

    def __init__(self, subject: Subject, plain: int) -> None:
        self.subject, self.plain = subject, plain
        self.targets = subject.task.targets(subject.examples)
        self.encoded = self.evaluator("float32").encoder(subject.task.pairs(subject.examples))
        with torch.inference_mode():
            batch = subject.batch()
            self.encode_seconds = min(seconds_of(lambda: subject.vlp.encode(batch)) for _ in range(3))

    def evaluator(self, precision: str) -> Evaluator:
        """Return a new evaluator, with empty caches."""
        subject = self.subject
        return Evaluator(subject.vlp, subject.head, subject.task, batch_size=len(subject.examples), precision=precision)

    @torch.inference_mode()
    def time_plain_forwards(self, masks: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
        """Return the seconds of a forward after the encoders, the rows of the timed masks and their losses."""
        rows = np.unique(np.linspace(0, len(masks) - 1, min(self.plain, len(masks))).astype(int))
        losses = []
        self.subject.logits(self.encoded, masks[0])
        started = time.perf_counter()
        for mask in masks[rows]:
            logits = self.subject.logits(self.encoded, mask)
            losses.append(float(self.subject.task.losses(logits, self.targets).mean()))
        return (time.perf_counter() - started) / len(rows), rows, np.array(losses)

    def measure(self, name: str, sets: list[np.ndarray], precisions: list[str]) -> list[dict[str, Any]]:
        """Return one record per precision."""
        subject, count, records = self.subject, len(sets[0]), list[dict[str, Any]]()
        plain, rows, plain_losses = self.time_plain_forwards(np.concatenate(sets))
        for precision in precisions:
            evaluator = self.evaluator(precision)
            encode = 0.0 if name == TURN else seconds_of(lambda: evaluator.encoder(subject.task.pairs(subject.examples)))  # noqa: B023
            evaluator.losses(np.zeros((1, len(subject.vlp.layers))), subject.examples)  # fills the cache of encoder outputs
            evaluator.reset_spent()
            losses = []
            for masks in sets:
                evaluator.forget()
                losses.append(evaluator.losses(masks, subject.examples))
            spent, seconds = evaluator.spent, evaluator.spent.seconds / len(sets)
            difference = np.abs(np.concatenate(losses)[rows] / plain_losses - 1).max()
            records.append(
                {
                    "set": name,
                    "precision": evaluator.precision,
                    "ratio_full": count * (plain + self.encode_seconds) / (seconds + encode),
                    "ratio_masked": count * plain / seconds,
                    "ratio_of_float32": records[0]["seconds"] / seconds if records else 1.0,
                    "seconds": seconds,
                    "plain_seconds": count * (plain + self.encode_seconds),
                    "layer_runs": spent.layer_runs / len(sets),
                    "layer_runs_plain": sum(int((~masks).sum()) for masks in sets) / len(sets),
                    "largest_difference": float(difference),
                }
            )
        return records


def describe(size: str, record: dict[str, Any]) -> str:
    """Return a record as two lines of text."""
    return (
        f"METER-{size}, {record['precision']}, {record['set']}: {record['ratio_full']:.1f} times as fast with encoders, "
        f"{record['ratio_masked']:.2f} without, {record['ratio_of_float32']:.2f} of float32\n"
        f"    engine {record['seconds']:.2f} s, plain {record['plain_seconds']:.1f} s; {record['layer_runs']:g} layer runs, "
        f"plain {record['layer_runs_plain']:g}; losses differ by at most {record['largest_difference']:.1e} of the loss"
    )


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, and write JSON."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.masks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    available = ["float32", *(["bfloat16"] if bfloat16_hardware("cpu") else [])]
    parser.add_argument("--size", nargs="+", choices=EXAMPLES, default=list(EXAMPLES))
    parser.add_argument("--sets", nargs="+", choices=(TURN, FOUR, ALL), default=[TURN, FOUR, ALL])
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, default=available, help="besides float32")
    parser.add_argument("--examples", type=int, help="in one batch; default 64 (mini), 2 (base)")
    parser.add_argument("--plain", type=int, help="masks to time by plain forwards; default 40 (mini), 6 (base)")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    results: dict[str, Any] = {"machine": describe_machine()}
    for size in options.size:
        comparison = Comparison(load_subject(size, options.examples), options.plain or PLAIN[size])
        sets, precisions = (
            mask_sets(len(comparison.subject.vlp.layers)),
            list(dict.fromkeys(["float32", *options.precision])),
        )
        results[size] = []
        for name in options.sets:
            results[size] += comparison.measure(name, sets[name], precisions)
            print("\n".join(describe(size, record) for record in results[size][-len(precisions) :]), flush=True)
    if options.json:
        write_json(options.json, results)


if __name__ == "__main__":
    main()
