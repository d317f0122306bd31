"""The paper's settings for every model and task, ours, MACs, and the published tables with the command of each cell.

python -m adapt paper
python -m adapt paper with image_size=576 text_tokens=50    MACs of METER-base at another size

Settings come with their source, and with the differences between the paper, its scripts and its code.
"""

from __future__ import annotations

import math
import textwrap
from dataclasses import dataclass

from das_gym.adapt.paper import DIFFERENCES, PAPER, ours_of, sources
from das_gym.adapt.published import count_costs_of_meter, print_published
from das_gym.adapt.training import check_ranges

from das_gym.drawing.table import Table
from das_gym.runs import PluginSettings

COUNTINGS = {
    "runs": "Counted as the model runs, with the first layers skipped.",
    "paper": "Counted as the paper counts: every token of the last stage too. It has 11.97 % saved with k = 4.",
}
COLUMNS = {
    "macs": ("MACs, G", 1e9, ".3f"),
    "change": ("change, G", 1e9, "+.3f"),
    "percent": ("change, %", 1.0, "+.2f"),
    "adapters": ("adapters, M", 1e6, ".2f"),
    "adapters_and_norms": ("and norms, M", 1e6, ".2f"),
}
"""Numbers of `count_costs_of_meter`: title, unit and format."""


@dataclass(frozen=True)
class PaperSettings(PluginSettings):
    """The settings of `python -m adapt paper`: the size at which MACs of METER-base are counted.

    Attributes:
        image_size: Side of the image in pixels, at least 1.
        text_tokens: Length of the text in tokens, at least 1.
    """

    image_size: int = 384
    text_tokens: int = 40

    def __post_init__(self) -> None:
        check_ranges(self, image_size=(1, math.inf), text_tokens=(1, math.inf))


def main(settings: PaperSettings) -> None:
    """Print settings, sources, differences, costs and tables."""
    print("Settings of the paper's pipeline, and ours where they differ:")
    for model in dict.fromkeys(model for model, _ in PAPER):
        settings_table(model).print()
    print_lines("Where each comes from:", sources())
    print_lines("Why ours differ:", {f"{name}={value}": reason for name, (value, reason) in ours_of("VLM").items()})
    print_lines("Where the paper, its scripts and its code differ:", dict(DIFFERENCES))
    for counting, caption in COUNTINGS.items():
        costs_table(settings, counting, caption).print()
    print_published({cell: each.image_size for cell, each in PAPER.items()})


def settings_table(model: str) -> Table:
    """Return the settings of a model for each task, and ours."""
    of_tasks = {task: settings for (name, task), settings in PAPER.items() if name == model}
    own, rows = ours_of(model), []
    for name in sources():
        ours = str(own[name][0]) if name in own else "same"
        rows.append((name, *(str(getattr(settings, name)) for settings in of_tasks.values()), ours))
    columns = ("setting", *of_tasks, "ours")
    return Table(columns, tuple(rows), model, text_columns=tuple(range(len(columns))))


def print_lines(title: str, lines: dict[str, str]) -> None:
    """Print a title and a line for each name, in 80 columns."""
    print(title)
    for name, text in lines.items():
        print(textwrap.fill(f"{name}: {text}", 80, initial_indent="  ", subsequent_indent="      "))


def costs_table(settings: PaperSettings, counting: str, note: str) -> Table:
    """Return MACs and parameters of METER-base, and the share saved by skipping four layers."""
    rows = []
    for row in count_costs_of_meter(settings.image_size, settings.text_tokens, counting=counting):
        cells = [f"{float(row[name]) / unit:{form}}" for name, (_, unit, form) in COLUMNS.items()]
        rows.append((str(row["what"]), *cells))
    title = f"METER-base on VQA, {settings.image_size} px, {settings.text_tokens} text tokens, one example"
    return Table(("", *(heading for heading, _, _ in COLUMNS.values())), tuple(rows), title, (note,))
