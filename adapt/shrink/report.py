"""What shrinking comes to: the full, the shrunk and the recovered model side by side, and one sentence."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from das_gym.adapt.report import WIDTH
from das_gym.adapt.shrink.recovery import answer_features
from das_gym.adapt.shrink.scores import difference_interval, interval, scored

from das_gym.engine.broken import format_examples
from das_gym.models.transformers.generation import generate, greedily, greedy_settings, left_padded, pad_token
from das_gym.models.transformers.model import VLM
from das_gym.problem.costs import Costs
from das_gym.problem.latency import Speedup, Spread, measure_latency, speedup
from das_gym.progress import progress
from das_gym.tasks.base import Task

FULL, SHRUNK, RECOVERED = "full", "shrunk", "recovered"

DECODED = 16
"""Tokens that are generated to time one of them."""


@dataclass(frozen=True)
class Row:
    """One model of the comparison; `python -m adapt shrink` writes these as JSON.

    Attributes:
        name: `full`, `shrunk` or `recovered`.
        score: Mean of the generated answers' scores, 0..1.
        low, high: Its 95 % interval.
        loss: Mean negative log-likelihood of the reference answers' tokens, nats.
        parameters: All of the model's.
        bytes: Of its weights as they are saved.
        macs: Of one example.
        macs_saved: Share of the full model's, which is the baseline.
        prefill_ms: Until the first token of an answer is there, image included.
        decode_ms: Each token after it.
        prefill_speedup, decode_speedup: How many times as fast as the full model; None for the full model itself.
        peak_bytes: Most memory of a fresh process that loads the folder and answers, less the libraries'; None without one.
    """

    name: str
    score: float
    low: float
    high: float
    loss: float
    parameters: int
    bytes: int
    macs: int
    macs_saved: float
    prefill_ms: Spread
    decode_ms: Spread
    prefill_speedup: Speedup | None = None
    decode_speedup: Speedup | None = None
    peak_bytes: int | None = None

    def record(self) -> dict[str, Any]:
        """As plain JSON values; times are [median, lower, upper quartile], speed-ups [ratio, low, high] of 95 %."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}


@dataclass(frozen=True)
class Comparison:
    """Rows, and what was compared.

    Attributes:
        rows: By name, `full` first.
        texts: What each model said to each example.
        scores: (n_examples,) of each model.
        metric: What the score is, in words.
    """

    rows: Mapping[str, Row]
    texts: Mapping[str, Sequence[str]]
    scores: Mapping[str, np.ndarray]
    metric: str

    @property
    def final(self) -> Row:
        """The row of the model that is saved."""
        return list(self.rows.values())[-1]

    def with_peaks(self, peaks: Mapping[str, int | None]) -> Comparison:
        """The same with the memory that fresh processes took, by row."""
        rows = {name: replace(row, peak_bytes=peaks.get(name)) for name, row in self.rows.items()}
        return replace(self, rows=rows)

    def difference(self) -> tuple[float, float, float]:
        """The saved model's score less the full one's, and the 95 % interval of that, example by example."""
        apart = self.scores[self.final.name] - self.scores[FULL]
        return (float(apart.mean()), *difference_interval(apart))

    def regained(self) -> float | None:
        """Share of the loss that deletion added which recovery took off again; None where there was none to take off."""
        losses = [self.rows[name].loss for name in (FULL, SHRUNK, RECOVERED) if name in self.rows]
        if len(losses) < 3 or losses[1] <= losses[0]:
            return None
        return (losses[1] - losses[2]) / (losses[1] - losses[0])


