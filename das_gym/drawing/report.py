"""Tables of text cells: printed, written as Markdown, and shown in reports."""

from __future__ import annotations

import json
import os
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich import box
from rich.cells import cell_len
from rich.console import Console as RichConsole
from rich.table import Table as RichTable
from rich.text import Text

from das_gym.drawing.architecture import Architecture
from das_gym.files import write_text
from das_gym.names import escape_control_chars, format_count
from das_gym.problem.mask_space import front_rows

if TYPE_CHECKING:
    from das_gym.tables.table import SubnetTable

WIDTH = 80
"""Columns of a terminal that printed tables and sentences fit in."""

MAX_DOTS = 1500
"""Largest number of a table's masks in a chart. The front and the masks that the search scored are always shown."""

MAX_TURNS = 120
"""Largest number of columns of a heat map, evenly spaced over the turns."""

MAX_ANSWERS = 12

Point = tuple[float, float]
"""Share of MACs saved, and loss in nats."""

LIBRARIES = ("vendor/d3.min.js", "vendor/plot.umd.min.js")
"""D3 and Observable Plot as published; their licences are in `pages/vendor/LICENSES.txt`."""


@dataclass(frozen=True)
class Table:
    """A table of text cells.

    Attributes:
        columns: Headings. The first column names the rows.
        rows: The cells of each row.
        title: One line above the table.
        notes: Sentences below the table.
        text_columns: Numbers of the columns that are aligned left, -1 is the last; all others are aligned right.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    title: str = ""
    notes: tuple[str, ...] = ()
    text_columns: tuple[int, ...] = (0,)

    def markdown(self) -> str:
        """Return the table and its notes, without the title, as Markdown."""
        lines = markdown_table(self.columns, self.rows, self.text_columns)
        for note in self.notes:
            lines += ["", note]
        return "\n".join(lines)

    def print(self, width: int = WIDTH, heading_width: int = 14) -> None:
        """Print the table and its notes. No word is cut, so that it may be wider than `width`; headings are wrapped."""
        if self.title:  # not rich's, which wraps it at the width of the table
            print(escape_control_chars(self.title))
        table = RichTable(box=box.SIMPLE_HEAD, padding=0, pad_edge=False)
        left = {column % len(self.columns) for column in self.text_columns}
        headings = [self.columns[0], *("\n".join(textwrap.wrap(each, heading_width)) for each in self.columns[1:])]
        edges = len(headings) + 1  # a space on each side, and between columns
        widths = self._widths(headings, width - edges)
        for number, heading in enumerate(headings):
            table.add_column(heading, justify="left" if number in left else "right", width=widths[number])
        for row in self.rows:
            table.add_row(*row)
        Console(width=max(width, sum(widths) + edges)).print(table)
        for note in self.notes:
            print(textwrap.fill(note, WIDTH))

    def _widths(self, headings: Sequence[str], room: int) -> list[int]:
        columns = [[escape_control_chars(row[number]) for row in self.rows] for number in range(len(headings))]
        parts = [columns[0], *([word for cell in cells for word in cell.split()] for cells in columns[1:])]
        lines = [heading.split("\n") for heading in headings]
        widths = [max(map(cell_len, [*some, *others])) for some, others in zip(parts, lines, strict=True)]
        wanted = [max(map(cell_len, [*cells, *others])) for cells, others in zip(columns, lines, strict=True)]
        for number in sorted(range(len(widths)), key=lambda column: wanted[column] - widths[column]):
            spare = max(0, room - sum(widths))
            widths[number] = min(wanted[number], widths[number] + spare)
        return widths


class Console(RichConsole):
    """A console of rich that raises BrokenPipeError as `print` does, where rich would end the process."""

    def render_str(self, text: str, **kwargs: Any) -> Text:
        """Render a text literally: without markup, emoji codes and control characters, since it may come from a file."""
        return super().render_str(escape_control_chars(text), **{**kwargs, "markup": False, "emoji": False})

    def on_broken_pipe(self) -> None:
        """Raise the error again."""
        raise


def markdown_table(headings: Sequence[str], rows: Iterable[Sequence[str]], text_columns: Sequence[int] = (0,)) -> list[str]:
    """Return the lines of a Markdown table."""
    left = {column % len(headings) for column in text_columns}
    rule = "".join("---|" if column in left else "---:|" for column in range(len(headings)))
    return [f"| {' | '.join(headings)} |", f"|{rule}", *(f"| {' | '.join(row)} |" for row in rows)]


@dataclass(frozen=True)
class Progress:
    """Reward of every scored mask, and the best so far of those within the budget; None where it is not finite."""

    rewards: list[float | None]
    best: list[float | None]


@dataclass(frozen=True)
class Heat:
    """Skip probabilities over time: `values[t][i]` is that of unit i after turn `turns[t]`."""

    turns: list[int]
    values: list[list[float]]

    @classmethod
    def from_turns(cls, values: Sequence[Sequence[float]]) -> Heat | None:
        """Return the heat map of all turns, thinned to `MAX_TURNS`; None without turns."""
        if not values:
            return None
        kept = np.unique(np.linspace(0, len(values) - 1, min(len(values), MAX_TURNS)).round().astype(int)).tolist()
        return cls([turn + 1 for turn in kept], [np.round(values[turn], 4).tolist() for turn in kept])


@dataclass(frozen=True)
class CostChart:
    """Loss against cost: masks of the table, the front from the most saved on, scored masks, and the search's answer."""

    others: list[Point]
    front: list[Point]
    tried: list[Point]
    landed: Point | None
    about: str

    @classmethod
    def from_search(
        cls, tried: Sequence[Point], landed: Point | None, table: SubnetTable | None = None, split: str = "reward"
    ) -> CostChart:
        """Return the chart of a search, over the masks of a table if there is one."""
        if table is None:
            saved, losses = np.array(tried).reshape(-1, 2).T
            some = np.array([], int)
            about = "the masks that the search scored"
        else:
            losses = table.values("loss", split)
            saved = table.macs_saved
            some = np.flatnonzero(np.isfinite(losses))
            if len(some) > MAX_DOTS:
                # The same dots each time, so that the same run gives the same file.
                some = np.random.default_rng(0).choice(some, MAX_DOTS, replace=False)
            about = f"{len(some):,} of the table's {len(losses):,} masks"
        rows = front_rows(saved, losses)[::-1]
        # Five digits are more than a chart shows, and keep the page small.
        points: list[Any] = list(map(tuple, np.stack((saved, losses), axis=1).round(5).tolist()))
        return cls([points[row] for row in some], [points[row] for row in rows], list(tried), landed, about)


