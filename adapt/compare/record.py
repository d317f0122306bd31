"""The rows of a comparison, their trainings, the trained models that its run keeps, and the table with its verdict."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from das_gym.agents.comparing.runner import format_mean, trials_in

from das_gym.commands.commandline import format_command
from das_gym.commands.runs import COMPARISON
from das_gym.drawing.architecture import Architecture
from das_gym.drawing.report import RunReport, Table
from das_gym.intervals import t_interval
from das_gym.names import check_names

FULL_MODEL = "full model"
"""The row of a model with nothing removed."""


@dataclass(frozen=True)
class Trial:
    """One training, or one search and the removal of the layers that it found, and its measurements.

    Attributes:
        variant, title: Key and name of its row.
        rate: Peak learning rate of a training.
        reward, reward_loss: Metric (0..1) and loss (nats) on the reward split. The loss is None if the training diverged;
            nothing else is measured then.
        updated, trained: Number of trained parameters, without and with head and poolers.
        seconds: Of the training, or of the search with the layer statistics that it reads. None if it was interrupted.
        mask: 0 or 1 per layer, 1 = skipped or removed.
        test, test_loss: Metric (0..1) and loss (nats) on the test split; None, as are costs, of a training with the first
            seed whose learning rate was worse on the reward split than an earlier one.
        macs, macs_full: Of one example, and of the pre-trained model.
        latency: Of one example, milliseconds: median and quartiles, measured with the first trial of a row, as is `speedup`.
        speedup: Relative to the baseline: ratio of the medians and its 95 % interval. Milliseconds of different rows are not
            comparable, since they are measured hours apart.
        evaluations: Number of masks that an agent scored, in units of all reward examples.
        kv_saved: Share of the full model's bytes of keys and values per token.
        low, high: 95 % interval of `test` over the test examples, after a removal.
        removed, removed_loss: `test` and `test_loss` before recovery; None without recovery.
        drawn: The removed layers, one character per layer.
        failure: Why none of an agent's masks can be removed; empty if one can.
    """

    variant: str
    seed: int
    rate: float | None = None
    reward: float = 0.0
    reward_loss: float | None = None
    updated: int | None = None
    trained: int | None = None
    seconds: float | None = None
    title: str = ""
    mask: tuple[int, ...] = ()
    test: float | None = None
    test_loss: float | None = None
    macs: int | None = None
    macs_full: int | None = None
    latency: tuple[float, ...] | None = None
    speedup: tuple[float, ...] | None = None
    evaluations: int | None = None
    kv_saved: float | None = None
    low: float | None = None
    high: float | None = None
    removed: float | None = None
    removed_loss: float | None = None
    drawn: str = ""
    failure: str = ""

    @property
    def macs_saved(self) -> float | None:
        """Share of the pre-trained model's MACs."""
        return None if self.macs is None or self.macs_full is None else 1 - self.macs / self.macs_full

    @property
    def merit(self) -> tuple[float, float]:
        """The metric on the reward split, then the negative loss; more is better."""
        if self.reward_loss is None:
            return -math.inf, -math.inf
        return self.reward, -self.reward_loss if math.isfinite(self.reward_loss) else -math.inf


def kept_file(folder: Path, variant: str) -> Path:
    """Return the path of the adapter file of a row's best model."""
    return folder / f"{variant}.safetensors"


def best_trials(trials: Iterable[Trial]) -> list[Trial]:
    """Return the best measured trial of each variant, by the reward split: those whose models are kept."""
    measured = [trial for trial in trials if trial.test is not None]
    variants = dict.fromkeys(trial.variant for trial in measured)
    return [max((t for t in measured if t.variant == key), key=lambda t: t.merit) for key in variants]


def kept_trial(folder: Path, record: Any, method: str | None) -> Trial:
    """Return the training of a comparison whose model is kept, of a variant such as `lora`, `das_4` or `random_4`."""
    if not isinstance(record, dict) or not {"trials", "metric"} <= record.keys():
        raise ValueError(f"{folder} is not a run of `{format_command('adapt compare')}`. Give another run.")
    trials = best_trials(trials_in(record, folder / COMPARISON, Trial))
    kept = {trial.variant: trial for trial in trials if kept_file(folder, trial.variant).is_file()}
    if method is None:
        raise ValueError(f"`method` is missing: {folder} compares methods. Choose from {', '.join(kept) or 'none yet'}.")
    check_names([method], kept, f"method of {folder}")
    return kept[method]


LEGEND = (
    "seconds: of the training or the search. updated: trained parameters without head and poolers, which train with every "
    "method but head only. MACs saved and times as fast are relative to the baseline, the pre-trained model: ratio of the "
    "median times with the first seed, and its 95 % interval. test: mean over seeds ± half of its 95 % interval (seeds); of "
    "one removal, its 95 % interval over test examples."
)


