"""The report of one or more runs, side by side, as one HTML file."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from das_gym.config import build
from das_gym.drawing.architecture import Architecture
from das_gym.drawing.page import write_page
from das_gym.runs import library_versions
from das_gym.tables.table import SubnetTable
from das_gym.wording import counted

MOST_DOTS = 1500
"""Masks of a table that a chart shows; the front and what the run tried are always among them."""

MOST_TURNS = 120
"""Columns of a heat map; of more turns, so many at even distances."""

MOST_ANSWERS = 12

PICTURE = re.compile(r"data:image/(jpeg|png);base64,[A-Za-z0-9+/]+=*")


@dataclass(frozen=True)
class Progress:
    """A search over its evaluations.

    Attributes:
        rewards: (n,) of the masks as they were scored; None where a number is not finite, here and below.
        best: (n,) the best reward that may be an answer, so far.
        regret: (n,) by how much the best mask of all is better than that; None where nobody knows it.
    """

    rewards: list[float | None]
    best: list[float | None]
    regret: list[float | None] | None = None


@dataclass(frozen=True)
class Heat:
    """Skip probabilities: `values[t][i]` of unit i after turn `turns[t]`."""

    turns: list[int]
    values: list[list[float]]

    @classmethod
    def of(cls, values: Sequence[Sequence[float]]) -> Heat | None:
        """Those of all turns, thinned to `MOST_TURNS`; None of none."""
        if not values:
            return None
        kept = np.unique(np.linspace(0, len(values) - 1, min(len(values), MOST_TURNS)).round().astype(int)).tolist()
        return cls([turn + 1 for turn in kept], [[round(p, 4) for p in values[turn]] for turn in kept])


@dataclass(frozen=True)
class CostChart:
    """Loss against cost; points are (share of MACs saved, loss in nats).

    Attributes:
        others: Masks of the table, or some of them.
        front: Those that no other beats in loss without costing more, from the cheapest on.
        tried: What the search scored.
        landed: The search's answer.
        about: What the points are, in words.
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
        """That of a search, before the masks of a table where there is one."""
        if table is None:
            return cls([], front_of(tried), list(tried), landed, "the masks that the search scored")
        losses, saved = table.values("loss", split), table.macs_saved
        finite = np.flatnonzero(np.isfinite(losses))
        some = finite if len(finite) <= MOST_DOTS else np.random.default_rng(0).choice(finite, MOST_DOTS, replace=False)
        masks = table.index(table.pareto_front("loss", split))
        about = (
            f"{len(some):,} of the table's {len(losses):,} masks" if len(some) < len(losses) else "all masks of the table"
        )
        return cls(_points(saved[some], losses[some]), _points(saved[masks], losses[masks]), list(tried), landed, about)


