"""Methods that choose what to delete, side by side: what each costs, and what is left before and after recovery."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from das_gym.adapt.report import WIDTH
from das_gym.adapt.shrink.recovery import Recovery, RecoveryConfig, Teacher, ask_for_all
from das_gym.adapt.shrink.report import loss_of
from das_gym.adapt.shrink.scores import interval, scored

from das_gym.drawing.table import markdown_table
from das_gym.models.transformers.cutting import cut, drawn
from das_gym.models.transformers.generation import generate
from das_gym.models.transformers.model import VLM
from das_gym.problem.loading import Problem

OURS = "bayes"
TIE = 1e-4
"""Losses that differ by less count as equal, nats."""


@dataclass(frozen=True)
class Found:
    """What a method found, and at which price.

    Attributes:
        method: The agent.
        run: Id of its search.
        mask: 0 or 1 a layer, 1 = deleted.
        evaluations: Masks scored, in units of all reward examples.
        seconds: Of the search, layer statistics included, which every environment measures first.
        reward_loss: The mask's loss on the reward split, which the method saw, nats.
    """

    method: str
    run: int
    mask: tuple[int, ...]
    evaluations: int
    seconds: float
    reward_loss: float | None


@dataclass(frozen=True)
class Quality:
    """What a model does on test examples.

    Attributes:
        loss: Of the reference answers, nats.
        score: Mean score of generated answers, 0..1.
        low: Of its 95 % interval.
        high: Likewise.
    """

    loss: float
    score: float
    low: float
    high: float


@dataclass(frozen=True)
class Line:
    """One method's line of the table.

    Attributes:
        found: What it found.
        macs_saved: Share of the full model's MACs.
        drawn: Which layers went.
        before: After deletion alone.
        after: After recovery; None without one.
        recovery_seconds: Of recovery.
    """

    found: Found
    macs_saved: float
    drawn: str
    before: Quality
    after: Quality | None
    recovery_seconds: float | None

    def record(self) -> dict[str, Any]:
        """In plain JSON values."""
        return asdict(self)


class Judge:
    """Measures what masks leave of a model; masks that several methods found are measured once.

    Args:
        problem: The whole model with its data; it stays as it is.
        whole: Its model.
        test: Test examples.
        recovery: Settings, the same for all.
        batch_size: Prompts that are answered at a time.
        folder: Where a recovery is kept meanwhile, and gone on from; None = nowhere.
    """

    def __init__(
        self,
        problem: Problem,
        whole: VLM,
        test: Sequence[Any],
        recovery: RecoveryConfig,
        batch_size: int,
        folder: Path | None = None,
    ) -> None:
        self.problem, self.whole, self.test = problem, whole, test
        self.recovery, self.batch_size, self.folder = recovery, batch_size, folder
        self._teacher: Teacher | None = None
        self._known: dict[tuple[int, ...], tuple[Quality, Quality | None, float | None]] = {}

    def quality(self, vlm: VLM, title: str) -> Quality:
        """Loss and score of a model."""
        task = self.problem.task
        processor: Any = task.processor
        open_ended = task.open_ended(self.test)
        loss = loss_of(vlm, task, open_ended, self.batch_size, f"loss, {title}")
        texts = generate(vlm, processor, task.pairs(open_ended), f"answers, {title}", self.batch_size)
        scores = scored(task, self.test, texts)
        return Quality(loss, float(scores.mean()), *interval(scores))

    def line(self, found: Found) -> Line:
        """A method's line."""
        mask = np.array(found.mask, dtype=bool)
        if found.mask not in self._known:
            before = self.quality(cut(self.whole, mask), found.method)
            self._known[found.mask] = (before, *self._recovered(mask, found.method))
        before, after, seconds = self._known[found.mask]
        which = drawn(self.whole, mask)
        return Line(found, float(self.problem.costs.macs_saved(mask)), which, before, after, seconds)

    def remember(self, line: Line) -> None:
        """What was measured before."""
        self._known[line.found.mask] = (line.before, line.after, line.recovery_seconds)
        if self.folder is not None:
            _checkpoint(self.folder, line.found.method).unlink(missing_ok=True)

    def _recovered(self, mask: np.ndarray, title: str) -> tuple[Quality | None, float | None]:
        if self.recovery.recover == "none":
            return None, None
        student, started = cut(self.whole, mask), time.perf_counter()
        task, examples = self.problem.task, self.problem.splits.train
        self._teacher = self._teacher or ask_for_all(self.whole, task, examples, self.recovery)
        checkpoint = None if self.folder is None else _checkpoint(self.folder, title)
        Recovery(student, self.whole, task, examples, self.recovery, checkpoint, self._teacher).run()
        return self.quality(student, f"{title}, recovered"), time.perf_counter() - started


