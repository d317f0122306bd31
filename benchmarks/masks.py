"""How much faster the engine evaluates many masks of METER than one plain forward per mask, as ratios of one run.

    python -m benchmarks.masks                       METER-mini and METER-base, about 8 minutes on 2 quiet cores
    python -m benchmarks.masks --size mini           METER-mini with the bundled weights, 1 minute

METER-base has random weights, 384 px, 40 tokens, 3,129 answers and 2 examples. Both sides use the same attention kernels.
Plain forwards compute every token in the last stage, as METER's own code does. Some of the masks are timed (`PLAIN`), spread
evenly over the set, and their mean time is multiplied by the size of the set. Two ratios are printed:

  full      with encoders. The engine runs them once per set, and not at all for a turn of 3, since all turns of a search but
            the first find their outputs in the cache.
  masked    without encoders on either side: what masks save by sharing layers.

Images are read and texts tokenized beforehand. bfloat16 is used by the engine only: its ratios are to plain forwards in
float32, and "of float32" compares the engine with itself.
"""

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from benchmarks.harness import EXAMPLES, Subject, load_subject, make_parser
from das_gym.engine.evaluator import Evaluator
from das_gym.engine.tree import bfloat16_hardware
from das_gym.problem.mask_space import every_mask

TURN, FOUR, ALL = "a turn of 3", "all of k = 4", "all masks"
TURNS = 8
"""Random turns, whose times are averaged."""

PLAIN = {"mini": 40, "base": 6}
"""Masks that plain forwards are timed on, by model size."""


def mask_sets(n_layers: int) -> dict[str, list[np.ndarray]]:
    """Return the sets of masks by name; a turn is drawn several times."""
    every = every_mask(n_layers)
    four = every_mask(n_layers, 4)
    rng = np.random.default_rng(0)
    return {TURN: [four[rng.choice(len(four), 3, replace=False)] for _ in range(TURNS)], FOUR: [four], ALL: [every]}


def seconds_of(call: Callable[[], object]) -> float:
    """Return the wall-clock seconds of a call."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


@torch.inference_mode()
def time_plain_forwards(subject: Subject, masks: np.ndarray, count: int) -> tuple[float, np.ndarray, np.ndarray]:
    """Return the seconds of a forward after the encoders, the rows of the timed masks and their losses."""
    encoded = subject.vlp.encode(subject.batch())
    targets = subject.task.targets(subject.examples)
    rows = np.unique(np.linspace(0, len(masks) - 1, min(count, len(masks))).astype(int))
    subject.logits(encoded, masks[0])  # warm
    started = time.perf_counter()
    losses = [float(subject.task.losses(subject.logits(encoded, mask), targets).mean()) for mask in masks[rows]]
    return (time.perf_counter() - started) / len(rows), rows, np.array(losses)


@torch.inference_mode()
def measure(
    subject: Subject, name: str, sets: list[np.ndarray], precisions: Sequence[str], plain_count: int
) -> list[dict[str, Any]]:
    """Return one record per precision for one of the `mask_sets`."""
    count = len(sets[0])
    batch = subject.batch()
    pairs = subject.task.pairs(subject.examples)
    encode_seconds = min(seconds_of(lambda: subject.vlp.encode(batch)) for _ in range(3))
    plain, rows, plain_losses = time_plain_forwards(subject, np.concatenate(sets), plain_count)
    records: list[dict[str, Any]] = []
    for precision in precisions:
        evaluator = Evaluator(subject.vlp, subject.head, subject.task, batch_size=len(subject.examples), precision=precision)
        encode = 0.0 if name == TURN else seconds_of(partial(evaluator.encoder_cache, pairs))
        evaluator.losses(np.zeros((1, len(subject.vlp.layers))), subject.examples)  # fills the cache of encoder outputs
        evaluator.reset_spent()
        losses = []
        for masks in sets:
            evaluator.forget()
            losses.append(evaluator.losses(masks, subject.examples))
        spent = evaluator.spent
        seconds = spent.seconds / len(sets)
        records.append(
            {
                "set": name,
                "precision": evaluator.precision,
                "ratio_full": count * (plain + encode_seconds) / (seconds + encode),
                "ratio_masked": count * plain / seconds,
                "ratio_of_float32": records[0]["seconds"] / seconds if records else 1.0,
                "seconds": seconds,
                "plain_seconds": count * (plain + encode_seconds),
                "layer_runs": spent.layer_runs / len(sets),
                "layer_runs_plain": sum(int((~masks).sum()) for masks in sets) / len(sets),
                "largest_difference": float(np.abs(np.concatenate(losses)[rows] / plain_losses - 1).max()),
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
    """Measure and print."""
    parser = make_parser("masks", __doc__)
    parser.add_argument("--size", nargs="+", choices=EXAMPLES, default=list(EXAMPLES))
    parser.add_argument("--sets", nargs="+", choices=(TURN, FOUR, ALL), default=[TURN, FOUR, ALL])
    options = parser.parse_args(arguments)
    precisions = ["float32", *(["bfloat16"] if bfloat16_hardware("cpu") else [])]
    for size in options.size:
        subject = load_subject(size)
        sets = mask_sets(len(subject.vlp.layers))
        for name in options.sets:
            for record in measure(subject, name, sets[name], precisions, PLAIN[size]):
                print(describe(size, record), flush=True)


if __name__ == "__main__":
    main()
