"""What an adaptation comes to: each model evaluated and measured, the table, and one sentence of conclusion."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from das_gym.adapt.evaluate import RANKED_IMAGES, Evaluation, evaluate
from das_gym.adapt.examples import write_examples

from das_gym.data.splits import Splits
from das_gym.files import write_json
from das_gym.problem.costs import Costs
from das_gym.problem.latency import Spread, measure_latency, speedup
from das_gym.problem.loading import AdaptedModel, example_costs
from das_gym.problem.mask_space import skipped_names
from das_gym.tasks.base import Task

HEADLINES = ("consistency", *(f"{way}_r{level}" for way in ("tr", "ir") for level in (1, 5, 10)))
"""What is shown beside the metric, where the task reports it."""

BASELINE = "no adapters"
UNSKIPPED = "unskipped"
SUBNET = "subnet"
WIDTH = 80
"""Columns of what is printed."""


@dataclass(frozen=True)
class Row:
    """One model of the comparison.

    Attributes:
        name: What it is.
        mask: 0 or 1 a layer, 1 = skipped.
        skipped_layers: Their names.
        trainable_parameters: Adapters, poolers, token types and head; 0 where nothing was trained.
        parameters: All parameters of the model as it is now.
        macs: Of one example.
        macs_saved: Share of the MACs of the baseline, the whole model without adapters.
        evaluation: On the test split; None for a baseline that was not trained.
        latency: Of one example, milliseconds; None for such a baseline.
        speedup: How many times as fast as the unskipped model with adapters; None where that was not measured beside it.
    """

    name: str
    mask: tuple[int, ...]
    skipped_layers: tuple[str, ...]
    trainable_parameters: int
    parameters: int
    macs: int
    macs_saved: float
    evaluation: Evaluation | None = None
    latency: Spread | None = None
    speedup: Spread | None = None

    @property
    def metric(self) -> float:
        """On the test split, 0..1.

        Raises:
            ValueError: the baseline's.
        """
        return _evaluated(self).metric

    def record(self) -> dict[str, Any]:
        """The row as plain JSON values; `latency_ms` and `speedup` are medians, with their quartiles beside them."""
        plain = asdict(self)
        if plain["evaluation"] is not None:
            del plain["evaluation"]["predictions"]  # in a file of their own
        plain |= {"mask": list(self.mask), "skipped_layers": list(self.skipped_layers)}
        for name, unit in (("latency", "_ms"), ("speedup", "")):
            spread = plain.pop(name)
            plain[f"{name}{unit}"] = spread and spread[0]
            plain[f"{name}_quartiles{unit}"] = spread and list(spread[1:])
        return plain

    def scalars(self) -> dict[str, float]:
        """Its numbers by name, for a log."""
        record = self.record()
        names = ("macs", "macs_saved", "latency_ms", "speedup", "trainable_parameters")
        numbers = {f"test.{key}": value for key, value in (self.evaluation.numbers if self.evaluation else {}).items()}
        return {**{name: float(record[name]) for name in names if record[name] is not None}, **numbers}


def compare(
    subnets: Mapping[str, AdaptedModel], splits: Splits[Any], rank_images: int | None = RANKED_IMAGES
) -> dict[str, Row]:
    """Evaluate each model on the test split and measure all of them, the baseline's costs beside them.

    Args:
        subnets: The models by name; where `UNSKIPPED` is among them, the others' speed is told as a ratio to it. Where
            `BASELINE` is not, its costs alone are told.
        splits: The data.
        rank_images: As for `evaluate`.

    Returns:
        A row by name, `BASELINE` first.
    """
    times = measure_latency({name: one_example(subnet, splits) for name, subnet in subnets.items()})
    first = next(subnet for name, subnet in subnets.items() if name != BASELINE)
    costs, n_layers = example_costs(first, splits), len(first.backbone.vlp.layers)  # of any mask, pruned as it may be
    rows = {BASELINE: Row(BASELINE, (0,) * n_layers, (), 0, costs.parameters_full, costs.macs_full, 0.0)}
    for name, subnet in subnets.items():
        faster = speedup(times[name], times[UNSKIPPED]) if UNSKIPPED in times and name != UNSKIPPED else None
        rows[name] = _row(name, subnet, costs, splits, Spread.of(times[name]), faster, rank_images)
    return rows


def one_example(subnet: AdaptedModel, splits: Splits[Any]) -> Callable[[], Any]:
    """One forward of the first test example, whose images are read and prepared already."""
    task, vlp = subnet.task, subnet.backbone.vlp
    forward = vlp.ready(task.processor, task.pairs(splits.test[:1]))
    return lambda: subnet.head(task.group_features(forward()))


def _row(
    name: str,
    subnet: AdaptedModel,
    costs: Costs,
    splits: Splits[Any],
    latency: Spread,
    faster: Spread | None,
    rank_images: int | None,
) -> Row:
    vlp = subnet.backbone.vlp
    mask = vlp.check_mask(None)
    parameters = {*vlp.parameters(), *subnet.head.parameters()}  # a head may be the model's own
    return Row(
        name=name,
        mask=tuple(mask.astype(int).tolist()),
        skipped_layers=tuple(skipped_names((layer.name for layer in vlp.layers), mask)),
        trainable_parameters=sum(p.numel() for p in parameters if p.requires_grad),
        parameters=sum(p.numel() for p in parameters),
        macs=costs.macs_full if name == BASELINE else costs.macs(mask),
        macs_saved=0.0 if name == BASELINE else costs.macs_saved(mask),
        evaluation=evaluate(subnet, splits.test, f"evaluating, {name}", rank_images=rank_images),
        latency=latency,
        speedup=faster,
    )


def write_answers(folder: Path, rows: Mapping[str, Row], task: Task, test: Sequence[Any]) -> None:
    """Write what each evaluated model answered, `answers_<name>.json`, and some of it for reports, see `write_examples`.

    Args:
        folder: Of the run.
        rows: As `compare` returns them; reports show those of `UNSKIPPED` and `SUBNET`.
        task: The task.
        test: The test split, which was evaluated.
    """
    predicted = {name: row.evaluation.predictions for name, row in rows.items() if row.evaluation is not None}
    for name, predictions in predicted.items():
        write_json(folder / f"answers_{name}.json", predictions)
    said = {
        name: [task.said(example, given) for example, given in zip(test, predicted[name], strict=True)]
        for name in (UNSKIPPED, SUBNET)
        if name in predicted
    }
    write_examples(folder, task, test, said)


def print_report(rows: Mapping[str, Row], title: str) -> None:
    """Print the table, the baseline first, and the conclusion.

    Args:
        rows: As `compare` returns them; the row of `SUBNET` is what the conclusion is about.
        title: What was evaluated on.
    """
    from rich import box
    from rich.table import Table

    from das_gym.console import Console

    headings = {BASELINE: "no adapters\n(baseline)", UNSKIPPED: "unskipped,\nwith adapters", SUBNET: "\nsubnet"}
    ordered = [rows[name] for name in headings if name in rows]
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=0, pad_edge=False)
    table.caption, table.caption_justify = "of times: the median and, in brackets, the quartiles", "left"
    table.add_column("", no_wrap=True)
    for row in ordered:
        table.add_column(headings[row.name], justify="right")
    for name, cell in _lines(rows[SUBNET]):
        table.add_row(name, *(cell(row) for row in ordered))
    Console(width=WIDTH).print(table)
    print(textwrap.fill(conclusion(rows), WIDTH))


def _lines(subnet: Row) -> list[tuple[str, Callable[[Row], str]]]:
    """The table's lines: what each is called, and its cell of a row."""

    def reported(name: str) -> Callable[[Row], str]:
        return lambda row: "-" if row.evaluation is None else f"{100 * row.evaluation.numbers[name]:.2f}"

    def measured(name: str) -> Callable[[Row], str]:
        def cell(row: Row) -> str:
            spread: Spread | None = getattr(row, name)
            if spread is None:
                return "-"
            median, low, high = (f"{value:.{2 if value < 100 else 0}f}" for value in spread)
            return f"{median} ({low}..{high})"

        return cell

    numbers, metric = _evaluated(subnet).numbers, _evaluated(subnet).metric_name
    ranked = numbers.get("ranked_images")
    among = "" if ranked is None else f" among {ranked:.0f} images"
    return [
        (f"{metric.replace('_', ' ')} on test, %", reported(metric)),
        *((f"{name}{among}, %", reported(name)) for name in HEADLINES if name in numbers),
        ("trainable parameters", lambda row: f"{row.trainable_parameters:,}" if row.trainable_parameters else "-"),
        ("parameters", lambda row: f"{row.parameters:,}"),
        ("MACs an example, M", lambda row: f"{row.macs / 1e6:.2f}"),
        ("MACs saved, %", lambda row: f"{100 * row.macs_saved:.2f}"),
        ("latency, ms", measured("latency")),
        ("times as fast", measured("speedup")),
        ("skipped layers", lambda row: ", ".join(row.skipped_layers) or "none"),
    ]


def _evaluated(row: Row) -> Evaluation:
    if row.evaluation is None:
        raise ValueError(f"the row {row.name!r} was not evaluated; give one that `compare` made of a model")
    return row.evaluation


def conclusion(rows: Mapping[str, Row]) -> str:
    """One sentence: what is skipped, what that saves, how much faster it runs, and what it scores."""
    subnet, unskipped = rows[SUBNET], rows.get(UNSKIPPED)
    what = f"Skipping {', '.join(subnet.skipped_layers)}" if subnet.skipped_layers else "Skipping nothing"
    saved = 100 * subnet.macs_saved
    macs = (
        f"saves {saved:.1f} % of the baseline's MACs" if saved >= 0 else f"takes {-saved:.1f} % more MACs than the baseline"
    )
    fast = "" if subnet.speedup is None else f", runs {subnet.speedup.median:.2f} times as fast as the unskipped model"
    score = _evaluated(subnet)
    instead = "" if unskipped is None else f" instead of {100 * unskipped.metric:.1f} %"
    name = score.metric_name.replace("_", " ")
    return f"{what} {macs}{fast}, and scores {100 * score.metric:.1f} % {name} on test{instead}."
