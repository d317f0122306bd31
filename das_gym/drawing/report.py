"""The report of one or more runs, side by side, as one HTML file."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from das_gym.config import build
from das_gym.drawing.architecture import Architecture
from das_gym.drawing.page import write_page
from das_gym.drawing.table import Table
from das_gym.problem.front import front_rows
from das_gym.tables.table import SubnetTable
from das_gym.wording import counted

MAX_DOTS = 1500
"""Largest number of a table's masks in a chart. The front and the masks that the search scored are always shown."""

MAX_TURNS = 120
"""Largest number of columns of a heat map, evenly spaced over the turns."""

MAX_ANSWERS = 12


@dataclass(frozen=True)
class Progress:
    """A search over its evaluations.

    Attributes:
        rewards: (n,) rewards in the order of scoring. None for a number that is not finite, here and below.
        best: (n,) best reward so far of masks within the budget.
        regret: (n,) difference to the best mask of all. None if that is unknown.
    """

    rewards: list[float | None]
    best: list[float | None]
    regret: list[float | None] | None = None


@dataclass(frozen=True)
class Heat:
    """Skip probabilities over time: `values[t][i]` is that of unit i after turn `turns[t]`."""

    turns: list[int]
    values: list[list[float]]

    @classmethod
    def of(cls, values: Sequence[Sequence[float]]) -> Heat | None:
        """Return the heat map of all turns, thinned to `MAX_TURNS`; None without turns."""
        if not values:
            return None
        kept = np.unique(np.linspace(0, len(values) - 1, min(len(values), MAX_TURNS)).round().astype(int)).tolist()
        return cls([turn + 1 for turn in kept], [np.round(values[turn], 4).tolist() for turn in kept])


@dataclass(frozen=True)
class CostChart:
    """Loss against cost. Points are (share of MACs saved, loss in nats).

    Attributes:
        others: Masks of the table, or some of them.
        front: The Pareto front, from the most saved on.
        tried: Masks that the search scored.
        landed: The search's answer.
        about: What the points are.
    """

    others: list[tuple[float, float]]
    front: list[tuple[float, float]]
    tried: list[tuple[float, float]]
    landed: tuple[float, float] | None
    about: str

    @classmethod
    def of(
        cls,
        tried: Sequence[tuple[float, float]],
        landed: tuple[float, float] | None,
        table: SubnetTable | None = None,
        split: str = "reward",
    ) -> CostChart:
        """Return the chart of a search, over the masks of a table if there is one."""
        if table is None:
            saved, losses = np.array(tried).reshape(-1, 2).T
            rows, some, about = front_rows(saved, losses)[::-1], np.array([], int), "the masks that the search scored"
        else:
            losses, saved = table.values("loss", split), table.macs_saved
            rows, some, about = (
                table.index(table.pareto_front("loss", split)),
                np.flatnonzero(np.isfinite(losses)),
                "all masks of the table",
            )
            if len(some) > MAX_DOTS:
                some = np.random.default_rng(0).choice(some, MAX_DOTS, replace=False)
            if len(some) < len(losses):
                about = f"{len(some):,} of the table's {len(losses):,} masks"
        points = np.stack((saved, losses), axis=1).round(5).tolist()
        pairs: list[tuple[float, float]] = [(share, loss) for share, loss in points]
        return cls([pairs[row] for row in some], [pairs[row] for row in rows], list(tried), landed, about)


