"""The reports of runs of `adapt` and its sub-commands, and `python -m agents report`."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from itertools import accumulate
from pathlib import Path
from typing import Any

from das_gym.adapt.compare.record import RECORD as COMPARED
from das_gym.adapt.compare.table import Line, comparison_table
from das_gym.adapt.examples import read_examples
from das_gym.adapt.report import results_table
from das_gym.adapt.subnets import JOINT_RECORD, RECORD
from das_gym.agents.run_report import search_report
from das_gym.agents.searching.record import RECORD as SEARCH_RECORD

from das_gym.config import build, settings_dict
from das_gym.drawing.architecture import Architecture
from das_gym.drawing.command import ReportSettings, report, rerun_command
from das_gym.drawing.report import Heat, Progress, RunReport
from das_gym.files import read_json
from das_gym.problem.config import grouped_settings
from das_gym.registration import ENVIRONMENTS

SHRUNK_RECORD = "shrink.json"


def main(settings: ReportSettings) -> None:
    """Write the report of runs of any command."""
    report(settings, run_report)


def run_report(folder: Path) -> RunReport:
    """Return the report of a finished run, with its search if that is in the same folder of runs."""
    if (folder / SEARCH_RECORD).is_file():
        return search_report(folder)
    kinds: dict[str, Callable[[Path, dict[str, Any]], RunReport]] = {
        RECORD: _adapted,
        JOINT_RECORD: _joint,
        SHRUNK_RECORD: _shrunk,
        COMPARED: _compared,
    }
    name = next((name for name in kinds if (folder / name).is_file()), None)
    if name is None:
        raise FileNotFoundError(
            f"{folder} has none of {', '.join([SEARCH_RECORD, *kinds])}: its run has not finished. Resume it with `resume`."
        )
    record = read_json(folder / name)
    if name == COMPARED and not (isinstance(record, dict) and record.get("lines")):
        raise FileNotFoundError(f"{folder} is not a finished run of `adapt compare`; see the other files in it.")
    try:
        result = kinds[name](folder, record).checked()
        search_run = str(record["settings"].get("search_run"))
    except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError) as error:
        raise ValueError(f"{folder / name} is damaged, or from another version ({error!r}). Run it again.") from error
    result = dataclasses.replace(result, answers=read_examples(folder))
    search = folder.parent / search_run
    if not search_run.isdecimal() or not (search / SEARCH_RECORD).is_file():
        return result
    return result.with_search(search_report(search))


def _adapted(folder: Path, record: dict[str, Any]) -> RunReport:
    from das_gym.adapt.adapt_experiment import AdaptSettings

    mask = json.dumps(record["models"][0]["mask"], separators=(",", ":"))
    changes = {**grouped_settings(record["problem"]), "mask": mask, "search_run": None, "search": None}
    command = rerun_command(folder, "adapt", settings_dict(AdaptSettings()), **changes)
    return _finetuned(folder, record, "fine-tuned", command)


def _joint(folder: Path, record: dict[str, Any]) -> RunReport:
    from das_gym.adapt.das_experiment import JointSearchSettings

    defaults = settings_dict(JointSearchSettings())
    command = rerun_command(folder, "adapt das", defaults, **grouped_settings(record["problem"]))
    result = _finetuned(folder, record, "searched while adapters trained, then fine-tuned", command)
    turns = record["search"]["turns"]
    rewards = [reward for turn in turns for reward in turn["rewards"]]
    preferences = [turn["preferences"] for turn in turns if turn["preferences"] is not None]
    probabilities = [[1 / (1 + math.exp(-g)) for g in values] for values in preferences]
    progress = Progress(rewards, list(accumulate(rewards, max))) if rewards else None
    return dataclasses.replace(result, progress=progress, heat=Heat.of(probabilities))


def _finetuned(folder: Path, record: dict[str, Any], done: str, command: str) -> RunReport:
    subnet, evaluation = record["models"][0], record["models"][0]["evaluation"]
    metric = evaluation["metric_name"].replace("_", " ")
    return RunReport(
        name=f"run {folder.name}",
        title=f"{_problem_name(record['problem'])}, {done}",
        facts={
            "skips": ", ".join(subnet["skipped_layers"]) or "nothing",
            f"{metric} on test, %": f"{100 * evaluation['metric']:.2f}",
            "MACs saved, %": f"{100 * subnet['macs_saved']:.1f}",
            "trained parameters": f"{subnet['trainable_parameters']:,}",
            "test examples": f"{evaluation['examples']:,}",
        },
        architecture=Architecture.from_record(record["units"]),
        mask=subnet["mask"],
        commands=[command],
        table=results_table(record["models"], "Before and after"),
        versions=record["versions"],
    )


def _shrunk(folder: Path, record: dict[str, Any]) -> RunReport:
    from das_gym.adapt.shrink.measuring import CONTROL
    from das_gym.adapt.shrink.report import results_table
    from das_gym.adapt.shrink.settings import command_of

    models, mask, difference = record["models"], record["mask"], record["difference"]
    full, final, control = models[0], models[-1], record["control"]
    trained = "" if control is None else f" and {100 * control['score']:.1f} for the control"
    to = " to the control" if difference["reference"] == CONTROL else ""
    removed = [name for name, bit in zip(record["layers"], mask, strict=True) if bit]
    return RunReport(
        name=f"run {folder.name}",
        title=f"{Path(record['source']).name} shrunk: {sum(mask)} of {len(mask)} layers removed",
        facts={
            "removed": ", ".join(removed) or "nothing",
            "score, %": f"{100 * final['score']:.1f} against {100 * full['score']:.1f} for the baseline{trained}",
            f"difference{to}, points": "{:+.1f} (95 % interval {:+.1f}..{:+.1f})".format(
                *(100 * difference[name] for name in ("score", "low", "high"))
            ),
            "MACs saved, %": f"{100 * final['macs_saved']:.1f}",
            "parameters": f"{final['parameters']:,} instead of {full['parameters']:,}",
            "folder": record["out"],
        },
        architecture=Architecture.from_record(record["units"]),
        mask=mask,
        commands=[command_of(folder, record["problem"], mask)],  # rebuilt: a record's own command may be anything
        table=results_table(models, record["metric"], "Before and after", control),
        versions=record["versions"],
    )


def _compared(folder: Path, record: dict[str, Any]) -> RunReport:
    from das_gym.adapt.compare_experiment import CompareSettings

    lines = [build(Line, line) for line in record["lines"]]
    best = max(lines, key=lambda line: line.score)
    shown = max((line for line in lines if line.key.startswith("das_")), key=lambda line: line.score, default=best)
    mask = next(list(trial["mask"]) for trial in record["trials"] if trial["variant"] == shown.key)
    changes = {**grouped_settings(record["problem"]), "searches": None}
    metric = record["metric"].replace("_", " ")
    return RunReport(
        name=f"run {folder.name}",
        title=f"{_problem_name(record['problem'])}, methods of fine-tuning compared",
        facts={
            f"{metric} on test, %": f"{100 * best.score:.2f} ({best.title}, the best)",
            "mask shown": shown.title,
            "trainings": f"{len(record['trials']):,}",
        },
        architecture=Architecture.from_record(record["units"]),
        mask=mask,
        commands=[rerun_command(folder, "adapt compare", settings_dict(CompareSettings()), **changes)],
        table=comparison_table("Method by method", lines, record["verdict"]),
        versions=record["versions"],
    )


def _problem_name(problem: Mapping[str, Any]) -> str:
    """Return the environment's id, or model and task if it is not registered here."""
    pair = (problem["model"], problem["task"])
    return next((entry.id for entry in ENVIRONMENTS.values() if (entry.model, entry.task) == pair), " on ".join(pair))
