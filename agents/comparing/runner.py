"""The runner of every comparison: variants times seeds, each a trial that a resumed run does not repeat, and one record."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np

from das_gym.commands.progress import progress
from das_gym.commands.runs import COMPARISON, library_versions
from das_gym.commands.settings import build, settings_dict
from das_gym.commands.trust import imported_plugins
from das_gym.drawing.report import Console, Table
from das_gym.files import explain_damage, read_json, write_json, write_text
from das_gym.intervals import t_interval
from das_gym.processes import is_main_process

TABLE = "compare.md"
WIDTH = 160
"""Columns that a table of a comparison needs."""


Trial = TypeVar("Trial", bound=Any)  # a frozen dataclass of plain values, with `variant` and `seed` among them


class Comparison(Generic[Trial]):
    """The trials of a comparison, and the record in the run's folder.

    Args:
        folder: The run's folder, whose record may have trials of an interrupted run. None keeps nothing.
        kind: The dataclass of a trial.
        settings: The settings of the command.
        results: What the record holds besides the trials, as JSON values; more may be added.

    Attributes:
        trials: The finished trials, in the order in which they ended.
    """

    def __init__(
        self, folder: Path | None, kind: type[Trial], settings: Any, results: Mapping[str, Any] | None = None
    ) -> None:
        self.folder = folder
        self.trials = [] if folder is None else read_trials(folder, kind)
        self.results = dict(results or {})
        self.settings = {**settings_dict(settings), "plugins": list(imported_plugins())}
        self.versions = library_versions()

    def find(self, **names: Any) -> Trial | None:
        """Return the first trial with these values of its fields; None if there is none yet."""
        return next((trial for trial in self.trials if all(getattr(trial, key) == names[key] for key in names)), None)

    def run(self, cells: Iterable[Mapping[str, Any]], count: int, run_trial: Callable[..., Trial]) -> list[Trial]:
        """Run the trial of every cell that has none yet, write the record after each, and return all trials.

        Args:
            cells: The fields that name each trial, such as variant and seed. Later ones may depend on earlier trials.
            count: Number of cells.
            run_trial: Called with the fields of a cell, by name.
        """
        with progress(count, "comparing", unit="trial", initial=len(self.trials)) as bar:
            for cell in cells:
                if self.find(**cell) is None:
                    self.trials.append(run_trial(**cell))
                    self.save()
                    bar.update()
        return self.trials

    def save(self) -> None:
        """Write the record of the trials so far."""
        if self.folder is not None and is_main_process():
            record = {"settings": self.settings, "plugins": self.settings["plugins"], "versions": self.versions}
            trials = [asdict(trial) for trial in self.trials]
            write_json(self.folder / COMPARISON, {**record, **self.results, "trials": trials}, indent=None)

    def finish(self, run: Any, table: Table) -> None:
        """Print the table, and write it into the record and to a Markdown file."""
        self.results["rows"] = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
        table.print(max(Console().width, WIDTH), heading_width=9)
        if self.folder is None:
            return
        self.save()
        write_text(self.folder / TABLE, f"# {table.title}\n\n{table.markdown()}\n")
        for name in (COMPARISON, TABLE):
            run.add_artifact(self.folder / name)
        print(f"record: {self.folder / COMPARISON}, table: {self.folder / TABLE}")


def grid_cells(variants: Iterable[str], seeds: Iterable[int]) -> list[dict[str, Any]]:
    """Return the cells of a grid: all variants with the first seed, then with the next, so that a stopped run compares."""
    return [{"variant": variant, "seed": seed} for seed in seeds for variant in variants]


def read_trials(folder: Path, kind: type[Trial]) -> list[Trial]:
    """Return the trials in the record of a run's folder; none without a record."""
    path = folder / COMPARISON
    return trials_in(read_json(path), path, kind) if path.is_file() else []


def trials_in(record: Any, path: Path, kind: type[Trial]) -> list[Trial]:
    """Return the trials in a record that was read from a file."""
    with explain_damage(path, "remove it, and every trial is run again"):
        return [build(kind, trial) for trial in record["trials"]]


def format_mean(values: Sequence[float] | np.ndarray, scale: float = 1.0, digits: int = 1) -> str:
    """Return the mean over seeds and half the width of its 95 % t-interval, such as `79.0 ± 1.4`.

    "-" stands for no values or for a mean that is not finite; fewer than 3 values have no interval.
    """
    array = scale * np.asarray(values, dtype=float)
    if len(array) == 0 or not np.isfinite(array).all():
        return "-"
    mean = array.mean()
    width = t_interval(array)[1] - mean
    return f"{mean:.{digits}f} ± {width:.{digits}f}" if np.isfinite(width) else f"{mean:.{digits}f}"