def chosen_trials(variants: Iterable[str], trials: Sequence[Trial]) -> dict[str, list[Trial]]:
    """Return the measured trials of each row that has some, by its key: those with its learning rate."""
    chosen = {}
    for key in variants:
        own = [trial for trial in trials if trial.variant == key and trial.test is not None]
        if own:
            best = max((trial for trial in own if trial.seed == own[0].seed), key=lambda trial: trial.merit)
            chosen[key] = [trial for trial in own if trial.rate == best.rate]
    return chosen


def mean_test(trials: Iterable[Trial]) -> float:
    """Return the mean metric on the test split, 0..1."""
    return float(np.mean([trial.test for trial in trials]))


def comparison_table(title: str, chosen: Mapping[str, Sequence[Trial]], failures: Iterable[str] = ()) -> Table:
    """Return the table of the trials of each row; a column that is empty is left out."""
    rows = [_cells(own) for own in chosen.values()]
    columns = [name for name in rows[0] if any(row[name] != "-" for row in rows)]
    cells = tuple(tuple(row[name] for name in columns) for row in rows)
    text_columns = tuple(columns.index(name) for name in ("method", "layers") if name in columns)
    return Table(tuple(columns), cells, title, (LEGEND, *verdict(chosen), *failures), text_columns)


def _cells(own: Sequence[Trial]) -> dict[str, str]:
    first = own[0]

    def mean(name: str, scale: float = 1.0, digits: int = 1) -> str:
        values = [getattr(trial, name) for trial in own]
        return format_mean([value for value in values if value is not None], scale, digits)

    def plain_mean(name: str, scale: float = 1.0, digits: int = 0) -> str:
        values = [getattr(trial, name) for trial in own if getattr(trial, name) is not None]
        return f"{scale * np.mean(values):,.{digits}f}" if values else "-"

    # over the test examples of a single removal, or else the number of seeds
    interval = str(len(own))
    if len(own) == 1 and first.low is not None and first.high is not None:
        interval = f"{100 * first.low:.1f}..{100 * first.high:.1f}"
    return {
        "method": first.title or first.variant,
        "learning rate": "-" if first.rate is None else f"{first.rate:g}",
        "masks scored": mean("evaluations", digits=0),
        "seconds": mean("seconds"),
        "updated": plain_mean("updated"),
        "all that trains": plain_mean("trained"),
        "MACs, M": plain_mean("macs", 1e-6, 2),
        "MACs saved, %": plain_mean("macs_saved", 100, 1),
        "KV saved, %": plain_mean("kv_saved", 100, 1),
        "times as fast": "{:.2f} ({:.2f}..{:.2f})".format(*first.speedup) if first.speedup else "-",
        "reward loss": mean("reward_loss", digits=4),
        "unrecovered loss": mean("removed_loss", digits=4),
        "unrecovered test, %": mean("removed", 100),
        "test loss": mean("test_loss", digits=4),
        "test, %": f"{mean('test', 100)} ({interval})",
        "layers": first.drawn or "-",
    }


def verdict(chosen: Mapping[str, Sequence[Trial]]) -> list[str]:
    """Return sentences on DAS against adapters without skipping, and against random masks."""
    sentences = []
    for key, own in chosen.items():
        rivals = {"adapter": "adapters without skipping", key.replace("das", "random"): "random masks of as many layers"}
        for rival, words in rivals.items():
            if key.startswith("das_") and rival in chosen:
                sentences.append(f"{own[0].title}: {_difference_in_words(own, chosen[rival], words)}.")
    return sentences


def _difference_in_words(own: Sequence[Trial], rival: Sequence[Trial], name: str) -> str:
    """Return by how many points a row is better, with the 95 % t-interval of the difference over the same seeds."""
    theirs = {trial.seed: trial.test for trial in rival if trial.test is not None}
    pairs = [(trial.test, theirs[trial.seed]) for trial in own if trial.test is not None and trial.seed in theirs]
    differences = np.array([100 * (ours - other) for ours, other in pairs])
    ahead = 100 * (mean_test(own) - mean_test(rival))
    order = f"{abs(ahead):.1f} points {'ahead of' if ahead > 0 else 'behind'} {name}" if ahead else f"level with {name}"
    if len(differences) < 3:
        return f"{order}; an interval needs 3 seeds"
    low, high = t_interval(differences)
    return f"{order}, 95 % interval of the difference {low:.1f} to {high:.1f}"


def comparison_report(
    title: str, metric: str, architecture: Architecture, chosen: Mapping[str, Sequence[Trial]], table: Table
) -> dict[str, Any]:
    """Return the record of a report on the best row and its layers, or those that DAS skips."""
    rows = {key: own for key, own in chosen.items() if key != FULL_MODEL}
    best = max(rows.values(), key=mean_test)
    shown = max((own for key, own in rows.items() if key.startswith("das_")), key=mean_test, default=best)[0]
    skipped = [unit.name for unit, bit in zip(architecture.units, shown.mask, strict=True) if bit]
    facts = {
        "skips": f"{', '.join(skipped) or 'nothing'} ({shown.title})",
        f"{metric} on test, %": f"{100 * mean_test(best):.2f} ({best[0].title}, the best)",
    }
    return RunReport(f"Comparison of {title}", facts, architecture, list(shown.mask), table=table).record()
