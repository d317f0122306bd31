"""The runner of a comparison, and its result."""

from dataclasses import dataclass
from functools import partial
from typing import Any

from das_gym.adapt.compare.record import FULL_MODEL, Trial, chosen_trials, comparison_report, comparison_table, mean_test
from das_gym.adapt.compare.training import TrainingRows
from das_gym.adapt.shrinking.comparing import RemovalRows
from das_gym.agents.comparing.runner import Comparison

from das_gym.drawing.report import Table


@dataclass(frozen=True)
class Compared:
    """The result of a comparison.

    Attributes:
        trials: All trials, in the order in which they ended.
        chosen: The measured trials of each row, those with its learning rate.
        table, report: The table, and the record of its report.
    """

    trials: list[Trial]
    chosen: dict[str, list[Trial]]
    table: Table
    report: dict[str, Any]


def compare_rows(rows: TrainingRows | RemovalRows, comparison: Comparison[Trial]) -> Compared:
    """Run the trials that a comparison lacks, and return the result; all processes of a training call it.

    Raises:
        ValueError: No row has a result.
    """
    trials = comparison.run(rows.cells(comparison), rows.count, partial(rows.run_trial, comparison))
    chosen = chosen_trials(rows.variants, trials)
    failures = [f"{trial.variant} has no result: {trial.failure}" for trial in trials if trial.failure]
    if not chosen.keys() - {FULL_MODEL}:
        raise ValueError(f"no method found a mask that can be removed: {'; '.join(failures)}. Give a smaller budget.")
    if FULL_MODEL in chosen:
        order = sorted(chosen, key=lambda key: (key != FULL_MODEL, -mean_test(chosen[key])))
        chosen = {key: chosen[key] for key in order}
    table = comparison_table(rows.title, chosen, failures)
    report = comparison_report(rows.title, rows.metric.replace("_", " "), rows.architecture, chosen, table)
    return Compared(trials, chosen, table, report)