@dataclass(frozen=True)
class Question:
    """A question of the test split. Its images are small `data:` URLs: the page's security policy blocks any others."""

    text: str
    reference: str = ""
    images: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Answers:
    """Questions with the answers of models, the full model first, and a line about which questions these are."""

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
    def from_models(cls, models: Sequence[str], questions: Sequence[Question], answers: Sequence[Sequence[str]]) -> Answers:
        """Return the answers of all models, the full model first, to the questions that `rows_to_show` chooses."""
        about = f"{len(questions):,} of {format_count(len(answers), 'question')}"
        instructions = {question.text.rpartition("\n")[2] for question in questions if "\n" in question.text}
        if len(instructions) == 1 and all("\n" in question.text for question in questions):  # the same below each question
            about += f", each followed by: {instructions.pop()!r}"
            questions = [replace(question, text=question.text.rpartition("\n")[0]) for question in questions]
        rows = zip(questions, (list(answers[row]) for row in cls.rows_to_show(answers)), strict=True)
        if len(models) > 1:
            differing = sum(len(set(each)) > 1 for each in answers)
            about += f"; the models differ on {differing:,}, which come first" if differing else "; the models agree on all"
        return cls(list(models), list(rows), about)


@dataclass(frozen=True)
class RunReport:
    """The content of a report on one run, which a command keeps in its record. A part that is None is left out.

    Attributes:
        title: What was done.
        facts: Values by name; those of several runs are shown side by side.
        mask: 0 or 1 per unit, 1 = skipped.
        table: The models or methods side by side.
        heat: Skip probabilities of the search.
        statistics: By name, one value per unit.
        name: Such as "run 3".
        commands: Commands that repeat the run, one a line.
        versions: Of Python and the libraries that it ran with.
    """

    title: str
    facts: Mapping[str, str]
    architecture: Architecture
    mask: list[int]
    table: Table | None = None
    progress: Progress | None = None
    heat: Heat | None = None
    cost: CostChart | None = None
    statistics: Mapping[str, list[float]] | None = None
    answers: Answers | None = None
    name: str = ""
    commands: list[str] = field(default_factory=list)
    versions: Mapping[str, str] | None = None

    def __post_init__(self) -> None:
        if len(self.mask) != len(self.architecture.units):
            raise ValueError(f"`mask` has {len(self.mask)} entries for {len(self.architecture.units)} units")

    def record(self) -> dict[str, Any]:
        """Return the parts that are known as JSON values, from which `build` makes the report again."""
        return {name: value for name, value in asdict(self).items() if value}

    def print(self) -> None:
        """Print the table, if there is one."""
        if self.table is not None:
            self.table.print()

    def with_search(self, search: RunReport) -> RunReport:
        """Return the report with the charts, facts and commands of the search that preceded the run."""
        names = ("progress", "heat", "cost", "statistics")
        missing = {name: getattr(search, name) for name in names if getattr(self, name) is None}
        facts = {**self.facts, **{f"search: {name}": value for name, value in search.facts.items()}}
        # A fine-tuned model's record knows its layers, but what they cost only the search has counted.
        lacks_shares = any(unit.share is None for unit in self.architecture.units)
        architecture = search.architecture if lacks_shares else self.architecture
        return replace(self, facts=facts, architecture=architecture, commands=[*search.commands, *self.commands], **missing)


