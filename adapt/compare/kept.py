"""The trained models of a comparison: of each variant the seed that is best on the reward split, in the run's folder."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from das_gym.adapt.compare.trials import Trial, read_trials

from das_gym.commandline import format_command
from das_gym.config import check_names
from das_gym.files import read_json

RECORD = "compare.json"
"""The record of a comparison."""


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
    """Return the file of a model of a comparison.

    Args:
        folder: Of its run.
        method: Key of a variant, such as `lora`, `das_4` or `random_4`.
    """
    kept = {trial.variant: path for path, trial in kept_trials(folder).items()}
    if method is None:
        raise ValueError(f"`method` is missing: {folder} compares methods. Choose from {', '.join(kept) or 'none yet'}.")
    check_names([method], kept, f"method of {folder}")
    return kept[method]
