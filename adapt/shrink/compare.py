"""Measure what methods of choosing layers leave of a model, before and after the same recovery; table and verdict."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from das_gym.adapt.shrink.measuring import Quality, cached_values, score_model
from das_gym.adapt.shrink.recovery import Recovery, RecoveryConfig, Teacher, make_teacher

from das_gym.drawing.table import Table
from das_gym.models.transformers.layer_removal import draw_mask, pruned_copy
from das_gym.models.transformers.model import VLM
from das_gym.problem.loading import Problem

OURS = "bayes"
TIE = 1e-4
"""Losses that differ by less are equal, nats."""

NOT_MEASURED = Quality(np.inf, 0.0, 0.0, 0.0)


@dataclass(frozen=True)
class MethodResult:
    """One method of the comparison.

    Attributes:
        method: The agent.
        run: Id of its search.
        mask: 0 or 1 per layer, 1 = removed.
        evaluations: Number of masks scored, in units of all reward examples.
        seconds: Of the search, including the layer statistics that every environment measures first.
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
    seconds: float
    reward_loss: float | None
    macs_saved: float = 0.0
    kv_saved: float = 0.0
    drawn: str = ""
    before: Quality = NOT_MEASURED
    after: Quality | None = None
    recovery_seconds: float | None = None


class MaskEvaluator:
    """Measure pruned models; a mask that several methods found is measured once."""

    def __init__(
        self,
        problem: Problem,
        full: VLM,
        test: Sequence[Any],
        recovery: RecoveryConfig,
        batch_size: int,
        folder: Path | None = None,
        metric: str | None = None,
        other_units: MaskEvaluator | None = None,
    ) -> None:
        self.problem, self.full, self.test = problem, full, test
        self.recovery, self.batch_size, self.folder, self.metric = recovery, batch_size, folder, metric
        self._other_units = other_units  # of the same model: it has the same teacher
        self._known: dict[tuple[int, ...], MethodResult] = {}
        self._prompt = next(iter(problem.task.pairs(problem.task.open_ended(problem.splits.test[:1]))))

    def quality(self, vlm: VLM, title: str) -> Quality:
        """Return loss and score of a model."""
        return score_model(vlm, self.problem.task, self.test, self.batch_size, title, self.metric)[0]

    def evaluate(self, found: MethodResult) -> MethodResult:
        """Return the result of a method, given what its search found."""
        names = ("macs_saved", "kv_saved", "drawn", "before", "after", "recovery_seconds")
        if (known := self._known.get(found.mask)) is not None:
            measured: dict[str, Any] = {name: getattr(known, name) for name in names}
            return replace(found, **measured)
        mask, method = np.array(found.mask, dtype=bool), found.method
        smaller = pruned_copy(self.full, mask)
        before, after, seconds = self.quality(smaller, method), None, None
        if self.recovery.recover != "none":
            started = time.perf_counter()
            recovery = self._trained(mask, method)
            with recovery.merged():
                after = self.quality(recovery.student, f"{method}, recovered")
            seconds = time.perf_counter() - started
        cached = [cached_values(vlm, self.problem.task.processor, self._prompt) for vlm in (smaller, self.full)]
        saved = float(self.problem.costs.macs_saved(mask)), 1 - cached[0] / max(cached[1], 1)
        measured = dict(zip(names, (*saved, draw_mask(self.full, mask), before, after, seconds), strict=True))
        return replace(found, **measured)

    def _trained(self, mask: np.ndarray, method: str) -> Recovery:
        task, examples = self.problem.task, self.problem.splits.train
        checkpoint = None if self.folder is None else self._checkpoint(method)
        student = pruned_copy(self.full, mask)
        recovery = Recovery(student, self.full, task, examples, self.recovery, checkpoint, self.teacher)
        recovery.train()
        return recovery

    @cached_property
    def teacher(self) -> Teacher | None:
        """The full model's outputs on the training examples, computed when they are first asked for."""
        if self._other_units is not None:
            return self._other_units.teacher
        return make_teacher(self.full, self.problem.task, self.problem.splits.train, self.recovery)

    def remember(self, result: MethodResult) -> None:
        """Store a result that is in the record, and remove its checkpoint."""
        self._known[result.mask] = result
        if self.folder is not None:
            self._checkpoint(result.method).unlink(missing_ok=True)

    def _checkpoint(self, method: str) -> Path:
        assert self.folder is not None
        return self.folder / f"{method.replace('/', '_')}.pt"


def verdict(results: Sequence[MethodResult]) -> str:
    """Return how `OURS` compares with the other methods before recovery, by loss on the reward and test splits."""
    ours = next((result for result in results if result.method == OURS), None)
    if ours is None:
        return f"{OURS} is not among the methods."
    seen: dict[str, float | None] = {result.method: result.reward_loss for result in results}
    tested: dict[str, float | None] = {result.method: result.before.loss for result in results}
    sentences = []
    for split, losses in {"the reward split, which methods see": seen, "the test split": tested}.items():
        own = losses.pop(OURS)
        if own is None:
            sentences.append(f"Before recovery, {OURS} has no finite loss on {split}.")
            continue
        ahead = {method: own - loss for method, loss in losses.items() if loss is not None}
        better = [f"{method} by {by:.4f}" for method, by in ahead.items() if by > TIE]
        level = [method for method, by in ahead.items() if abs(by) <= TIE]
        if better:
            outcome = f"{', '.join(better)} nats better than {OURS}"
        else:
            outcome = f"no method is better than {OURS}, {', '.join(level)} equal" if level else f"{OURS} is the best"
        sentences.append(f"Before recovery, by loss on {split}: {outcome}.")
    return " ".join(sentences)


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
        row = [result.method, str(result.evaluations), f"{result.seconds:.1f}", *saved, seen, *quality(result.before)]
        rows.append([*row, *(quality(result.after) if recovers else []), result.drawn])
    notes = [verdict(results), *(f"{method} has no result: {reason}" for method, reason in left_out.items())]
    return Table((*columns, "layers"), tuple(map(tuple, rows)), title, tuple(notes), text_columns=(0, -1))
