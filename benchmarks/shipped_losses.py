"""python -m benchmarks.shipped_losses: write `answering_losses.json` next to both bundled answering models.

They hold the losses that `leave_one_out` asks for on the default reward examples, so that `reset` does not score them again.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from das_gym.files import write_json
from das_gym.problem.config import ProblemConfig
from das_gym.problem.loading import load_problem
from das_gym.tables.build import table_examples
from das_gym.tables.shipped_losses import identify, mask_name


def main() -> None:
    """Score the full model and every layer's removal, and write the losses."""
    for checkpoint in (None, "llava_mini"):
        config = ProblemConfig(model="VLM", task="answering", checkpoint=checkpoint)
        problem = load_problem(config)
        examples = table_examples(problem, "reward", problem.task.reward_examples)
        masks = np.eye(len(problem.layer_names) + 1, dtype=bool)[:, 1:]  # the first skips nothing
        losses = problem.evaluator.losses(masks, examples).tolist()
        record = identify(problem, examples) | {"losses": dict(zip(map(mask_name, masks), losses, strict=True))}
        path = (Path(config.checkpoint) if config.checkpoint else config.bundled("")) / f"{config.task}_losses.json"
        write_json(path, record)
        print(f"{len(masks)} losses: {path}")


if __name__ == "__main__":
    main()
