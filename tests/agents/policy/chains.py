"""A loss of chains: each unit alone, with its next one, and with its next two, in two streams of units out of order."""

from __future__ import annotations

import numpy as np

from das_gym.problem.budget import Floats

STREAM = np.array([0, 0, 1, 0, 1, 0, 1, 1])
DEPTH = np.array([0.5, 0, 0, 0.25, 0.5, 0.75, 0.25, 1])
CHAINS = ((1, 3, 0, 5), (2, 6, 4, 7))


class Chains:
    """Return the loss, and statistics that correlate with it.

    Args:
        seed: Of its parts.
    """

    def __init__(self, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        runs = [chain[i : i + k] for chain in CHAINS for k in (1, 2, 3) for i in range(len(chain) - k + 1)]
        self.parts = {run: rng.normal() for run in runs}
        values = np.zeros((3, len(STREAM)))
        for run, part in self.parts.items():
            values[len(run) - 1, run[0]] = part
        names = ("leave_one_out", "next_interaction", "run_interaction")
        self.statistics: dict[str, Floats] = {**dict(zip(names, values, strict=True)), "stream": STREAM, "depth": DEPTH}

    def loss(self, mask: np.ndarray) -> float:
        """Of one mask, minus that of the full model."""
        return sum(part for run, part in self.parts.items() if mask[list(run)].all())
