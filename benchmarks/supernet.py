"""What a bundled supernet scores on the test split: what `das_gym/assets/README.md` says, measured again.

    python -m benchmarks.supernet
    python -m benchmarks.supernet vilt_retrieval --no-masks --json supernet.json

What the unskipped model scores, by group of examples where the task has such, the same with every image replaced by the mean
image, and the metric over all masks of k = 4 (for retrieval of 250 examples). One to five minutes on two cores.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from das_gym.adapt.evaluate import evaluate, mean_image
from das_gym.adapt.finetune import cut_subnet

from das_gym.files import write_json
from das_gym.problem.config import ProblemConfig
from das_gym.problem.loading import load_problem, shuffled
from das_gym.problem.mask_space import every_mask
from das_gym.registration import ENVIRONMENTS

PAIRS_FOR_MASKS = 4000
"""All masks are scored on as many test examples as come to so many pairs of text and image."""


def unskipped_and_blinded(config: ProblemConfig) -> dict[str, Any]:
    """Evaluations of the unskipped supernet, seeing and blinded."""
    problem = load_problem(config)
    test = problem.splits.test
    subnet = cut_subnet(config, problem.splits, np.zeros(len(problem.layer_names), dtype=bool))
    blind = mean_image(subnet, test)
    return {
        "unskipped": vars(evaluate(subnet, test, "unskipped")),
        "blinded": vars(evaluate(subnet, test, "blinded", blind=blind)),
    }


def masks_of_four(config: ProblemConfig) -> dict[str, Any]:
    """Best, median and worst metric over all masks that skip four layers, on the test split or as much of it as is quick."""
    problem = load_problem(config)
    examples = shuffled(problem.task, problem.splits.test, problem.task.examples_for_pairs(PAIRS_FOR_MASKS))
    masks = every_mask(len(problem.layer_names))
    masks = masks[masks.sum(axis=1) == 4]
    metric = problem.evaluator.evaluate(masks, examples).metrics

    def described(row: int) -> dict[str, Any]:
        skipped = [problem.layer_names[i] for i in np.flatnonzero(masks[row])]
        return {"metric": float(metric[row]), "skipped_layers": skipped}

    best, worst = int(metric.argmax()), int(metric.argmin())
    return {
        "masks": len(masks),
        "examples": len(examples),
        "best": described(best),
        "median": float(np.median(metric)),
        "worst": described(worst),
    }


def main() -> None:
    """Measure, print, and write JSON if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    problems = {entry.short: entry for entry in ENVIRONMENTS.values() if entry.bundled}
    parser.add_argument("problem", nargs="?", choices=problems, default="meter_vqa")
    parser.add_argument("--no-masks", action="store_true", help="leave the masks of k = 4 out; tables tell of them too")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    entry = problems[arguments.problem]
    config = ProblemConfig(model=entry.model, task=entry.task)
    record = unskipped_and_blinded(config)
    for name in ("unskipped", "blinded"):
        numbers = record[name]["numbers"]
        told = {key: value for key, value in numbers.items() if key not in ("loss", "ranked_images")}
        groups = ", ".join(f"{key} {100 * value:.1f}" for key, value in told.items())
        print(f"{name}: {groups}")
    if not arguments.no_masks:
        record["k = 4"] = four = masks_of_four(config)
        print(f"{four['masks']} masks of k = 4, {four['examples']:,} examples: median {100 * four['median']:.2f} %")
        for name in ("best", "worst"):
            print(f"  {name} {100 * four[name]['metric']:.2f} %, skips {', '.join(four[name]['skipped_layers'])}")
    if arguments.json:
        write_json(arguments.json, record)


if __name__ == "__main__":
    main()
