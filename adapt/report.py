"""The table and the record at the end of an adaptation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from das_gym.adapt.evaluate import Evaluation

HEADLINES = ("consistency", *(f"{way}_r{level}" for way in ("tr", "ir") for level in (1, 5, 10)))
"""What is shown beside the metric, where the task reports it."""


@dataclass(frozen=True)
class Row:
    """One model of the comparison.

    Attributes:
        name: What it is.
        mask: 0 or 1 a layer, 1 = skipped.
        skipped_layers: Their names.
        evaluation: On the test split.
        trainable_parameters: Adapters, poolers, token types and head.
        parameters: All parameters of the model as it is now.
        macs: Of one example.
        macs_saved: Share of the MACs of the pre-trained model without adapters.
        latency_ms: Median time of one example, milliseconds.
    """

    name: str
    mask: tuple[int, ...]
    skipped_layers: tuple[str, ...]
    evaluation: Evaluation
    trainable_parameters: int
    parameters: int
    macs: int
    macs_saved: float
    latency_ms: float

    def record(self) -> dict[str, Any]:
        """The row as plain JSON values."""
        return {**asdict(self), "mask": list(self.mask), "skipped_layers": list(self.skipped_layers)}


def print_table(rows: Sequence[Row], title: str) -> None:
    """Print the comparison to standard output."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    table.add_column("")
    for row in rows:
        table.add_column(row.name, justify="right")
    reported = [name for name in HEADLINES if name in rows[0].evaluation.numbers]
    metric = rows[0].evaluation.metric_name.replace("_", " ")
    ranked = rows[0].evaluation.numbers.get("ranked_images")
    among = "" if ranked is None else f" among {ranked:.0f} images"
    lines = (
        (f"{metric} on test, %", lambda r: f"{100 * r.evaluation.metric:.2f}"),
        *((f"{name}{among}, %", lambda r, name=name: f"{100 * r.evaluation.numbers[name]:.2f}") for name in reported),
        ("trainable parameters", lambda r: f"{r.trainable_parameters:,}"),
        ("parameters", lambda r: f"{r.parameters:,}"),
        ("MACs of one example, M", lambda r: f"{r.macs / 1e6:.2f}"),
        ("MACs saved, %", lambda r: f"{100 * r.macs_saved:.2f}"),
        ("latency of one example, ms", lambda r: f"{r.latency_ms:.2f}"),
        ("skipped layers", lambda r: ", ".join(r.skipped_layers) or "none"),
    )
    for name, cell in lines:
        table.add_row(name, *(cell(row) for row in rows))
    Console(width=100).print(table)
