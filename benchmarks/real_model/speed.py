"""Measure tokens a second of the real model: full, without some of its layers, and with linear maps for these layers."""

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from das_gym import ProblemConfig, load_problem
from das_gym.drawing.report import markdown_table
from das_gym.models.transformers.inserted_adapters import copy_with_linear_skips
from das_gym.models.transformers.layer_removal import pruned_copy

PROMPT = 64
TOKENS = 64
ROUNDS = 15


@torch.inference_mode()
def speed(folder: Path, layers: Sequence[int]) -> None:
    """Print the time of the first token and the further tokens a second, in processor time of one thread.

    The models take turns. Each runs `ROUNDS` times, after one run that is not counted, in float32 with one prompt.
    """
    config = ProblemConfig(
        model="VLM", task="text", checkpoint=str(folder / "smollm2"), data_root=str(folder / "prose"), skip="linear"
    )
    problem = load_problem(config)
    full = problem.vlp
    mask = np.isin(np.arange(len(problem.layer_names)), layers)
    models = {"full model": full.model, "removed": pruned_copy(full, mask).model}
    models["linear maps"] = copy_with_linear_skips(full, mask).model
    prompt = torch.tensor([problem.splits.test[0].ids[:PROMPT]])
    times = np.zeros((ROUNDS + 1, len(models), 2))
    for round_times in times:
        for model, taken in zip(models.values(), round_times, strict=True):
            for place, count in enumerate((1, TOKENS)):
                started = time.process_time()
                model.generate(prompt, max_new_tokens=count, min_new_tokens=count, do_sample=False)
                taken[place] = time.process_time() - started
    first = times[1:, :, 0]
    further = (TOKENS - 1) / (times[1:, :, 1] - first)
    rows = [
        [name, quartiles(1000 * first[:, place]), quartiles(further[:, place]), quartiles(further[:, place] / further[:, 0])]
        for place, name in enumerate(models)
    ]
    head = ("", f"first token after {PROMPT}, ms", "further tokens a second", "times as fast")
    print(*markdown_table(head, rows), sep="\n")


def quartiles(values: np.ndarray) -> str:
    """Return the median of values, with their quartiles."""
    low, middle, high = np.percentile(values, (25, 50, 75))
    return f"{middle:.3g} ({low:.3g} to {high:.3g})"
