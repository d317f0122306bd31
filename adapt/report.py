"""What an adaptation comes to: each model evaluated and measured, the table, and one sentence of conclusion."""

from __future__ import annotations

import copy
import dataclasses
import textwrap
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from das_gym.adapt.evaluate import RANKED_IMAGES, Evaluation, evaluate
from das_gym.adapt.examples import write_examples
from das_gym.adapt.shrink.scores import difference_interval

from das_gym.data.splits import Splits
from das_gym.files import write_json
from das_gym.models.macs import without_adapters
from das_gym.problem.costs import Costs
from das_gym.problem.latency import Speedup, Spread, measure_latency, speedup
from das_gym.problem.loading import AdaptedModel, example_costs
from das_gym.problem.mask_space import skipped_names
from das_gym.tasks.base import Task

HEADLINES = ("consistency", *(f"{way}_r{level}" for way in ("tr", "ir") for level in (1, 5, 10)))
"""What is shown beside the metric, where the task reports it."""

BASELINE = "baseline"
FULL_MODEL = "full_model"
SUBNET = "subnet"
HEADINGS = {BASELINE: "baseline\n(no adapters)", FULL_MODEL: "full model,\nwith adapters", SUBNET: "\nsubnet"}
"""Of the table's columns, in their order."""

IN_WORDS = {BASELINE: "baseline", FULL_MODEL: "full model with adapters", SUBNET: "subnet"}

WIDTH = 80
"""Columns of what is printed."""


@dataclass(frozen=True)
class Row:
    """One model of the comparison.

    Attributes:
        name: `BASELINE`, `FULL_MODEL` or `SUBNET`.
        mask: 0 or 1 a layer, 1 = skipped.
        skipped_layers: Their names.
        trainable_parameters: Adapters, poolers, token types and head; 0 where nothing was trained.
        parameters: All parameters of the model as it is now.
        macs: Of one example.
        macs_saved: Share of the baseline's MACs.
        evaluation: On the test split; None for a baseline that was not trained.
        latency: Of one example, milliseconds.
        speedup: How many times as fast as the baseline; None for the baseline itself.
        from_package: Whether its trained weights came with das_gym; they are evaluated in this run as all others are.
    """

    name: str
    mask: tuple[int, ...]
    skipped_layers: tuple[str, ...]
    trainable_parameters: int
    parameters: int
    macs: int
    macs_saved: float
    evaluation: Evaluation | None
    latency: Spread
    speedup: Speedup | None = None
    from_package: bool = False

    @property
    def metric(self) -> float:
        """On the test split, 0..1.

        Raises:
            ValueError: the row was not evaluated.
        """
        return _evaluated(self).metric

    def record(self) -> dict[str, Any]:
        """The row as plain JSON values: `latency_ms` is a median with its quartiles, `speedup` a ratio with its interval."""
        plain = asdict(self)
        if plain["evaluation"] is not None:
            del plain["evaluation"]["predictions"]  # in a file of their own
            del plain["evaluation"]["metrics"]
        plain |= {"mask": list(self.mask), "skipped_layers": list(self.skipped_layers)}
        for name, value, interval in (("latency", "latency_ms", "quartiles_ms"), ("speedup", "speedup", "interval")):
            spread = plain.pop(name)
            plain[value] = spread and spread[0]
            plain[f"{name}_{interval}"] = spread and list(spread[1:])
        return plain

    def scalars(self) -> dict[str, float]:
        """Its numbers by name, for a log."""
        record = self.record()
        names = ("macs", "macs_saved", "latency_ms", "speedup", "trainable_parameters")
        numbers = {f"test.{key}": value for key, value in (self.evaluation.numbers if self.evaluation else {}).items()}
        return {**{name: float(record[name]) for name in names if record[name] is not None}, **numbers}


