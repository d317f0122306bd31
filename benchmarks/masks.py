"""How much cheaper many masks are in the engine than by a plain forward per mask, as ratios of one run.

    python -m benchmarks.masks                                  METER-mini and METER-base, about 8 minutes on 2 quiet cores
    python -m benchmarks.masks --size mini                      METER-mini, bundled weights: 1 minute
    python -m benchmarks.masks --size mini --examples 1000 --sets all --precision float32
    python -m benchmarks.masks --json masks.json

METER-base has random weights, 384 px, 40 tokens, 3,129 answers, 2 examples. The same attention kernels run on both sides.
A plain forward computes every token in the last stage, as other code does. Its time is that of `--plain` masks spread
evenly over the set, times the size of the set.

Two ratios are printed:
  "whole"   plain forwards with their encoders, against the engine. For a turn of 3, encoder outputs are in the engine's
            cache, as they are in all turns of a search but the first; for the larger sets the engine pays once for reading
            images and encoding.
  "masked"  without encoders on either side: what sharing between masks alone saves.
Reading images and tokenising is not in the plain forwards. With bfloat16 only the engine's layers change: ratios are to
the plain forwards in float32, and "to float32" is the engine against itself.

Peak memory is the largest resident set while scoring, in a fresh process for each set, float32, the same batch.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.machine import describe_machine
from benchmarks.memory import compare_peaks
from benchmarks.models import FOUR, SETS, SIZES, TURN, Subject, load_subject, mask_sets
from benchmarks.prediction import predict
from das_gym.engine.evaluator import Evaluator
from das_gym.engine.precision import PRECISIONS, bfloat16_hardware
from das_gym.files import write_json
from das_gym.tables.ranks import spearman

Json = dict[str, Any]

PLAIN = {"mini": 40, "base": 6}
"""Masks that are timed by plain forwards, by size."""


def seconds_of(call: Callable[[], object], repeats: int = 1) -> float:
    """Mean wall-clock seconds of a call."""
    started = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - started) / repeats


class Comparison:
    """The engine and plain forwards on the same examples.

    Args:
        subject: Model and examples.
        size: Its name.
        plain: Masks that are timed by plain forwards.
        turns: Random turns of 3 masks.
    """

    def __init__(self, subject: Subject, size: str, plain: int, turns: int) -> None:
        self.subject, self.size, self.plain, self.turns = subject, size, plain, turns
        self.targets = subject.task.targets(subject.examples)
        self._plain: dict[str, tuple[float, np.ndarray, np.ndarray]] = {}
        self._engine: dict[str, float] = {}
        self.encoded = self._evaluator("float32").encoder(subject.task.pairs(subject.examples))
        with torch.inference_mode():
            batch = subject.batch()
            subject.vlp.encode(batch)
            self.encode_seconds = seconds_of(lambda: subject.vlp.encode(batch), 3)
            state = subject.vlp.embed(self.encoded)
        self.state = state
        self.tokens = {stream: hidden.shape[1] for stream, hidden in state.hidden.items()}
        self.rows = len(batch["input_ids"])

    def _evaluator(self, precision: str) -> Evaluator:
        subject = self.subject
        return Evaluator(subject.vlp, subject.head, subject.task, batch_size=len(subject.examples), precision=precision)

    @torch.inference_mode()
    def plain_forwards(self, name: str, masks: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
        """Seconds a mask of the masked part, rows of the masks that were timed, and their losses; measured once."""
        if name not in self._plain:
            rows = np.unique(np.linspace(0, len(masks) - 1, min(self.plain, len(masks))).astype(int))
            self.subject.logits(self.encoded, masks[0])
            losses = []
            started = time.perf_counter()
            for mask in masks[rows]:
                logits = self.subject.logits(self.encoded, mask)
                losses.append(float(self.subject.task.losses(logits, self.targets).mean()))
            self._plain[name] = (time.perf_counter() - started) / len(rows), rows, np.array(losses)
        return self._plain[name]

    def measure(self, name: str, precision: str) -> Json:
        """The record of one set in one precision."""
        subject = self.subject
        evaluator = self._evaluator(precision)
        encode_once = seconds_of(lambda: evaluator.encoder(subject.task.pairs(subject.examples)))
        evaluator.losses(np.zeros((1, len(subject.vlp.layers))), subject.examples)  # warms up
        sets = mask_sets(name, len(subject.vlp.layers), self.turns)
        evaluator.reset_spent()
        losses, predicted = [], []
        for masks in sets:
            evaluator.forget()
            losses.append(evaluator.losses(masks, subject.examples))
            predicted.append(predict(subject.vlp, subject.head, masks, self.state))
        spent = evaluator.spent
        plain_seconds, rows, plain_losses = self.plain_forwards(name, np.concatenate(sets))
        count = len(sets[0])
        engine = spent.seconds / len(sets)
        float32 = self._engine.setdefault(name, engine)
        charged = 0.0 if name == TURN else encode_once
        return {
            "size": self.size,
            "set": SETS[name],
            "precision": evaluator.precision,
            "masks": count,
            "sets": len(sets),
            "examples": len(subject.examples),
            "tokens": self.tokens,
            "ratio_whole": count * (plain_seconds + self.encode_seconds) / (engine + charged),
            "ratio_masked": count * plain_seconds / engine,
            "ratio_to_float32": float32 / engine,
            "engine_seconds": engine,
            "engine_encoding_seconds": charged,
            "plain_masked_seconds": count * plain_seconds,
            "plain_encoding_seconds": count * self.encode_seconds,
            "plain_masks_timed": len(rows),
            "layer_runs": spent.layer_runs / len(sets),
            "layer_runs_predicted": sum(p.layer_runs for p in predicted) / len(sets),
            "layer_runs_plain": sum(int((~masks).sum()) for masks in sets) / len(sets),
            "macs": spent.macs / len(sets),
            "macs_predicted": sum(p.macs for p in predicted) / len(sets),
            "largest_difference": float((np.abs(np.concatenate(losses)[rows] - plain_losses) / np.abs(plain_losses)).max()),
        }

    def ranks(self, precision: str) -> Json:
        """Whether a precision puts all masks of k = 4 in the order of float32."""
        subject = self.subject
        masks = mask_sets(FOUR, len(subject.vlp.layers), 1)[0]
        found = [self._evaluator(p).losses(masks, subject.examples) for p in ("float32", precision)]
        best = [set(np.argsort(losses, kind="stable")[:10].tolist()) for losses in found]
        return {
            "size": self.size,
            "precision": precision,
            "masks": len(masks),
            "examples": len(subject.examples),
            "spearman": spearman(*found),
            "top_10_in_common": len(best[0] & best[1]) / 10,
            "largest_difference": float(np.abs(found[0] - found[1]).max()),
        }


def describe(record: Json) -> str:
    """A record in words."""
    faster = f"{record['ratio_whole']:.1f}x whole, {record['ratio_masked']:.2f}x masked"
    if record["precision"] != "float32":
        faster += f", {record['ratio_to_float32']:.2f}x to float32"
    plain = record["plain_masked_seconds"] + record["plain_encoding_seconds"]
    seconds = f"engine {record['engine_seconds']:.2f} s, plain {plain:.1f} s"
    predicted = f"predicted {record['layer_runs_predicted']:g}, plain {record['layer_runs_plain']:g}"
    runs = f"{record['layer_runs']:g} layer runs ({predicted})"
    macs = f"{record['macs'] / 1e9:.1f} GMACs (predicted {record['macs_predicted'] / 1e9:.1f})"
    head = f"METER-{record['size']}, {record['precision']}, {record['set']}"
    exact = f"losses differ by at most {record['largest_difference']:.1e} of the loss"
    return f"{head}: {faster}\n    {seconds}; {runs}; {macs}; {exact}"


def measure_size(size: str, options: argparse.Namespace) -> tuple[list[Json], list[Json]]:
    """Records of every set and precision, and rank agreement of every other precision."""
    print(f"METER-{size}: loading ...", flush=True)
    comparison = Comparison(load_subject(size, options.examples), size, options.plain or PLAIN[size], options.turns)
    records: list[Json] = []
    ranks: list[Json] = []
    for precision in options.precision:
        for name in options.sets:
            print(f"METER-{size}, {precision}: {SETS[name]} ...", flush=True)
            records.append(comparison.measure(name, precision))
            print(describe(records[-1]), flush=True)
        if precision != "float32" and size == "mini":
            ranks.append(comparison.ranks(precision))
            agree = f"Spearman {ranks[-1]['spearman']:.4f}, {ranks[-1]['top_10_in_common']:.0%} of the best 10 in common"
            print(f"METER-mini, {precision} against float32, {ranks[-1]['masks']} masks: {agree}", flush=True)
    return records, ranks


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command's settings."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.masks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    here = ["float32"] + ["bfloat16"] * (bfloat16_hardware("cpu") is not None)
    parser.add_argument("--size", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS), help="default: all three")
    parser.add_argument(
        "--precision", nargs="+", choices=PRECISIONS, default=here, help="default: float32, and bfloat16 where it is there"
    )
    parser.add_argument("--examples", type=int, help="in one batch; default 64 (mini), 2 (base)")
    parser.add_argument("--plain", type=int, help="masks to time by plain forwards; default 40 (mini), 6 (base)")
    parser.add_argument("--turns", type=int, default=8, help="random turns of 3 masks (default 8)")
    parser.add_argument("--no-memory", action="store_true", help="leave out peak memory")
    parser.add_argument("--json", type=Path, help="write everything there")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, and write JSON if asked to."""
    options = parse(arguments)
    machine = describe_machine()
    has = machine["bfloat16"] or "no bfloat16"
    print(f"{machine['processor']}, {has}, {machine['threads']} threads, torch {machine['versions']['torch']}", flush=True)
    records: list[Json] = []
    ranks: list[Json] = []
    memory: list[Json] = []
    for size in options.size:
        if not options.no_memory:
            memory.append(compare_peaks(size, options.examples))
        found = measure_size(size, options)
        records, ranks = records + found[0], ranks + found[1]
    if options.json:
        write_json(options.json, {"machine": machine, "records": records, "ranks": ranks, "memory": memory})


if __name__ == "__main__":
    main()
