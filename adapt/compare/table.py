"""What a comparison comes to: a row a method, the table for people and as Markdown, and what it says of DAS."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from das_gym.adapt.compare.entrants import Entrant
from das_gym.adapt.compare.trials import Trial
from das_gym.adapt.report import runs

from das_gym.drawing.table import markdown_table
from das_gym.problem.latency import Speedup

POINT = 0.01
"""How much DAS may lose against adapters without skipping and still be called level, of the metric's 0..1."""


@dataclass(frozen=True)
class Line:
    """What a method came to with its learning rate, over all seeds.

    Attributes:
        key, title: Of the row.
        skip_num: Layers that it skips.
        rate: Its learning rate.
        updated: Parameters of the model that it updates, without head and poolers; mean over seeds, here and below.
        trained: All that trains.
        macs: Of one example.
        saved: Share of the baseline's MACs that it saves, negative where it adds some.
        speedup: How many times as fast as the baseline, both timed in turns with the first seed: ratio of the medians and
            its 95 % interval. Milliseconds of rows do not compare: hours lie between them.
        scores: The metric on the test split of each seed, 0..1.
        layers: Skipped layers of each seed.
    """

    key: str
    title: str
    skip_num: int
    rate: float
    updated: float
    trained: float
    macs: float
    saved: float
    speedup: tuple[float, ...]
    scores: tuple[float, ...]
    layers: tuple[tuple[str, ...], ...]

    @property
    def score(self) -> float:
        """Mean over seeds."""
        return float(np.mean(self.scores))

    @property
    def spread(self) -> float:
        """Standard deviation over seeds; not a number where there is one alone."""
        return float(np.std(self.scores, ddof=1)) if len(self.scores) > 1 else math.nan


def line_of(row: Entrant, trials: Sequence[Trial], names: Sequence[str]) -> Line | None:
    """The line of a row; None where none of its trainings was measured yet."""
    own = [t for t in trials if t.entrant == row.key and t.test is not None]
    if not own:
        return None

    def mean(values: Sequence[float]) -> float:
        return float(np.mean(values))

    return Line(
        key=row.key,
        title=row.title,
        skip_num=row.skip_num,
        rate=own[0].rate,
        updated=mean([t.updated for t in own]),
        trained=mean([t.trained for t in own]),
        macs=mean([t.macs or 0 for t in own]),
        saved=mean([1 - (t.macs or 0) / (t.macs_full or 1) for t in own]),
        speedup=next((t.speedup for t in own if t.speedup), ()),
        scores=tuple(t.test for t in own if t.test is not None),
        layers=tuple(tuple(n for n, bit in zip(names, t.mask, strict=True) if bit) for t in own),
    )


HEADS = ("method", "learning rate", "updated", "all that trains", "MACs, M", "MACs saved, %", "times as fast", "test, %")


def cells(line: Line) -> tuple[str, ...]:
    """A line of the table."""
    spread = "" if math.isnan(line.spread) else f" ± {100 * line.spread:.1f}"
    return (
        line.title,
        f"{line.rate:g}",
        f"{line.updated:,.0f}",
        f"{line.trained:,.0f}",
        f"{line.macs / 1e6:,.2f}",
        f"{100 * line.saved:.1f}",
        "{:.2f} ({:.2f}..{:.2f})".format(*line.speedup) if line.speedup else "-",
        f"{100 * line.score:.1f}{spread} ({len(line.scores)})",
    )


def verdict(lines: Sequence[Line]) -> list[str]:
    """What the comparison says of DAS: against adapters without skipping, and against random masks; a sentence each."""
    by_key = {line.key: line for line in lines}
    said = []
    adapter = by_key.get("adapter")
    for line in lines:
        if line.key.startswith("das_") and adapter is not None:
            lost = 100 * (adapter.score - line.score)
            how = f"loses {abs(lost):.1f} points" if lost >= 0 else f"gains {-lost:.1f} points"
            judged = "at most" if round(lost, 1) <= 100 * POINT else "more than"
            judged = f" ({judged} {100 * POINT:g})" if lost >= 0 else ""
            macs = f"saves {100 * line.saved:.1f} %" if line.saved >= 0 else f"adds {-100 * line.saved:.1f} %"
            fast = f" and {runs(Speedup(*line.speedup))}" if line.speedup else ""
            said.append(
                f"{line.title}: {how}{judged} against adapters without skipping; it {macs} of the baseline's MACs{fast}."
            )
        rival = by_key.get(f"random_{line.skip_num}")
        if line.key.startswith("das_") and rival is not None:
            ahead, spread = 100 * (line.score - rival.score), 100 * np.nanmax([line.spread, rival.spread, 0.0])
            how = f"{abs(ahead):.1f} points {'ahead of' if ahead > 0 else 'behind'}" if ahead else "level with"
            known = len(rival.scores) > 1 or len(line.scores) > 1
            judged = "more than" if abs(ahead) > spread else "within"
            told = f", {judged} the spread of {spread:.1f}" if known else ", of one seed each"
            said.append(f"{line.title}: {how} random masks of as many layers{told}.")
    return said


def markdown(title: str, lines: Sequence[Line], notes: Sequence[str]) -> str:
    """The table as Markdown, with what it says and which layers are skipped."""
    table = markdown_table(HEADS, map(cells, lines))
    skipped = [f"- {line.title}: {_skipped(line)}" for line in lines if line.skip_num]
    about = (
        "*updated*: parameters of the model that a method updates, without head and poolers, which train with all but head "
        "only. *MACs saved* and *times as fast* are relative to the baseline, the pre-trained model: ratio of the median "
        "times, both timed in turns with the first seed, and its 95 % interval. *test*: mean ± standard deviation over "
        "(seeds)."
    )
    return "\n".join([f"# {title}", "", *table, "", about, "", *notes, "", "Skipped layers:", "", *skipped, ""])


def _skipped(line: Line) -> str:
    return "; ".join(", ".join(layers) for layers in dict.fromkeys(line.layers))


def print_table(title: str, lines: Sequence[Line], notes: Sequence[str], width: int) -> None:
    """The table for a person."""
    from rich.table import Table

    from das_gym.console import Console

    table = Table(title=title, title_justify="left")
    for head in HEADS:
        narrow = "\n".join(textwrap.wrap(head, 9))
        table.add_column(narrow, justify="left" if head == "method" else "right", no_wrap=head == "method")
    for line in lines:
        table.add_row(*cells(line))
    console = Console()
    console.width = max(console.width, width)
    console.print(table)
    for note in notes:
        print(note)
