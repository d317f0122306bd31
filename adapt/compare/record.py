"""The rows of a comparison, their trainings, the trained models that its run keeps, and the table with its verdict."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from das_gym.adapt.methods.base import METHODS, Method, make_method

from das_gym.commands.commandline import format_command
from das_gym.commands.settings import build
from das_gym.drawing.architecture import Architecture
from das_gym.drawing.report import RunReport
from das_gym.drawing.table import Table
from das_gym.files import explain_damage, read_json
from das_gym.names import check_names
from das_gym.registration import find_class

RECORD = "compare.json"
"""The record of a comparison."""

MASKED = "das"
"""The method that takes a mask."""


@dataclass(frozen=True)
class MethodVariant:
    """A row of the comparison; random masks are drawn for each seed, and take the learning rate of the row `rate_of`."""

    key: str
    title: str
    method: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    skip_num: int = 0
    random_mask: bool = False
    rate_of: str | None = None

    def make(self, seed: int, n_layers: int) -> Method:
        """Return the method with its mask."""
        if not self.random_mask:
            return make_method(self.method, self.settings)
        mask = np.zeros(n_layers, dtype=int)
        # Of the seed alone, so that a resumed comparison trains the same masks.
        mask[np.random.default_rng([seed, self.skip_num]).choice(n_layers, self.skip_num, replace=False)] = 1
        return make_method(self.method, {**self.settings, "mask": tuple(mask.tolist())})


def method_variants(
    methods: Sequence[str], settings: Mapping[str, Mapping[str, Any]], masks: Mapping[int, Sequence[int]]
) -> list[MethodVariant]:
    """Return all rows, given the searched mask for each number of skipped layers."""
    variants: list[MethodVariant] = []
    for name in methods:
        own = dict(settings.get(name, {}))
        make_method(name, own)  # rejects wrong settings before anything trains
        if name != MASKED:
            variants.append(MethodVariant(name, find_class(METHODS[name]).title, name, own))
            continue
        for skip_num, mask in sorted(masks.items()):
            key = f"das_{skip_num}"
            variants.append(MethodVariant(key, f"DAS, {skip_num} skipped", name, {**own, "mask": tuple(mask)}, skip_num))
            if skip_num:
                title = f"DAS, {skip_num} at random"
                random = MethodVariant(f"random_{skip_num}", title, name, own, skip_num, random_mask=True, rate_of=key)
                variants.append(random)
    return variants


@dataclass(frozen=True)
class Trial:
    """One training and its measurements. Fields from `test` on are None if another learning rate is better.

    Attributes:
        variant: Key of its row.
        rate: Peak learning rate.
        reward, reward_loss: Metric (0..1) and loss (nats) on the reward split; the loss is None if the training diverged.
        updated, trained: Number of trained parameters, without and with head and poolers.
        mask: 0 or 1 per layer, 1 = skipped.
        macs, macs_full: Of one example, and of the pre-trained model.
        latency: Of one example, milliseconds: median and quartiles. Only for the first seed, as is `speedup`.
        speedup: Relative to the baseline: ratio of the medians and its 95 % interval.
    """

    variant: str
    rate: float
    seed: int
    reward: float
    reward_loss: float | None
    updated: int
    trained: int
    seconds: float
    mask: tuple[int, ...]
    test: float | None = None
    test_loss: float | None = None
    macs: int | None = None
    macs_full: int | None = None
    latency: tuple[float, ...] | None = None
    speedup: tuple[float, ...] | None = None

    @property
    def merit(self) -> tuple[float, float]:
        """The metric on the reward split, then the negative loss; more is better."""
        if self.reward_loss is None:
            return -math.inf, -math.inf
        return self.reward, -self.reward_loss if math.isfinite(self.reward_loss) else -math.inf


def read_trials(path: Path) -> list[Trial]:
    """Return the trials in a comparison's record, none without a file."""
    if not path.is_file():
        return []
    with explain_damage(path, "remove it, and all is trained again"):
        return [build(Trial, trial) for trial in read_json(path)["trials"]]


def kept_file(folder: Path, variant: str) -> Path:
    """Return the file of a variant's model."""
    return folder / f"{variant}.safetensors"


def best_trials(trials: Iterable[Trial]) -> list[Trial]:
    """Return the best measured trial of each variant, by the reward split: those whose models are kept."""
    measured = [trial for trial in trials if trial.test is not None]
    variants = dict.fromkeys(trial.variant for trial in measured)
    return [max((t for t in measured if t.variant == key), key=lambda t: t.merit) for key in variants]


def kept_trials(folder: Path) -> dict[Path, Trial]:
    """Return the trials of a comparison by the files of their models."""
    record = read_json(folder / RECORD)
    if not isinstance(record, dict) or "trials" not in record:
        raise ValueError(f"{folder} is not a run of `{format_command('adapt compare')}`.")
    trials = {kept_file(folder, trial.variant): trial for trial in best_trials(read_trials(folder / RECORD))}
    return {path: trial for path, trial in trials.items() if path.is_file()}


def kept_model(folder: Path, method: str | None) -> Path:
    """Return the file of a model of a comparison: of a variant such as `lora`, `das_4` or `random_4`."""
    kept = {trial.variant: path for path, trial in kept_trials(folder).items()}
    if method is None:
        raise ValueError(f"`method` is missing: {folder} compares methods. Choose from {', '.join(kept) or 'none yet'}.")
    check_names([method], kept, f"method of {folder}")
    return kept[method]


@dataclass(frozen=True)
class Line:
    """The result of a variant with its learning rate, over all seeds.

    Attributes:
        updated, trained: Mean number of trained parameters, without and with head and poolers.
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


def comparison_table(title: str, lines: Sequence[Line]) -> Table:
    """Return the table."""
    rows = []
    for line in lines:
        spread = "" if math.isnan(line.spread) else f" ± {100 * line.spread:.1f}"
        row = (line.title, f"{line.rate:g}", f"{line.updated:,.0f}", f"{line.trained:,.0f}", f"{line.macs / 1e6:,.2f}")
        speedup = "{:.2f} ({:.2f}..{:.2f})".format(*line.speedup) if line.speedup else "-"
        score = f"{100 * line.score:.1f}{spread} ({len(line.scores)})"
        rows.append((*row, f"{100 * line.saved:.1f}", speedup, score))
    return Table(COLUMNS, tuple(rows), title, (LEGEND, *verdict(lines)))


def verdict(lines: Sequence[Line]) -> list[str]:
    """Return sentences on DAS against adapters without skipping, and against random masks."""
    by_key = {line.key: line for line in lines}
    sentences = []
    for line in (line for line in lines if line.key.startswith("das_")):
        rivals = {"adapter": "adapters without skipping", f"random_{line.skip_num}": "random masks of as many layers"}
        for rival, words in ((by_key[key], words) for key, words in rivals.items() if key in by_key):
            ahead, spread = 100 * (line.score - rival.score), 100 * np.nanmax([line.spread, rival.spread, 0.0])
            order = f"{abs(ahead):.1f} points {'ahead of' if ahead > 0 else 'behind'}" if ahead else "level with"
            within = f"{'more than' if abs(ahead) > spread else 'within'} the spread of {spread:.1f}"
            known = len(rival.scores) > 1 or len(line.scores) > 1
            sentences.append(f"{line.title}: {order} {words}, {within if known else 'of one seed each'}.")
    return sentences


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
