"""From a folder of weights to a smaller folder that transformers loads by itself, with measured quality and speed.

python -m adapt shrink with checkpoint=DIR data_root=DIR macs_saved=0.2 out=NEW     search, delete, recover, save, check
python -m adapt shrink with checkpoint=DIR data_root=DIR skip_num=3 recover=none    3 layers deleted, nothing trained
python -m adapt shrink with checkpoint=DIR data_root=DIR latency_saved=0.2          or memory_saved, parameters_saved
python -m adapt shrink with search_run=3 out=NEW                                    the mask, model and data of that search
python -m adapt shrink with search_run=5 point=3 out=NEW                            a point of the front of `agents pareto`
python -m adapt shrink with checkpoint=DIR data_root=DIR 'mask=[0,1,0,0]'           a custom mask
python -m adapt shrink compare with checkpoint=DIR data_root=DIR macs_saved=0.2     methods side by side, nothing saved
python -m adapt shrink with resume=4                                                continue run 4, which was stopped
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from das_gym.adapt.choosing import named_configs, search_first, search_values
from das_gym.adapt.estimate import search_first_parts
from das_gym.adapt.run_report import REPORT, run_report
from das_gym.adapt.shrink.checks import check
from das_gym.adapt.shrink.estimate import shrink_parts
from das_gym.adapt.shrink.job import ShrinkJob, finish_saved
from das_gym.adapt.shrink.settings import RECORD, ShrinkSettings

from das_gym.commands.recorded import RecordedCommand, Run, required_folder
from das_gym.drawing.report import write_report
from das_gym.files import explain_damage, read_json
from das_gym.problem.estimate import print_estimate


def prepare(settings: ShrinkSettings) -> ShrinkSettings:
    """Check all that can be known before a run, and search where no mask is given; the model is loaded."""
    check(settings)
    if not settings.needs_search:
        print_estimate(settings, lambda: shrink_parts(settings))
        return settings
    values = search_values(settings, settings.budget, settings.search)
    print_estimate(settings, lambda: [*search_first_parts(values)[0], *shrink_parts(settings)])
    own_budget: dict[str, Any] = dict.fromkeys(settings.asked)  # a search run brings its budget
    return replace(settings, search_run=search_first(values), **own_budget)


def shrink(settings: ShrinkSettings, run: Run) -> float:
    """Delete, recover, save, verify and measure; the saved model's score is the result."""
    folder = required_folder(run)
    if settings.is_saved(folder):
        score = resume_saved(settings, folder)
    else:
        choice = settings.choice()
        assert choice is not None  # `prepare` searched
        job = ShrinkJob(settings, choice, folder)
        measured = job.run(run.log_scalar)
        run.add_artifact(folder / RECORD)
        for row in measured.rows.values():
            for name in ("score", "loss", "parameters", "macs"):
                run.log_scalar(f"{row.name}.{name}", float(getattr(row, name)))
        print(f"record: {folder / RECORD}, model: {job.out}")
        score = measured.final.score
    print(f"report: {write_report(folder / REPORT, [run_report(folder)])}")
    return score


def resume_saved(settings: ShrinkSettings, folder: Path) -> float:
    """Finish a run that was stopped after its model was saved, and return the model's score."""
    finish_saved(folder)
    record = folder / RECORD
    with explain_damage(record, "remove it and the model, and resume again"):
        score = float(read_json(record)["models"][-1]["score"])
    print(f"The model was saved before the run stopped. record: {record}, model: {settings.out_folder(folder)}")
    return score


ex = RecordedCommand("adapt shrink", ShrinkSettings, shrink, named_configs, prepare=prepare)
"""`python -m adapt shrink`."""
