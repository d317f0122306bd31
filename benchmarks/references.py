"""Train the full model with adapters and the baseline of `python -m adapt`, which come with das_gym as files.

python -m benchmarks.references                  writes both files into das_gym/assets/, from the seed
python -m benchmarks.references --check          trains both again, and compares their test metrics with the files'
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import cast

import numpy as np
from das_gym.adapt.evaluate import evaluate
from das_gym.adapt.finetune import cut_subnet, deciding_settings, finetune, load_reference, reference_file
from das_gym.adapt.report import BASELINE, FULL_MODEL
from das_gym.adapt.step_loss import resolve_defaults
from das_gym.adapt.training import TrainingConfig

from benchmarks.machine import make_parser
from das_gym.problem.config import ProblemConfig
from das_gym.problem.loading import AdaptedModel, load_backbone, load_splits

APART = 0.005
"""How far test metrics of two trainings may be apart, 0..1: another processor rounds otherwise."""


def main(arguments: list[str] | None = None) -> None:
    """Train, and write the files or compare with them."""
    parser = make_parser("references", __doc__)
    parser.add_argument("--check", action="store_true", help="write nothing")
    options = parser.parse_args(arguments)
    problem = ProblemConfig()
    splits, nothing = load_splits(problem), np.zeros(len(load_backbone(problem).vlp.layers), dtype=bool)

    def untrained(name: str) -> AdaptedModel:
        return cut_subnet(problem, nothing, adapters=name == FULL_MODEL)

    for name in (FULL_MODEL, BASELINE):
        model = untrained(name)
        config, _ = resolve_defaults(TrainingConfig(), model)
        finetune(model, splits, config, f"fine-tuning, {name}")
        metric = evaluate(model, splits.test, f"evaluating, {name}").metric
        print(f"{name}: {100 * metric:.2f} % on test")
        path = cast(Path, reference_file(problem, name))
        if not options.check:
            model.adaptation(settings=deciding_settings(problem, config)).save(path)
            print(f"written: {path}")
            continue
        shipped = untrained(name)
        if not load_reference(shipped, problem, config, name):
            sys.exit(f"{path} is missing, or was trained with other settings")
        kept = evaluate(shipped, splits.test, f"evaluating, {path.name}").metric
        print(f"{path.name}: {100 * kept:.2f} % on test")
        if abs(kept - metric) > APART:
            sys.exit(f"{path.name} and a new training are more than {100 * APART:g} points apart: write the file again")


if __name__ == "__main__":
    main()
