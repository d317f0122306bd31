"""The rows of a comparison, their trainings, and the trained models that its run keeps."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from das_gym.adapt.methods.base import METHODS, Method, make_method

from das_gym.commandline import format_command
from das_gym.config import build, check_names
from das_gym.files import explain_damage, read_json
from das_gym.registration import find_class

RECORD = "compare.json"
"""The record of a comparison."""

MASKED = "das"
"""The method that takes a mask."""


@dataclass(frozen=True)
class MethodVariant:
    """A row of the comparison.

    Attributes:
        key: Name of its trainings in files and records.
        title: Name in tables.
        method: A key of `METHODS`.
        settings: Of the method.
        skip_num: Number of skipped layers.
        random_mask: Whether each seed draws its own mask.
        rate_of: Key of the row whose learning rate it takes. None chooses its own.
    """

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
        seed: Of head, inserted parameters, order of examples, and a random mask.
        reward: The metric on the reward split, 0..1.
        reward_loss: The loss there, nats; None if the training diverged.
        updated: Number of trained parameters without head and poolers.
        trained: Number of trained parameters.
        seconds: Duration of the training.
        mask: 0 or 1 per layer, 1 = skipped.
        test: The metric on the test split, 0..1.
        test_loss: The loss there, nats.
        macs: Of one example.
        macs_full: Of the baseline, the pre-trained model.
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
