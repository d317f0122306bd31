"""`python -m adapt report`: runs side by side, as one HTML file that opens in any browser.

Searches, `adapt`, `adapt das`, `adapt shrink` and `adapt compare` have a report. Runs of `agents compare` and
`agents pareto` have a figure.

python -m adapt report 3                         writes runs/3/report.html
python -m adapt report 4 5 with out=both.html    two runs side by side
python -m adapt report 3 with plugins=my_module  a record imports nothing that is not named again
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from das_gym.adapt.compare.settings import CompareSettings
from das_gym.adapt.finished_runs import JOINT_RECORD, RECORD, SHRUNK, ReportSettings
from das_gym.adapt.report import read_example_answers
from das_gym.adapt.settings import AdaptSettings, JointSearchSettings
from das_gym.adapt.shrinking.record import repeat_command
from das_gym.adapt.shrinking.settings import ShrinkSettings
from das_gym.agents.search_experiment import search_architecture, search_facts, search_progress
from das_gym.agents.searching.record import RECORD as SEARCHED
from das_gym.agents.searching.record import SearchResult
from das_gym.agents.searching.scorer import make_scored
from das_gym.agents.settings import SearchSettings
from das_gym.agents.table_experiment import masks_table

from das_gym.commands.commandline import rerun_command
from das_gym.commands.runs import COMPARISON, run_settings
from das_gym.commands.settings import build, settings_dict
from das_gym.commands.trust import trusted_settings
from das_gym.drawing.report import CostChart, Heat, RunReport, write_report
from das_gym.files import explain_damage, read_json
from das_gym.registration import is_tabular

REPORT = "report.html"

COMMANDS: dict[str, tuple[str, Any]] = {
    RECORD: ("adapt", AdaptSettings),
    JOINT_RECORD: ("adapt das", JointSearchSettings),
    SHRUNK: ("adapt shrink", ShrinkSettings),
    COMPARISON: ("adapt compare", CompareSettings),
}
"""Record of a run to its command and settings."""


def main(settings: ReportSettings) -> None:
    """Write the report of runs of any command."""
    folders = settings.folders
    path = folders[0] / REPORT
    if len(folders) > 1:
        path = folders[0].parent / f"report_{'_'.join(folder.name for folder in folders)}.html"
    path = write_report(settings.out or path, [run_report(folder) for folder in folders])
    print(f"report: {path} ({path.stat().st_size / 1e3:.0f} kB, opens in any browser, works offline)")


def run_report(folder: Path) -> RunReport:
    """Return the report of a finished run, with its search, which is in its folder or in the same folder of runs."""
    _check_records(folder)
    name = next((name for name in COMMANDS if (folder / name).is_file()), None)
    record = {} if name is None else read_json(folder / name)
    has_report = isinstance(record, dict) and bool(record.get("report"))
    if not has_report and (folder / SEARCHED).is_file():  # of a search, or of a run that has not finished
        return search_report(folder)
    if name is None or not has_report:
        raise FileNotFoundError(
            f"{folder} has no report: its run has not finished, or its command has none. Searches, `adapt`, `adapt das`, "
            "`adapt shrink` and `adapt compare` have one."
        )
    with explain_damage(folder / name, "run it again"):
        report = build(RunReport, {**record["report"], "versions": record["versions"]})
        command = _command(folder, name, record)
        chosen = record["settings"].get("search_run")
    report = replace(report, name=f"run {folder.name}", commands=[command], answers=read_example_answers(folder))
    if chosen is None:
        searched = folder
    elif str(chosen).isdecimal():  # a number, so that a record cannot name a search outside of the folder of runs
        searched = folder.parent / str(chosen)
    else:
        return report
    return report.with_search(search_report(searched)) if (searched / SEARCHED).is_file() else report


def _check_records(folder: Path) -> None:
    """Raise ValueError for records that are links: a report, which may be published, would show other files."""
    for path in folder.glob("*.json"):
        if path.is_symlink():
            raise ValueError(f"{path} is a link: got {path.readlink()}, expected a record. Replace it by a copy.")


def _command(folder: Path, name: str, record: dict[str, Any]) -> str:
    """Return the command that repeats a run. It is built from settings: a record's own command may be anything."""
    mask = record["report"]["mask"]
    if name == SHRUNK:
        return repeat_command(folder, record["problem"], mask)
    changes = {"problem": record["problem"]}
    if name == RECORD:  # the search is not repeated: its mask is in the record
        changes |= {"search_run": None, "search": None, "mask": json.dumps(mask, separators=(",", ":"))}
    command, cls = COMMANDS[name]
    return rerun_command(folder, command, cls, settings_dict(cls()), **changes)


def search_report(folder: Path) -> RunReport:
    """Return the report of a finished search from the folder of its run, or of the run that it is a part of."""
    _check_records(folder)
    result = SearchResult.load(folder)
    on_table = is_tabular(result.env_id)
    recorded = {"env_id": result.env_id, "env_kwargs": result.env_kwargs if on_table else {}}
    trusted_settings(folder / SEARCHED, result.plugins, recorded)
    table = None
    scored: tuple[Any, ...] = ()  # table and split
    if on_table:
        env = make_scored(result.env_id, result.env_kwargs)
        scored = env.table, env.scorer.split
        best = env.table.best(env.scorer.objective, env.scorer.split)
        masks = {"full model": np.zeros_like(best), "the answer": result.mask, "best mask of all": best}
        table = masks_table(env.table, masks, "Before and after")
    rows = [row for turn in result.history for row in turn.complete_rows if row["loss"] is not None]
    tried = {(row["macs_saved"], row["loss"]) for row in rows}
    answer = None if result.loss is None else (result.macs_saved, result.loss)
    commands = []
    if "env_id" in run_settings(folder):  # otherwise the search is a part of a run of another command
        defaults = {**settings_dict(SearchSettings()), "env_id": None, "agent": None, "seed": None}  # these are always shown
        commands = [rerun_command(folder, "agents", SearchSettings, defaults)]
    return RunReport(
        title=f"{result.agent} on {result.env_id}, seed {result.seed}",
        facts=search_facts(result),
        architecture=search_architecture(result),
        mask=result.mask.astype(int).tolist(),
        table=table,
        progress=search_progress(result),
        heat=Heat.from_turns([turn.skip_probabilities for turn in result.history if turn.skip_probabilities is not None]),
        cost=CostChart.from_search(sorted(tried), answer, *scored),
        statistics=dict(result.statistics) or None,
        name=f"run {folder.name}",
        commands=commands,
        versions=result.versions,
    )
