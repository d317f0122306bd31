"""Measure what methods of choosing layers leave of a model, before and after the same recovery; table and verdict."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
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


@dataclass(frozen=True)
class FoundMask:
    """The mask that a method found, and the cost of the search.

    Attributes:
        method: The agent.
        run: Id of its search.
        mask: 0 or 1 per layer, 1 = removed.
        evaluations: Number of masks scored, in units of all reward examples.
        seconds: Of the search, including the layer statistics that every environment measures first.
        reward_loss: The mask's loss on the reward split, nats.
    """

    method: str
    run: int
    mask: tuple[int, ...]
    evaluations: int
    seconds: float
    reward_loss: float | None


@dataclass(frozen=True)
class MethodResult:
    """One method of the comparison.

    Attributes:
        found: The mask that it found.
        macs_saved: Share of the full model's MACs.
        kv_saved: Share of the full model's bytes of keys and values per token.
        drawn: The removed layers as text.
        before: After removal alone.
        after: After recovery. None without recovery.
        recovery_seconds: Of recovery.
    """

    found: FoundMask
    macs_saved: float
    kv_saved: float
    drawn: str
    before: Quality
    after: Quality | None
    recovery_seconds: float | None


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
    ) -> None:
        self.problem, self.full, self.test = problem, full, test
        self.recovery, self.batch_size, self.folder, self.metric = recovery, batch_size, folder, metric
        self._teacher: Teacher | None = None
        self._known: dict[tuple[int, ...], MethodResult] = {}
        self._prompt = next(iter(problem.task.pairs(problem.task.open_ended(problem.splits.test[:1]))))

    def quality(self, vlm: VLM, title: str) -> Quality:
        """Return loss and score of a model."""
        return score_model(vlm, self.problem.task, self.test, self.batch_size, title, self.metric).quality

    def evaluate(self, found: FoundMask) -> MethodResult:
        """Return the result of a method."""
        if (known := self._known.get(found.mask)) is not None:
            return replace(known, found=found)
        mask, method = np.array(found.mask, dtype=bool), found.method
        smaller = pruned_copy(self.full, mask)
        before, after, seconds = self.quality(smaller, method), None, None
        if self.recovery.recover != "none":
            started = time.perf_counter()
            after = self.quality(self._recovered(mask, method), f"{method}, recovered")
            seconds = time.perf_counter() - started
        saved = float(self.problem.costs.macs_saved(mask))
        cached = [cached_values(vlm, self.problem.task.processor, self._prompt) for vlm in (smaller, self.full)]
        kept = cached[0] / max(cached[1], 1)
        return MethodResult(found, saved, 1 - kept, draw_mask(self.full, mask), before, after, seconds)

    def _recovered(self, mask: np.ndarray, method: str) -> VLM:
        task, examples = self.problem.task, self.problem.splits.train
        self._teacher = self._teacher or make_teacher(self.full, task, examples, self.recovery)
        checkpoint = None if self.folder is None else self._checkpoint(method)
        student = pruned_copy(self.full, mask)
        Recovery(student, self.full, task, examples, self.recovery, checkpoint, self._teacher).run()
        return student

    def remember(self, result: MethodResult) -> None:
        """Store a result that is in the record, and remove its checkpoint."""
        self._known[result.found.mask] = result
        if self.folder is not None:
            self._checkpoint(result.found.method).unlink(missing_ok=True)

    def _checkpoint(self, method: str) -> Path:
        assert self.folder is not None
        return self.folder / f"{method.replace('/', '_')}.pt"


def verdict(results: Sequence[MethodResult]) -> str:
    """Return how `OURS` compares with the other methods before recovery, by loss on the reward and test splits."""
    ours = next((result for result in results if result.found.method == OURS), None)
    if ours is None:
        return f"{OURS} is not among the methods."
    splits: dict[str, Callable[[MethodResult], float | None]] = {
        "the reward split, which methods see": lambda result: result.found.reward_loss,
        "the test split": lambda result: result.before.loss,
    }
    sentences = []
    for split, read in splits.items():
        own = read(ours)
        if own is None:
            sentences.append(f"Before recovery, {OURS} has no finite loss on {split}.")
            continue
        better, level = [], []
        for result in results:
            loss = read(result)
            if result is ours or loss is None:
                continue
            if loss < own - TIE:
                better.append(f"{result.found.method} by {own - loss:.4f}")
            elif abs(loss - own) <= TIE:
                level.append(result.found.method)
        if better:
            outcome = f"{', '.join(better)} nats better than {OURS}"
        elif level:
            outcome = f"no method is better than {OURS}, {', '.join(level)} equal"
        else:
            outcome = f"{OURS} is the best"
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
        found = result.found
        seen = "-" if found.reward_loss is None else f"{found.reward_loss:.4f}"
        saved = [f"{100 * share:.1f} %" for share in (result.macs_saved, result.kv_saved)]
        row = [found.method, str(found.evaluations), f"{found.seconds:.1f}", *saved, seen, *quality(result.before)]
        rows.append([*row, *(quality(result.after) if recovers else []), result.drawn])
    notes = [verdict(results), *(f"{method} has no result: {reason}" for method, reason in left_out.items())]
    return Table((*columns, "layers"), tuple(map(tuple, rows)), title, tuple(notes), text_columns=(0, -1))
