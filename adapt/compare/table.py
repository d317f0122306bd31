"""The results of a comparison: one line per variant, the table, and the verdict on DAS."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from das_gym.adapt.compare.record import MethodVariant, Trial
from das_gym.adapt.report import format_speedup

from das_gym.drawing.architecture import Architecture
from das_gym.drawing.report import RunReport
from das_gym.drawing.table import Table


@dataclass(frozen=True)
class Line:
    """The result of a variant with its learning rate, over all seeds.

    Attributes:
        key, title: Of the variant.
        skip_num: Number of skipped layers.
        rate: Its learning rate.
        updated: Trained parameters without head and poolers; mean over seeds, here and below.
        trained: All trained parameters.
        macs: Of one example.
        saved: Share of the baseline's MACs that it saves, negative if it adds some.
        speedup: Relative to the baseline, with the first seed: ratio of the medians and its 95 % interval. Milliseconds of
            different lines are not comparable, since they are measured hours apart.
        scores: The metric on the test split for each seed, 0..1.
        layers: Skipped layers for each seed.
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

    @classmethod
    def of(cls, variant: MethodVariant, trials: Sequence[Trial], names: Sequence[str]) -> Line | None:
        """Return the line of a variant, None before its first measurement."""
        own = [t for t in trials if t.variant == variant.key and t.test is not None]
        if not own:
            return None
        return cls(
            key=variant.key,
            title=variant.title,
            skip_num=variant.skip_num,
            rate=own[0].rate,
            updated=float(np.mean([t.updated for t in own])),
            trained=float(np.mean([t.trained for t in own])),
            macs=float(np.mean([t.macs or 0 for t in own])),
            saved=float(np.mean([1 - (t.macs or 0) / (t.macs_full or 1) for t in own])),
            speedup=next((t.speedup for t in own if t.speedup), ()),
            scores=tuple(t.test for t in own if t.test is not None),
            layers=tuple(tuple(n for n, bit in zip(names, t.mask, strict=True) if bit) for t in own),
        )

    @property
    def score(self) -> float:
        """Mean over seeds."""
        return float(np.mean(self.scores))

    @property
    def spread(self) -> float:
        """Standard deviation over seeds; NaN for one seed."""
        return float(np.std(self.scores, ddof=1)) if len(self.scores) > 1 else math.nan


COLUMNS = ("method", "learning rate", "updated", "all that trains", "MACs, M", "MACs saved, %", "times as fast", "test, %")
LEGEND = (
    "updated: trained parameters without head and poolers, which train with every method but head only. MACs saved and "
    "times as fast are relative to the baseline, the pre-trained model: ratio of the median times with the first seed, and "
    "its 95 % interval. test: mean ± standard deviation (seeds)."
)


def comparison_table(title: str, lines: Sequence[Line], notes: Sequence[str]) -> Table:
    """Return the table."""
    rows = []
    for line in lines:
        spread = "" if math.isnan(line.spread) else f" ± {100 * line.spread:.1f}"
        row = (line.title, f"{line.rate:g}", f"{line.updated:,.0f}", f"{line.trained:,.0f}", f"{line.macs / 1e6:,.2f}")
        score = f"{100 * line.score:.1f}{spread} ({len(line.scores)})"
        rows.append((*row, f"{100 * line.saved:.1f}", format_speedup(*line.speedup) if line.speedup else "-", score))
    return Table(COLUMNS, tuple(rows), title, (LEGEND, *notes))


def report_of(
    what: str, metric: str, architecture: Architecture, lines: Sequence[Line], table: Table
) -> dict[str, Any] | None:
    """Return the record of a report on the best row and the layers that DAS skips; None before the first measurement."""
    if not lines:
        return None
    best = max(lines, key=lambda line: line.score)
    shown = max((line for line in lines if line.key.startswith("das_")), key=lambda line: line.score, default=best)
    skipped = shown.layers[0]
    facts = {
        "skips": f"{', '.join(skipped) or 'nothing'} ({shown.title})",
        f"{metric} on test, %": f"{100 * best.score:.2f} ({best.title}, the best)",
    }
    mask = [int(unit.name in skipped) for unit in architecture.units]
    return RunReport(f"{what}, methods of fine-tuning compared", facts, architecture, mask, table=table).record()


def verdict(lines: Sequence[Line]) -> list[str]:
    """Return sentences on DAS against adapters without skipping, and against random masks."""
    by_key = {line.key: line for line in lines}
    sentences = []
    for line in lines:
        if not line.key.startswith("das_"):
            continue
        rivals = {"adapter": "adapters without skipping", f"random_{line.skip_num}": "random masks of as many layers"}
        for rival, words in ((by_key[key], words) for key, words in rivals.items() if key in by_key):
            ahead, spread = 100 * (line.score - rival.score), 100 * np.nanmax([line.spread, rival.spread, 0.0])
            order = f"{abs(ahead):.1f} points {'ahead of' if ahead > 0 else 'behind'}" if ahead else "level with"
            within = f"{'more than' if abs(ahead) > spread else 'within'} the spread of {spread:.1f}"
            known = len(rival.scores) > 1 or len(line.scores) > 1
            sentences.append(f"{line.title}: {order} {words}, {within if known else 'of one seed each'}.")
    return sentences
