"""What the bundled supernet scores on the test split: what `das_gym/assets/README.md` says, measured again.

    python -m benchmarks.supernet
    python -m benchmarks.supernet --json supernet.json

Accuracy of the unskipped model, of the same model with every image replaced by the mean image, by family of questions, and
over all masks of k = 4. About two minutes on two cores.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path
from typing import Any

import numpy as np

from adapt.evaluate import evaluate, mean_image
from adapt.finetune import load_subnet
from das_gym.files import write_json
from das_gym.problem import ProblemConfig, load_problem


def unskipped_and_blinded() -> dict[str, Any]:
    """Evaluations of the unskipped supernet, seeing and blinded."""
    config = ProblemConfig()
    splits = load_problem(config).splits
    subnet, test = load_subnet(config, splits, np.zeros(12, dtype=bool)), splits.test
    blind = mean_image(subnet, test)
    return {
        "unskipped": vars(evaluate(subnet, test, "unskipped")),
        "blinded": vars(evaluate(subnet, test, "blinded", blind=blind)),
    }


def masks_of_four() -> dict[str, Any]:
    """Best, median and worst accuracy over all masks that skip four layers."""
    problem = load_problem(ProblemConfig())
    masks = np.array([mask for mask in itertools.product((False, True), repeat=12) if sum(mask) == 4])
    accuracy = problem.evaluator.evaluate(masks, problem.splits.test).metrics

    def described(row: int) -> dict[str, Any]:
        skipped = [problem.layer_names[i] for i in np.flatnonzero(masks[row])]
        return {"accuracy": float(accuracy[row]), "skipped_layers": skipped}

    best, worst = int(accuracy.argmax()), int(accuracy.argmin())
    return {"masks": len(masks), "best": described(best), "median": float(np.median(accuracy)), "worst": described(worst)}


def main() -> None:
    """Measure, print, and write JSON if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    record = unskipped_and_blinded()
    for name in ("unskipped", "blinded"):
        numbers = record[name]["numbers"]
        groups = ", ".join(f"{key} {100 * value:.1f}" for key, value in numbers.items() if key != "loss")
        print(f"{name}: {groups}")
    record["k = 4"] = four = masks_of_four()
    print(f"{four['masks']} masks of k = 4: median {100 * four['median']:.2f} %")
    for name in ("best", "worst"):
        print(f"  {name} {100 * four[name]['accuracy']:.2f} %, skips {', '.join(four[name]['skipped_layers'])}")
    if arguments.json:
        write_json(arguments.json, record)


if __name__ == "__main__":
    main()