@dataclass(frozen=True)
class Measuring:
    """How models are compared.

    Attributes:
        task: Answered in words.
        examples: Of the test split, as they came, options included.
        costs: The full model's.
        adapted: Those of the recovered model where it has adapters.
        mask: (n_layers,) bool, what was deleted from all but the full one.
        dtype: The type that weights are saved in.
        batch_size: Prompts at a time.
        blocks: Timed blocks of each model.
    """

    task: Task
    examples: Sequence[Any]
    costs: Costs
    adapted: Costs | None
    mask: np.ndarray
    dtype: torch.dtype
    batch_size: int
    blocks: int

    def compare(self, models: Mapping[str, VLM]) -> Comparison:
        """Score and measure each model by name; `full` first."""
        processor: Any = self.task.processor
        open_ended = self.task.open_ended(self.examples)
        prompts = self.task.pairs(open_ended)
        texts = {
            name: generate(vlm, processor, prompts, f"answers of the {name} model", self.batch_size)
            for name, vlm in models.items()
        }
        scores = {name: scored(self.task, self.examples, said) for name, said in texts.items()}
        timed = {name: vlm for name, vlm in models.items() if name != RECOVERED or self.adapted is not None}
        times = latencies(timed, processor, prompts[0], self.blocks)
        rows = {}
        for name, vlm in models.items():
            mask = np.zeros_like(self.mask) if name == FULL else self.mask
            own = times.get(name, times[SHRUNK])  # without adapters, the recovered model has the shrunk one's architecture
            prefill, decode = own
            faster = [None, None] if name == FULL else [speedup(t, f) for t, f in zip(own, times[FULL], strict=True)]
            costs = self.adapted if name == RECOVERED and self.adapted is not None else self.costs
            parameters = sum(p.numel() for p in vlm.model.parameters())
            rows[name] = Row(
                name,
                float(scores[name].mean()),
                *interval(scores[name]),
                loss=loss_of(vlm, self.task, open_ended, self.batch_size, f"loss of the {name} model"),
                parameters=parameters,
                bytes=parameters * self.dtype.itemsize,
                macs=costs.macs(mask),
                macs_saved=costs.macs_saved(mask),
                prefill_ms=Spread.of(prefill),
                decode_ms=Spread.of(decode),
                prefill_speedup=faster[0],
                decode_speedup=faster[1],
            )
        return Comparison(rows, texts, scores, self.task.metric_name.replace("_", " "))


@torch.no_grad()
def loss_of(vlm: VLM, task: Task, examples: Sequence[Any], batch_size: int, title: str) -> float:
    """Mean loss of the reference answers, by the model's own forward, nats.

    Args:
        vlm: The model, nothing in it skipped.
        task: Answered in words.
        examples: Each of one pair, see `Task.open_ended`.
        batch_size: Examples at a time.
        title: Of the progress bar.

    Raises:
        FloatingPointError: the loss of an example is not a number.
    """
    total, head = 0.0, vlm.own_head()
    with progress(len(examples), title, unit="example") as bar:
        for start in range(0, len(examples), batch_size):
            chunk = examples[start : start + batch_size]
            targets = {name: t.to(vlm.device) for name, t in task.targets(chunk).items()}
            losses = task.losses(head(answer_features(vlm, task, chunk)), targets)
            broken = [e.key for e, whole in zip(chunk, losses.isfinite().tolist(), strict=True) if not whole]
            if broken:
                raise FloatingPointError(
                    f"the {title} is not a number, on {format_examples(broken)}: its numbers may need dtype=float32, its "
                    "recovery a lower learning_rate, or another mask be deleted"
                )
            total += float(losses.double().sum())
            bar.update(len(chunk))
    return total / len(examples)


