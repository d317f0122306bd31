"""How much cheaper many masks are in the engine than by a plain forward per mask, as ratios of one run.

    python -m benchmarks.masks                       METER-mini, bundled weights, 64 questions
    python -m benchmarks.masks --size base           METER-base, random weights, 384 px, 2 examples (minutes)
    python -m benchmarks.masks --json masks.json

Encoder outputs are kept on both sides, so the ratio is that of the masked part alone. The time of the plain forwards
is that of `--plain` masks, spread evenly over the set, times the size of the set.
"""

from __future__ import annotations

import argparse
import itertools
import os
import platform
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from das_gym.evaluation.engine import Evaluator
from das_gym.files import write_json
from das_gym.problem import ProblemConfig, load_problem
from das_gym.tasks.base import Task
from das_gym.tasks.vqa import build_vqa_head
from das_gym.vlp.meter import METER


class RandomExample:
    """An example of random pixels and words."""

    def __init__(self, index: int) -> None:
        self.key = str(index)


class RandomTask(Task):
    """VQA of random examples at METER-base's sizes: 384 px, 40 tokens, 3,129 answers."""

    name = "random"

    def inputs(self, examples: list[Any]) -> dict[str, Tensor]:
        """Random pixels and words."""
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(5, 50_000, (len(examples), 40), generator=generator)
        image = torch.randn(len(examples), 3, 384, 384, generator=generator)
        return {"image": image, "input_ids": ids, "attention_mask": torch.ones_like(ids)}

    def targets(self, examples: list[Any]) -> dict[str, Tensor]:
        """Nothing to compare with."""
        return {}

    def build_head(self, feature_size: int) -> nn.Module:
        """METER's VQA head."""
        return build_vqa_head(feature_size, 3129)

    def losses(self, logits: Tensor, targets: dict[str, Tensor]) -> Tensor:
        """(batch,) something that depends on every logit."""
        return logits.logsumexp(-1)

    def metrics(self, logits: Tensor, targets: dict[str, Tensor]) -> Tensor:
        """(batch,) zeros."""
        return torch.zeros(len(logits))


def build(size: str) -> tuple[Evaluator, list[Any]]:
    """An evaluator and its examples."""
    if size == "mini":
        problem = load_problem(ProblemConfig(device="cpu"))
        return Evaluator(problem.vlp, problem.head, problem.task), list(problem.splits.reward[:64])
    vlp, task = METER(), RandomTask()
    vlp.freeze()
    return Evaluator(vlp, task.build_head(vlp.feature_size), task), [RandomExample(i) for i in range(2)]


def mask_sets(n_layers: int) -> dict[str, np.ndarray]:
    """The sets to score, by name."""
    every = np.array(list(itertools.product((False, True), repeat=n_layers)))
    of_four = every[every.sum(1) == 4]
    turn = of_four[np.random.default_rng(0).choice(len(of_four), 3, replace=False)]
    return {"a turn of 3": turn, "all of k = 4": of_four, "all": every}


@torch.inference_mode()
def plain_seconds(
    evaluator: Evaluator, masks: np.ndarray, examples: list[Any], most: int
) -> tuple[float, np.ndarray, np.ndarray]:
    """Seconds of a plain forward per mask for the whole set, the rows that were run, and their losses."""
    rows = np.unique(np.linspace(0, len(masks) - 1, min(most, len(masks))).astype(int))
    vlp, encoded = evaluator.vlp, evaluator.encoder(examples)
    targets = evaluator.task.targets(examples)
    losses = []
    started = time.perf_counter()
    for mask in masks[rows]:
        state = vlp.begin(encoded)
        for stage in vlp.stages:
            new = {vlp.layers[i].stream: vlp.run_layer(i, state, bool(mask[i])) for i in stage}
            state = state.with_hidden({**state.hidden, **new})
        losses.append(float(evaluator.task.losses(evaluator.head(vlp.pool(state)), targets).mean()))
    return (time.perf_counter() - started) / len(rows) * len(masks), rows, np.array(losses)


def measure(size: str, plain: int, sets: list[str] | None) -> list[dict[str, Any]]:
    """One record per mask set."""
    evaluator, examples = build(size)
    evaluator.losses(np.zeros((1, len(evaluator.vlp.layers)), bool), examples)  # encodes, and warms up
    records = []
    for name, masks in mask_sets(len(evaluator.vlp.layers)).items():
        if sets and name not in sets:
            continue
        plain_time, rows, plain_losses = plain_seconds(evaluator, masks, examples, plain)
        evaluator.forget()
        evaluator.reset_spent()
        losses = evaluator.losses(masks, examples)
        spent = evaluator.spent
        record = {
            "set": name,
            "masks": len(masks),
            "examples": len(examples),
            "layer_runs": spent.layer_runs,
            "plain_layer_runs": int((~masks).sum()),
            "engine_seconds": spent.seconds,
            "plain_seconds": plain_time,
            "plain_masks_timed": len(rows),
            "ratio": plain_time / spent.seconds,
            "largest_difference": float(np.abs(losses[rows] - plain_losses).max()),
        }
        records.append(record)
        print(
            f"{size}, {name:13s} {len(masks):5d} masks: {record['ratio']:6.1f} times faster "
            f"({spent.layer_runs} layer runs for {record['plain_layer_runs']}, engine {spent.seconds:.2f} s, "
            f"plain {plain_time:.2f} s), losses differ by at most {record['largest_difference']:.1e}",
            flush=True,
        )
    return records


def main() -> None:
    """Measure, print, and write JSON if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("mini", "base"), default="mini")
    parser.add_argument("--plain", type=int, default=40, help="masks to time by plain forwards")
    parser.add_argument("--sets", nargs="*", help="names of the mask sets; all by default")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    records = measure(arguments.size, arguments.plain, arguments.sets)
    if arguments.json:
        machine = {
            "processor": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "torch": torch.__version__,
        }
        write_json(arguments.json, {"size": arguments.size, "machine": machine, "records": records})


if __name__ == "__main__":
    main()