def write_report(path: str | os.PathLike[str], reports: Sequence[RunReport]) -> Path:
    """Write the page and return its path."""
    names = ("name", "mask", "progress", "heat", "cost", "statistics")
    runs = []
    for report in reports:
        values = asdict(report)
        runs.append({"units": values["architecture"]["units"], **{name: values[name] for name in names}})
    title = reports[0].title if len(reports) == 1 else f"{len(reports)} runs: {', '.join(r.name for r in reports)}"
    return write_page(path, {"runs": runs}, title=title, reports=reports)


def write_page(path: str | os.PathLike[str], data: dict[str, Any], **context: Any) -> Path:
    """Write the page of `pages/report.html.jinja`. `data` is JSON for the script; `context` is escaped."""
    from markupsafe import Markup  # marks our own scripts and style, which are not escaped

    scripts = [Markup(_text(file)) for file in (*LIBRARIES, "shared.js", "report.js")]
    text = json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")  # no "</script>" in it
    page = (
        _templates()
        .get_template("report.html.jinja")
        .render(
            style=Markup(_text("style.css")),
            scripts=scripts,
            data=Markup(text),
            licences=_text("vendor/LICENSES.txt"),
            **context,
        )
    )
    write_text(path, page)
    return Path(path)


@lru_cache(maxsize=1)
def _templates() -> Any:
    import jinja2

    return jinja2.Environment(
        loader=jinja2.FunctionLoader(_text),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


@lru_cache(maxsize=16)
def _text(file: str) -> str:
    return resources.files("das_gym.drawing").joinpath("pages", file).read_text(encoding="utf-8")
