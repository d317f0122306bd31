"""Training as long as it helps: until the reward split stops getting better, within a limit, then a short decay."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from das_gym.processes import of_first

CHECKS = 40
"""How often the reward split is asked within the limit."""

COOLING = 0.25
"""Steps of the decay at the end, as a share of those before it."""

LESS = 0.002
"""Share by which a loss has to be lower to count as better."""


class Plateau:
    """The course of the learning rate where the length follows the data: rise, hold, and, once nothing gets better, fall.

    Kept with the trainer's checkpoints; the first process measures for all.

    Args:
        limit: Steps at most, those of the decay included.
        warmup: Share of the limit in which the learning rate rises.
        patience: Checks in a row without a lower loss before the decay begins.
        measure: The loss on the reward split, nats.
    """

    def __init__(self, limit: int, warmup: float, patience: int, measure: Callable[[], float]) -> None:
        self.limit = limit
        self.rise = max(1, round(limit * warmup))
        self.patience = patience
        self.measure = measure
        self.every = max(1, limit // CHECKS)
        self.best = math.inf
        self.waited = 0
        self.fall = max(0, math.floor(limit / (1 + COOLING)))

    @property
    def end(self) -> int:
        """The last step, as far as is known."""
        return min(self.limit, self.fall + max(1, math.ceil(self.fall * COOLING)))

    def factor(self, step: int) -> float:
        """Of the learning rate."""
        if step < self.rise:
            return (step + 1) / self.rise
        return 1.0 if step < self.fall else max(0.0, 1 - (step - self.fall) / max(1, self.end - self.fall))

    def after(self, step: int) -> None:
        """Look whether the reward split still gets better; `step` steps are done."""
        if step % self.every or step >= self.fall:
            return
        loss = of_first(self.measure)
        better = loss < self.best * (1 - LESS)
        self.best, self.waited = (loss, 0) if better else (self.best, self.waited + 1)
        if self.waited >= self.patience:
            self.fall = step

    def state_dict(self) -> dict[str, Any]:
        """All that changes."""
        best = None if math.isinf(self.best) else self.best
        return {"best": best, "waited": self.waited, "fall": self.fall}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self.best = math.inf if state["best"] is None else float(state["best"])
        self.waited, self.fall = int(state["waited"]), int(state["fall"])