def front_of(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Those points (saved, loss) that no other beats in loss without saving less, from the most saved on."""
    front: list[tuple[float, float]] = []
    for saved, loss in sorted(set(points), key=lambda point: (-point[0], point[1])):
        if not front or loss < front[-1][1]:
            front.append((saved, loss))
    return front


def _points(saved: np.ndarray, losses: np.ndarray) -> list[tuple[float, float]]:
    return [(round(s, 5), round(loss, 5)) for s, loss in zip(saved.tolist(), losses.tolist(), strict=True)]


@dataclass(frozen=True)
class Comparison:
    """A table of models: `rows` are (what, one cell a column), and `title` stands above it."""

    columns: list[str]
    rows: list[tuple[str, list[str]]]
    title: str = "Before and after"


@dataclass(frozen=True)
class Asked:
    """A question.

    Attributes:
        question: In words.
        reference: The right answer; empty where nobody knows it.
        pictures: What it is about, small, as `data:` URLs of JPEG or PNG.

    Raises:
        ValueError: a picture is anything else.
    """

    question: str
    reference: str = ""
    pictures: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not all(PICTURE.fullmatch(picture) for picture in self.pictures):
            raise ValueError("pictures are data: URLs of JPEG or PNG in base64")


@dataclass(frozen=True)
class Answers:
    """What models said.

    Attributes:
        models: Their names, the full one first.
        rows: (question, what each said).
        about: Which questions these are, in words.

    Raises:
        ValueError: not every model answers every question.
    """

    models: list[str]
    rows: list[tuple[Asked, list[str]]]
    about: str

    def __post_init__(self) -> None:
        if any(len(said) != len(self.models) for _, said in self.rows):
            raise ValueError(f"there are {len(self.models)} models, and a question has another number of answers")

    @classmethod
    def of(cls, models: Sequence[str], said: Sequence[Sequence[str]], asked: Callable[[int], Asked]) -> Answers:
        """The first `MOST_ANSWERS`, those on which the models differ before the others.

        Args:
            models: Names, the full one first.
            said: What each of them said to each question.
            asked: The question of a number.
        """
        order = sorted(range(len(said)), key=lambda i: len(set(said[i])) < 2)
        shown = [(asked(i), list(said[i])) for i in order[:MOST_ANSWERS]]
        about = f"{len(shown):,} of {counted(len(said), 'question')}"
        if len(models) > 1:
            differing = sum(len(set(each)) > 1 for each in said)
            about += f"; the models differ on {differing:,}, which come first" if differing else "; the models agree on all"
        return cls(list(models), shown, about)

    @property
    def pictured(self) -> bool:
        """Whether any question has a picture."""
        return any(asked.pictures for asked, _ in self.rows)

    @property
    def referenced(self) -> bool:
        """Whether the right answer to any question is known."""
        return any(asked.reference for asked, _ in self.rows)


@dataclass(frozen=True)
class RunReport:
    """What a report tells of a run; whatever is None is left out.

    Attributes:
        name: Such as "run 3".
        title: What was done.
        facts: Name and value, in words.
        architecture: The model's units.
        mask: 0/1 a unit, 1 = skipped.
        commands: What does the same again, a line each.
        progress: The search.
        heat: Its skip probabilities.
        cost: Loss against cost.
        statistics: By name, one value a unit.
        comparison: Before and after.
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
    comparison: Comparison | None = None
    answers: Answers | None = None
    versions: Mapping[str, str] | None = None

    def checked(self) -> RunReport:
        """The same, once it is what it says that it is: records may hold anything.

        Raises:
            TypeError, ValueError: it is not.
        """
        if len(self.mask) != len(self.architecture.units):
            raise ValueError(f"a mask of {len(self.mask)} for {len(self.architecture.units)} units")
        return build(RunReport, vars(self))

    def with_search(self, search: RunReport) -> RunReport:
        """The same with what its search has and it has not, and the search's commands before its own."""
        names = ("progress", "heat", "cost", "statistics")
        missing = {name: getattr(search, name) for name in names if getattr(self, name) is None}
        facts = {**self.facts, **{f"search: {name}": value for name, value in search.facts.items()}}
        shares = any(unit.share is None for unit in self.architecture.units)
        architecture = search.architecture if shares else self.architecture
        commands = [*search.commands, *self.commands]
        return replace(self, facts=facts, architecture=architecture, commands=commands, **missing)


def write_report(path: str | os.PathLike[str], reports: Sequence[RunReport]) -> Path:
    """Write the page; the path."""
    charts = ("progress", "heat", "cost", "statistics")
    runs: list[dict[str, Any]] = [
        {
            "name": report.name,
            "units": report.architecture.record(),
            "mask": [int(bit) for bit in report.mask],
            **{name: value for name, value in asdict(report).items() if name in charts},
        }
        for report in reports
    ]
    title = reports[0].title if len(reports) == 1 else f"{len(reports)} runs: {', '.join(r.name for r in reports)}"
    return write_page(path, "report", {"runs": runs}, title=title, reports=reports, here=library_versions())
