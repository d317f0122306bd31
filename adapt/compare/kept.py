"""Models of a comparison that are kept: what each method learnt, a file a row and seed, in the run's folder."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from das_gym.adapt.compare.trials import Trial, merit, read_trials

from das_gym.commandline import typed
from das_gym.config import check_names
from das_gym.files import read_json

RECORD = "compare.json"
"""The record of a comparison."""

KEPT = "{}_seed{}.safetensors"


def kept_file(folder: Path, trial: Trial) -> Path:
    """Where the model of a training is kept."""
    return folder / KEPT.format(trial.entrant, trial.seed)


def to_keep(trials: Iterable[Trial], keep: str) -> list[Trial]:
    """Of which trainings the model stays.

    Args:
        trials: All; those that were not measured are of learning rates that others are better than, or not done.
        keep: `best`, of each row the seed that is best on the reward split; `all` seeds; or `none`.
    """
    measured = [trial for trial in trials if trial.test is not None]
    if keep != "best":
        return measured if keep == "all" else []
    rows = dict.fromkeys(trial.entrant for trial in measured)
    return [max((t for t in measured if t.entrant == row), key=merit) for row in rows]


def drop_others(folder: Path, trials: Iterable[Trial], keep: str) -> None:
    """Delete the models that do not stay."""
    stay = {kept_file(folder, trial) for trial in to_keep(trials, keep)}
    for path in folder.glob(KEPT.format("*", "*")):
        if path not in stay:
            path.unlink()


def kept_model(folder: Path, method: str | None, seed: int | None = None) -> Path:
    """The file of a model that a comparison kept.

    Args:
        folder: Of its run.
        method: Key of a row, such as `lora`, `das_4` or `random_4`.
        seed: Of the training; None is the one that is best on the reward split.

    Raises:
        ValueError: no row is named, or there is no such row or seed; the message lists those that there are. Or what lies
            there compares something else than methods.
        FileNotFoundError: the run kept none.
    """
    record = read_json(folder / RECORD)
    if not isinstance(record, dict) or "trials" not in record:
        raise ValueError(f"{folder / RECORD} compares no methods of fine-tuning: give a run of `{typed('adapt compare')}`")
    there = [t for t in read_trials(folder / RECORD) if t.test is not None and kept_file(folder, t).is_file()]
    if not there:
        raise FileNotFoundError(f"{folder} keeps no model of any method: compare with keep=best or keep=all")
    rows = list(dict.fromkeys(trial.entrant for trial in there))
    if method is None:
        raise ValueError(f"{folder} compares methods: say whose model, method={' or '.join(rows)}")
    check_names([method], rows, f"method of {folder}")
    return kept_file(folder, _of_seed([t for t in there if t.entrant == method], seed))


def trial_of(folder: Path, file: Path) -> Trial:
    """The training of which a file in a comparison's folder is what was learnt.

    Raises:
        ValueError: the record does not say.
    """
    trials = [t for t in read_trials(folder / RECORD) if t.test is not None and kept_file(folder, t) == file]
    if not trials:
        raise ValueError(f"{folder / RECORD} does not say what {file.name} is: give the run's number and a method")
    return trials[0]


def _of_seed(trials: Sequence[Trial], seed: int | None) -> Trial:
    if seed is None:
        return max(trials, key=merit)
    found = next((trial for trial in trials if trial.seed == seed), None)
    if found is None:
        known = ", ".join(str(trial.seed) for trial in trials)
        raise ValueError(f"seed={seed} of {trials[0].entrant} is not kept, only {known}: compare with keep=all")
    return found