def latencies(
    models: Mapping[str, VLM], processor: Any, prompt: Any, blocks: int
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """(blocks,) milliseconds until the first token, and of each token after it, by model; models take turns."""
    encoding = processor.encode(prompt, pixels=True)

    def answering(vlm: VLM, tokens: int) -> Callable[[], object]:
        batch = left_padded([encoding], pad_token(vlm, processor), vlm)
        settings = greedy_settings(vlm, processor, tokens, least=tokens)

        def call() -> object:
            with greedily(vlm.model, settings):
                return vlm.model.generate(**batch)

        return call

    calls = {f"{name} {n}": answering(vlm, n) for name, vlm in models.items() for n in (1, 1 + DECODED)}
    times = measure_latency(calls, blocks, runs=1)
    return {
        name: (times[f"{name} 1"], np.maximum(times[f"{name} {1 + DECODED}"] - times[f"{name} 1"], 1e-6) / DECODED)
        for name in models
    }


def lines_of(comparison: Comparison) -> list[tuple[str, list[str]]]:
    """The table's lines: what each is called, and its cells, model by model."""

    def times(value: Speedup | None) -> str:
        return "-" if value is None else "{:.2f} ({:.2f}..{:.2f})".format(*value)

    def milliseconds(value: Spread) -> str:
        return "{:.3g} ({:.3g}..{:.3g})".format(*value)

    cells: list[tuple[str, Callable[[Row], str]]] = [
        (f"{comparison.metric}, %", lambda row: f"{100 * row.score:.1f}"),
        ("  its 95 % interval", lambda row: f"{100 * row.low:.1f}..{100 * row.high:.1f}"),
        ("loss, nats", lambda row: f"{row.loss:.4f}"),
        ("parameters", lambda row: f"{row.parameters:,}"),
        ("bytes of the weights", lambda row: f"{row.bytes:,}"),
        ("MACs an example, M", lambda row: f"{row.macs / 1e6:,.3f}"),
        ("MACs saved, %", lambda row: f"{100 * row.macs_saved:.2f}"),
        ("first token, ms", lambda row: milliseconds(row.prefill_ms)),
        ("  times as fast", lambda row: times(row.prefill_speedup)),
        ("further tokens, ms", lambda row: milliseconds(row.decode_ms)),
        ("  times as fast", lambda row: times(row.decode_speedup)),
        ("memory at most, MiB", lambda row: "-" if row.peak_bytes is None else f"{row.peak_bytes / 2**20:,.0f}"),
    ]
    return [(name, [cell(row) for row in comparison.rows.values()]) for name, cell in cells]


def headings(comparison: Comparison) -> list[str]:
    """Of the table's columns, model by model."""
    return ["full model (baseline)" if name == FULL else name for name in comparison.rows]


def caption(comparison: Comparison) -> str:
    """What the table's numbers are relative to, and what was measured once."""
    rows = comparison.rows
    once = RECOVERED in rows and rows[RECOVERED].prefill_ms == rows[SHRUNK].prefill_ms
    return (
        "MACs saved and times as fast (ratio of the median times) are relative to the baseline. In brackets: quartiles of "
        "times, 95 % interval of times as fast."
        + (" Shrunk and recovered are one architecture, timed once." if once else "")
    )


def print_report(comparison: Comparison, title: str, drawn: str) -> None:
    """Print the table, which layers went, and the conclusion."""
    from rich import box
    from rich.table import Table

    from das_gym.console import Console

    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=0, pad_edge=False)
    table.add_column("", no_wrap=True)
    for heading in headings(comparison):
        table.add_column(heading.replace(" (", "\n("), justify="right")
    for name, cells in lines_of(comparison):
        table.add_row(name, *cells)
    Console(width=WIDTH).print(table)
    print(f"{'layers of vision tower and decoder' if ' ' in drawn else 'decoder layers'}: {drawn}")
    for text in (caption(comparison), conclusion(comparison)):
        print(textwrap.fill(text, WIDTH))


def conclusion(comparison: Comparison) -> str:
    """What was saved and what was lost, in two or three sentences."""
    full, final = comparison.rows[FULL], comparison.final
    smaller = 100 * (1 - final.parameters / full.parameters)
    fast = ""
    if final.prefill_speedup is not None and final.decode_speedup is not None:
        first, further = (
            f"{phrase} {said.ratio:.2f} ({said.low:.2f} to {said.high:.2f}) times as fast"
            + ("" if said.is_measurable else ", which is not measurably faster")
            for phrase, said in (
                ("the first token comes", final.prefill_speedup),
                ("each further one", final.decode_speedup),
            )
        )
        fast = f". Relative to the baseline, {first}, and {further}"
    apart, low, high = (100 * value for value in comparison.difference())
    score = (
        f"It scores {100 * final.score:.1f} % against the baseline's {100 * full.score:.1f} %: {apart:+.1f} points "
        f"(95 % interval {low:+.1f}..{high:+.1f}) on {len(comparison.scores[FULL]):,} test examples"
    )
    regained = comparison.regained()
    back = "" if regained is None else f"; recovery took off {100 * regained:.0f} % of the loss that deletion added"
    if RECOVERED in comparison.rows and final.loss < full.loss:
        back = "; its loss is lower than the full model's"
    elif RECOVERED in comparison.rows and final.loss > comparison.rows[SHRUNK].loss:
        back = "; recovery made the loss worse than it found it: try recover=none, a lower learning_rate or more data"
    return (
        f"The {final.name} model saves {100 * final.macs_saved:.2f} % of the baseline's MACs and {smaller:.1f} % of its "
        f"parameters{fast}. {score}{back}."
    )
