"""What an evaluation cost, in the units that papers state budgets in."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Spending:
    """Counters of an `Evaluator`.

    Attributes:
        masks: Masks scored, not counting those remembered.
        layer_runs: Runs of a kept layer on one batch, summed over batches.
        adapter_runs: Runs of a skip adapter on one batch, summed over batches.
        examples: Example-mask pairs scored.
        encoded: Examples that went through the encoders.
        seconds: Wall-clock time.
    """

    masks: int = 0
    layer_runs: int = 0
    adapter_runs: int = 0
    examples: int = 0
    encoded: int = 0
    seconds: float = 0.0