@dataclass(frozen=True)
class Question:
    """A question of the test split.

    Attributes:
        text: The question.
        reference: The right answer, empty if unknown.
        images: Its images, small, as `data:` URLs. The page's content security policy blocks any other URL.
    """

    text: str
    reference: str = ""
    images: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Answers:
    """Questions with the answers of models.

    Attributes:
        models: Their names, the full model first.
        rows: Each question with the answer of each model.
        about: Which questions these are.
    """

    models: list[str]
    rows: list[tuple[Question, list[str]]]
    about: str

    def __post_init__(self) -> None:
        if any(len(answers) != len(self.models) for _, answers in self.rows):
            raise ValueError(f"a question does not have the answers of {len(self.models)} models")

    @staticmethod
    def rows_to_show(answers: Sequence[Sequence[str]]) -> list[int]:
        """Return the numbers of `MAX_ANSWERS` questions, those with differing answers first."""
        return sorted(range(len(answers)), key=lambda row: len(set(answers[row])) < 2)[:MAX_ANSWERS]

    @classmethod
    def of(cls, models: Sequence[str], questions: Sequence[Question], answers: Sequence[Sequence[str]]) -> Answers:
        """Return the answers of all models, the full model first, to the questions that `rows_to_show` chooses."""
        rows = zip(questions, (list(answers[row]) for row in cls.rows_to_show(answers)), strict=True)
        about = f"{len(questions):,} of {counted(len(answers), 'question')}"
        differing = sum(len(set(each)) > 1 for each in answers)
        if len(models) > 1:
            about += f"; the models differ on {differing:,}, which come first" if differing else "; the models agree on all"
        return cls(list(models), list(rows), about)

    @property
    def has_images(self) -> bool:
        """Whether any question has an image."""
        return any(question.images for question, _ in self.rows)

    @property
    def has_references(self) -> bool:
        """Whether any question has a right answer."""
        return any(question.reference for question, _ in self.rows)


@dataclass(frozen=True)
class RunReport:
    """The content of a report on one run. A part that is None is left out.

    Attributes:
        name: Such as "run 3".
        title: What was done.
        facts: Values by name.
        architecture: The model's units.
        mask: 0 or 1 per unit, 1 = skipped.
        commands: Commands that repeat the run, one a line.
        progress: The search.
        heat: Its skip probabilities.
        cost: Loss against cost.
        statistics: By name, one value per unit.
        table: The models or methods side by side.
        answers: Questions with answers.
        versions: Of Python and the libraries that it ran with.
    """

    name: str
    title: str
    facts: Mapping[str, str]
    architecture: Architecture
    mask: list[int]
    commands: list[str]
    progress: Progress | None = None
    heat: Heat | None = None
    cost: CostChart | None = None
    statistics: Mapping[str, list[float]] | None = None
    table: Table | None = None
    answers: Answers | None = None
    versions: Mapping[str, str] | None = None

    def checked(self) -> RunReport:
        """Return the report itself."""
        if len(self.mask) != len(self.architecture.units):
            raise ValueError(f"`mask` has {len(self.mask)} entries for {len(self.architecture.units)} units")
        return build(RunReport, vars(self))

    def with_search(self, search: RunReport) -> RunReport:
        """Return the report with the charts, facts and commands of the search that preceded the run."""
        names = ("progress", "heat", "cost", "statistics")
        missing = {name: getattr(search, name) for name in names if getattr(self, name) is None}
        facts = {**self.facts, **{f"search: {name}": value for name, value in search.facts.items()}}
        lacks_shares = any(unit.share is None for unit in self.architecture.units)
        architecture = search.architecture if lacks_shares else self.architecture
        return replace(self, facts=facts, architecture=architecture, commands=[*search.commands, *self.commands], **missing)


def write_report(path: str | os.PathLike[str], reports: Sequence[RunReport]) -> Path:
    """Write the page and return its path."""
    runs: list[dict[str, Any]] = []
    for report in reports:
        charts = {
            name: value for name, value in asdict(report).items() if name in ("progress", "heat", "cost", "statistics")
        }
        mask = [int(bit) for bit in report.mask]
        runs.append({"name": report.name, "units": report.architecture.record(), "mask": mask, **charts})
    title = reports[0].title if len(reports) == 1 else f"{len(reports)} runs: {', '.join(r.name for r in reports)}"
    return write_page(path, "report", {"runs": runs}, title=title, reports=reports)