def compare(
    models: Mapping[str, AdaptedModel],
    splits: Splits[Any],
    rank_images: int | None = RANKED_IMAGES,
    untrained: Collection[str] = (),
    from_package: Collection[str] = (),
) -> dict[str, Row]:
    """Evaluate each model on the test split and measure all of them.

    Args:
        models: The models by name, `BASELINE` and `SUBNET` among them.
        splits: The data.
        rank_images: As for `evaluate`.
        untrained: Names of those that are not evaluated, only measured.
        from_package: Names of those whose trained weights came with das_gym.

    Returns:
        A row by name, in the order of the models.
    """
    times = measure_latency({name: one_example(model, splits) for name, model in models.items()})
    costs = example_costs(models[SUBNET], splits)  # of any mask, pruned as it may be
    rows = {}
    for name, model in models.items():
        evaluation = None
        if name not in untrained:
            evaluation = evaluate(model, splits.test, f"evaluating, {IN_WORDS[name]}", rank_images=rank_images)
        row = _row(name, model, costs, evaluation, Spread.of(times[name]))
        faster = None if name == BASELINE else speedup(times[name], times[BASELINE])
        rows[name] = dataclasses.replace(row, speedup=faster, from_package=name in from_package)
    return rows


def baseline_of(full: AdaptedModel) -> AdaptedModel:
    """The full model without its adapters, to be measured: it shares all other parameters, and takes no memory for them."""
    vlp = full.backbone.vlp
    shared: dict[int, Any] = {id(tensor): tensor for tensor in (*vlp.parameters(), *vlp.buffers())}
    backbone = dataclasses.replace(full.backbone, vlp=without_adapters(copy.deepcopy(vlp, shared)))
    return dataclasses.replace(full, backbone=backbone)


def one_example(subnet: AdaptedModel, splits: Splits[Any]) -> Callable[[], Any]:
    """One forward of the first test example, whose images are read and prepared already."""
    task, vlp = subnet.task, subnet.backbone.vlp
    forward = vlp.ready(task.processor, task.pairs(splits.test[:1]))
    return lambda: subnet.head(task.group_features(forward()))


def _row(name: str, model: AdaptedModel, costs: Costs, evaluation: Evaluation | None, latency: Spread) -> Row:
    vlp = model.backbone.vlp
    mask = vlp.check_mask(None)
    parameters = {*vlp.parameters(), *model.head.parameters()}  # a head may be the model's own
    trained = sum(p.numel() for p in parameters if p.requires_grad)
    return Row(
        name=name,
        mask=tuple(mask.astype(int).tolist()),
        skipped_layers=tuple(skipped_names((layer.name for layer in vlp.layers), mask)),
        trainable_parameters=0 if evaluation is None else trained,
        parameters=sum(p.numel() for p in parameters),
        macs=costs.macs_full if name == BASELINE else costs.macs(mask),
        macs_saved=0.0 if name == BASELINE else costs.macs_saved(mask),
        evaluation=evaluation,
        latency=latency,
    )


def write_answers(folder: Path, rows: Mapping[str, Row], task: Task, test: Sequence[Any]) -> None:
    """Write what each evaluated model answered, `answers_<name>.json`, and some of it for reports, see `write_examples`.

    Args:
        folder: Of the run.
        rows: As `compare` returns them; reports show those of `FULL_MODEL` and `SUBNET`.
        task: The task.
        test: The test split, which was evaluated.
    """
    predicted = {name: row.evaluation.predictions for name, row in rows.items() if row.evaluation is not None}
    for name, predictions in predicted.items():
        write_json(folder / f"answers_{name}.json", predictions)
    said = {
        IN_WORDS[name]: [
            task.format_prediction(example, given) for example, given in zip(test, predicted[name], strict=True)
        ]
        for name in (FULL_MODEL, SUBNET)
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

    ordered = [rows[name] for name in HEADINGS if name in rows]
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=0, pad_edge=False)
    table.add_column("", no_wrap=True)
    for row in ordered:
        table.add_column(HEADINGS[row.name], justify="right")
    for name, cells in lines_of(ordered):
        table.add_row(name, *cells)
    Console(width=WIDTH).print(table)
    for text in (caption(ordered), conclusion(rows)):
        print(textwrap.fill(text, WIDTH))