def _checkpoint(folder: Path, method: str) -> Path:
    return folder / f"{method}.pt"


def verdict(lines: Sequence[Line]) -> str:
    """Where ours is ahead before recovery, where level, and where not: in a sentence for each split."""
    ours = next((line for line in lines if line.found.method == OURS), None)
    if ours is None:
        return f"{OURS} is not among the methods."
    readings: tuple[tuple[str, Callable[[Line], float | None]], ...] = (
        ("the reward split, which methods see", lambda line: line.found.reward_loss),
        ("the test split", lambda line: line.before.loss),
    )
    said = []
    for split, read in readings:
        mine = read(ours)
        others = [(read(line), line.found.method) for line in lines if line is not ours]
        if mine is None:
            said.append(f"Before recovery, {OURS} has no finite loss on {split}.")
            continue
        better = [f"{name} by {mine - loss:.4f}" for loss, name in others if loss is not None and loss < mine - TIE]
        level = [name for loss, name in others if loss is not None and abs(loss - mine) <= TIE]
        ahead = f"{OURS} is ahead of all" if not level else f"none is ahead of {OURS}, level are {', '.join(level)}"
        what = f"ahead of {OURS} are {', '.join(better)} nats" if better else ahead
        said.append(f"Before recovery, by loss on {split}: {what}.")
    return " ".join(said)


HEADS = ("method", "evaluations", "seconds", "MACs saved", "loss seen", "loss", "score (95 %)")
RECOVERED_HEADS = ("recovered loss", "recovered score (95 %)")


def rows_of(full: Quality, lines: Sequence[Line]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Heads and cells of the table, the full model first, then the least test loss before recovery."""
    recovers = any(line.after is not None for line in lines)

    def quality(value: Quality | None) -> tuple[str, str]:
        if value is None:
            return "-", "-"
        return f"{value.loss:.4f}", f"{100 * value.score:.1f} ({100 * value.low:.1f}..{100 * value.high:.1f})"

    heads = (*HEADS, *(RECOVERED_HEADS if recovers else ()), "layers")
    first = ("full model", "-", "-", "-", "-", *quality(full), *(("-", "-") if recovers else ()), "")
    rows = [first]
    for line in sorted(lines, key=lambda line: line.before.loss):
        found = line.found
        seen = "-" if found.reward_loss is None else f"{found.reward_loss:.4f}"
        saved = f"{100 * line.macs_saved:.1f} %"
        cells = (found.method, str(found.evaluations), f"{found.seconds:.1f}", saved, seen, *quality(line.before))
        rows.append((*cells, *(quality(line.after) if recovers else ()), line.drawn))
    return heads, rows


def remarks(lines: Sequence[Line], left_out: Mapping[str, str]) -> list[str]:
    """The verdict, and why methods have no line."""
    return [verdict(lines), *(f"{method} has no line: {reason}" for method, reason in left_out.items())]


def markdown(title: str, full: Quality, lines: Sequence[Line], left_out: Mapping[str, str]) -> str:
    """The table as Markdown; reasons of methods that are left out below it."""
    heads, rows = rows_of(full, lines)
    below = [part for remark in remarks(lines, left_out) for part in ("", remark)]
    return "\n".join([f"# {title}", "", *markdown_table(heads, rows, words=(0, -1)), *below, ""])


def print_comparison(title: str, full: Quality, lines: Sequence[Line], left_out: Mapping[str, str]) -> None:
    """The table for a person, the verdict, and why methods are left out."""
    from rich.table import Table

    from das_gym.console import Console

    heads, rows = rows_of(full, lines)
    table = Table(title=title, title_justify="left")
    for head in heads:
        table.add_column(head, justify="left" if head in ("method", "layers") else "right", no_wrap=head == "method")
    for row in rows:
        table.add_row(*row)
    console = Console()
    console.width = max(console.width, 130)
    console.print(table)
    for remark in remarks(lines, left_out):
        print(textwrap.fill(remark, WIDTH))
