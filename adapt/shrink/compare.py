"""Measure what methods of choosing layers leave of a model, before and after the same recovery; and the table."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from das_gym.adapt.shrink.measuring import Quality, cached_values, score_model
from das_gym.adapt.shrink.recovery import RecoveryConfig, Teacher, merged, recover

from das_gym.drawing.table import Table
from das_gym.models.transformers.layer_removal import draw_mask, pruned_copy
from das_gym.models.transformers.model import VLM
from das_gym.problem.loading import Problem

NOT_MEASURED = Quality(np.inf, 0.0, 0.0, 0.0)


@dataclass(frozen=True)
class MethodResult:
    """One method of the comparison.

    Attributes:
        method: The agent.
        run: Id of its search.
        mask: 0 or 1 per layer, 1 = removed.
        evaluations: Number of masks scored, in units of all reward examples.
        seconds: Of the search, including the layer statistics that every environment measures first. None if it was
            interrupted.
        reward_loss: The mask's loss on the reward split, nats.
        macs_saved: Share of the full model's MACs. This and all below are 0 or None until the mask is measured.
        kv_saved: Share of the full model's bytes of keys and values per token.
        drawn: The removed layers as text.
        before: Quality after removal alone.
        after: Quality after recovery. None without recovery.
        recovery_seconds: Of recovery.
    """

    method: str
    run: int
    mask: tuple[int, ...]
    evaluations: int
    seconds: float | None
    reward_loss: float | None
    macs_saved: float = 0.0
    kv_saved: float = 0.0
    drawn: str = ""
    before: Quality = NOT_MEASURED
    after: Quality | None = None
    recovery_seconds: float | None = None

    def measured_as(self, other: MethodResult) -> MethodResult:
        """Return this method with the measurements of another one that found the same mask."""
        own = {name: getattr(self, name) for name in ("method", "run", "evaluations", "seconds", "reward_loss")}
        return replace(other, **own)


def measure_mask(
    found: MethodResult,
    problem: Problem,
    full: VLM,
    test: Sequence[Any],
    recovery: RecoveryConfig,
    teacher: Teacher | None,
    checkpoint: Path,
    metric: str | None = None,
) -> MethodResult:
    """Return a method's result with the quality of the model without its layers, before and after recovery."""
    task, mask, name = problem.task, np.array(found.mask, dtype=bool), found.method
    smaller = pruned_copy(full, mask)
    prompt = next(iter(task.pairs(task.open_ended(problem.splits.test[:1]))))
    cached, cached_of_full = (cached_values(vlm, task.processor, prompt) for vlm in (smaller, full))
    before, after, seconds = score_model(smaller, task, test, name, metric)[0], None, None
    if recovery.recover != "none":
        started = time.perf_counter()
        trained = recover(smaller, full, task, problem.splits.train, recovery, checkpoint, teacher)
        with merged(smaller, full, recovery, trained, checkpoint.parent):
            after = score_model(smaller, task, test, f"{name}, recovered", metric)[0]
        seconds = time.perf_counter() - started
    return replace(
        found,
        macs_saved=float(problem.costs.macs_saved(mask)),
        kv_saved=1 - cached / max(cached_of_full, 1),
        drawn=draw_mask(full, mask),
        before=before,
        after=after,
        recovery_seconds=seconds,
    )


def comparison_table(title: str, full: Quality, results: Sequence[MethodResult], left_out: Mapping[str, str]) -> Table:
    """Return the table: the full model first, then methods by test loss before recovery."""
    recovers = any(result.after is not None for result in results)
    columns = ["method", "evaluations", "seconds", "MACs saved", "KV saved", "loss seen", "loss", "score (95 %)"]
    columns += ["recovered loss", "recovered score (95 %)"] if recovers else []

    def quality(value: Quality | None) -> list[str]:
        if value is None:
            return ["-", "-"]
        return [f"{value.loss:.4f}", f"{100 * value.score:.1f} ({100 * value.low:.1f}..{100 * value.high:.1f})"]

    rows = [["full model", "-", "-", "-", "-", "-", *quality(full), *(["-", "-"] if recovers else []), ""]]
    for result in sorted(results, key=lambda result: result.before.loss):
        seen = "-" if result.reward_loss is None else f"{result.reward_loss:.4f}"
        saved = [f"{100 * share:.1f} %" for share in (result.macs_saved, result.kv_saved)]
        seconds = "-" if result.seconds is None else f"{result.seconds:.1f}"
        row = [result.method, str(result.evaluations), seconds, *saved, seen, *quality(result.before)]
        rows.append([*row, *(quality(result.after) if recovers else []), result.drawn])
    notes = [f"{method} has no result: {reason}" for method, reason in left_out.items()]
    return Table((*columns, "layers"), tuple(map(tuple, rows)), title, tuple(notes), text_columns=(0, -1))