def caption(rows: Sequence[Row]) -> str:
    """What the table's numbers are of, and which weights came with das_gym."""
    shipped = " and ".join(IN_WORDS[row.name] for row in rows if row.from_package)
    return (
        "MACs saved and times as fast (ratio of the median latencies) are relative to the baseline. In brackets: quartiles "
        "of the latency, 95 % interval of times as fast."
        + (f" {shipped[:1].upper()}{shipped[1:]}: trained weights from the package." if shipped else "")
    )


def lines_of(rows: Sequence[Row]) -> list[tuple[str, list[str]]]:
    """The table's lines: what each is called, and its cells, row by row; the last row is one that was evaluated."""

    def reported(name: str) -> Callable[[Row], str]:
        return lambda row: "-" if row.evaluation is None else f"{100 * row.evaluation.numbers[name]:.1f}"

    def milliseconds(row: Row) -> str:
        median, low, high = (f"{value:.{2 if value < 100 else 0}f}" for value in row.latency)
        return f"{median} ({low}..{high})"

    numbers, metric = _evaluated(rows[-1]).numbers, _evaluated(rows[-1]).metric_name
    ranked = numbers.get("ranked_images")
    among = "" if ranked is None else f" among {ranked:.0f} images"
    cells: list[tuple[str, Callable[[Row], str]]] = [
        (f"{metric.replace('_', ' ')} on test, %", reported(metric)),
        *((f"{name}{among}, %", reported(name)) for name in HEADLINES if name in numbers),
        ("trainable parameters", lambda row: f"{row.trainable_parameters:,}" if row.trainable_parameters else "-"),
        ("parameters", lambda row: f"{row.parameters:,}"),
        ("MACs an example, M", lambda row: f"{row.macs / 1e6:,.3f}"),
        ("MACs saved, %", lambda row: f"{100 * row.macs_saved:.2f}"),
        ("latency, ms", milliseconds),
        ("times as fast", lambda row: "-" if row.speedup is None else "{:.2f} ({:.2f}..{:.2f})".format(*row.speedup)),
        ("skipped layers", lambda row: ", ".join(row.skipped_layers) or "none"),
    ]
    return [(name, [cell(row) for row in rows]) for name, cell in cells]


def _evaluated(row: Row) -> Evaluation:
    if row.evaluation is None:
        raise ValueError(f"the row {row.name!r} was not evaluated; give one that `compare` made of a model")
    return row.evaluation


def conclusion(rows: Mapping[str, Row]) -> str:
    """Say what is skipped, what that saves, how much faster it runs and what it scores: numbers as the table has them."""
    subnet = rows[SUBNET]
    what = f"Skipping {', '.join(subnet.skipped_layers)}" if subnet.skipped_layers else "Skipping nothing"
    saved = 100 * subnet.macs_saved
    macs = (
        f"saves {saved:.2f} % of the baseline's MACs" if saved >= 0 else f"takes {-saved:.2f} % more MACs than the baseline"
    )
    fast = "" if subnet.speedup is None else f" and {runs(subnet.speedup)}"
    score = _evaluated(subnet)
    name = score.metric_name.replace("_", " ")
    other = next((rows[name] for name in (FULL_MODEL, BASELINE) if name in rows and rows[name].evaluation), None)
    against = ""
    if other is not None:
        apart = np.array(score.metrics) - np.array(_evaluated(other).metrics)
        low, high = (100 * value for value in difference_interval(apart))
        against = (
            f" against {100 * other.metric:.1f} % for the {IN_WORDS[other.name]} "
            f"(95 % interval of the difference: {low:+.1f} to {high:+.1f} points)"
        )
    return f"{what} {macs}{fast}; it scores {100 * score.metric:.1f} % {name} on test{against}."


def runs(faster: Speedup, over: str = "the baseline") -> str:
    """Say how fast a model runs relative to another, with the interval, as a verb phrase."""
    numbers = "{:.2f} ({:.2f} to {:.2f})".format(*faster)
    if faster.is_measurable:
        return f"runs {numbers} times as fast as {over}"
    return f"is not measurably faster than {over} ({numbers} times as fast)"
