"""The trained models of a comparison, one file per variant and seed in the run's folder."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from das_gym.adapt.compare.trials import Trial, read_trials

from das_gym.commandline import format_command
from das_gym.config import check_names
from das_gym.files import read_json

RECORD = "compare.json"
"""The record of a comparison."""

KEPT = "{}_seed{}.safetensors"


def kept_file(folder: Path, trial: Trial) -> Path:
    """Return the file of a trial's model."""
    return folder / KEPT.format(trial.variant, trial.seed)


def trials_to_keep(trials: Iterable[Trial], keep: str) -> list[Trial]:
    """Return the trials whose models are kept.

    Args:
        trials: All. Those that were not measured on the test split are not kept.
        keep: `best`, the seed of each variant that is best on the reward split; `all` seeds; or `none`.
    """
    measured = [trial for trial in trials if trial.test is not None]
    if keep != "best":
        return measured if keep == "all" else []
    variants = dict.fromkeys(trial.variant for trial in measured)
    return [max((t for t in measured if t.variant == key), key=lambda t: t.merit) for key in variants]


def remove_others(folder: Path, trials: Iterable[Trial], keep: str) -> None:
    """Remove the models that are not kept."""
    kept = {kept_file(folder, trial) for trial in trials_to_keep(trials, keep)}
    for path in folder.glob(KEPT.format("*", "*")):
        if path not in kept:
            path.unlink()


def kept_trials(folder: Path) -> dict[Path, Trial]:
    """Return the trials of a comparison by the files of their models."""
    record = read_json(folder / RECORD)
    if not isinstance(record, dict) or "trials" not in record:
        raise ValueError(f"{folder} is not a run of `{format_command('adapt compare')}`.")
    trials = {kept_file(folder, t): t for t in read_trials(folder / RECORD) if t.test is not None}
    kept = {path: trial for path, trial in trials.items() if path.is_file()}
    if not kept:
        raise FileNotFoundError(f"{folder} holds no trained models. Compare with keep=best or keep=all.")
    return kept


def kept_model(folder: Path, method: str | None, seed: int | None = None) -> Path:
    """Return the file of a model of a comparison.

    Args:
        folder: Of its run.
        method: Key of a variant, such as `lora`, `das_4` or `random_4`.
        seed: Of the training. None takes the best on the reward split.
    """
    kept = kept_trials(folder)
    keys = list(dict.fromkeys(trial.variant for trial in kept.values()))
    if method is None:
        raise ValueError(f"`method` is missing: {folder} compares methods. Choose from {', '.join(keys)}.")
    check_names([method], keys, f"method of {folder}")
    own = {path: trial for path, trial in kept.items() if trial.variant == method and seed in (None, trial.seed)}
    if not own:
        seeds = ", ".join(str(trial.seed) for trial in kept.values() if trial.variant == method)
        raise ValueError(f"`seed` of {method} is not kept: got {seed}, expected {seeds}. Compare with keep=all.")
    return max(own, key=lambda path: own[path].merit)
