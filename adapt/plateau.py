"""Early stopping: train until the loss on the reward split stops falling, then decay the learning rate."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from das_gym.processes import run_on_main_process

CHECKS = 40
"""Number of checks within the limit of steps."""

DECAY_FRACTION = 0.25
"""Steps of the final decay, as a fraction of the steps before it."""

MIN_IMPROVEMENT = 0.002
"""Fraction by which a loss has to be lower to count as better."""


class Plateau:
    """A learning rate schedule whose length follows the data: warm up, hold, and decay once nothing improves.

    The state is saved in the trainer's checkpoints. The main process measures for all.

    Args:
        limit: Largest number of steps, with those of the decay.
        warmup: Fraction of the limit in which the learning rate rises.
        patience: Checks in a row without a lower loss before the decay begins.
        measure: Returns the loss on the reward split.
    """

    def __init__(self, limit: int, warmup: float, patience: int, measure: Callable[[], float]) -> None:
        self.limit = limit
        self.warmup_steps = max(1, round(limit * warmup))
        self.patience = patience
        self.measure = measure
        self.every = max(1, limit // CHECKS)
        self.best = math.inf
        self.bad_checks = 0
        self.decay_start = max(0, math.floor(limit / (1 + DECAY_FRACTION)))

    @property
    def end(self) -> int:
        """The last step, as currently planned."""
        return min(self.limit, self.decay_start + max(1, math.ceil(self.decay_start * DECAY_FRACTION)))

    def factor(self, step: int) -> float:
        """Return the factor of the learning rate at a step."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        if step < self.decay_start:
            return 1.0
        return max(0.0, 1 - (step - self.decay_start) / max(1, self.end - self.decay_start))

    def check(self, step: int) -> None:
        """Measure the loss where one is due, and begin the decay if it has not improved for too long."""
        if step % self.every or step >= self.decay_start:
            return
        loss = run_on_main_process(self.measure)
        if loss < self.best * (1 - MIN_IMPROVEMENT):
            self.best, self.bad_checks = loss, 0
        else:
            self.bad_checks += 1
        if self.bad_checks >= self.patience:
            self.decay_start = step

    def state_dict(self) -> dict[str, Any]:
        """Return all that changes, as JSON values."""
        best = None if math.isinf(self.best) else self.best
        return {"best": best, "bad_checks": self.bad_checks, "decay_start": self.decay_start}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.best = math.inf if state["best"] is None else float(state["best"])
        self.bad_checks, self.decay_start = int(state["bad_checks"]), int(state["decay_start"])
