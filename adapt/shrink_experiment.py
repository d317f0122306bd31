"""From a folder of weights to a smaller folder that transformers loads by itself, with the loss told.

python -m adapt shrink with checkpoint=DIR data_root=DIR macs_saved=0.2 out=NEW     search, delete, recover, save, check
python -m adapt shrink with checkpoint=DIR data_root=DIR skip_num=3 recover=none    3 layers deleted, nothing trained
python -m adapt shrink with checkpoint=DIR data_root=DIR latency_saved=0.2          or memory_saved, parameters_saved
python -m adapt shrink with search_run=3 out=NEW                                    the mask, model and data of that search
python -m adapt shrink with search_run=3 refine=8                                   short recoveries choose among its best
python -m adapt shrink with front=5 point=3 out=NEW                                 a point of the front of `agents pareto`
python -m adapt shrink with checkpoint=DIR data_root=DIR 'mask=[0,1,0,0]'           a mask of one's own
python -m adapt shrink compare with checkpoint=DIR data_root=DIR macs_saved=0.2     methods side by side, nothing saved
python -m adapt shrink with resume=4                                                go on with run 4, which was stopped
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from das_gym.adapt.adapt_experiment import Choice, SearchFirst, SearchingExperiment
from das_gym.adapt.refining import Round, candidates, taken
from das_gym.adapt.run_report import SearchReport, run_report
from das_gym.adapt.shrink.checks import answers, as_vlm, asked_budget, check, deletable
from das_gym.adapt.shrink.recovery import Teacher, ask_for_all
from das_gym.adapt.shrink.refining import refine
from das_gym.adapt.shrink.report import print_report
from das_gym.adapt.shrink.settings import (
    CHECKPOINT,
    PENDING,
    RECORD,
    ShrinkSettings,
    is_saved,
    place_of,
    record_of,
    told_to_search,
)
from das_gym.adapt.shrink.work import Work

from das_gym.commandline import typed
from das_gym.config import build
from das_gym.drawing.command import REPORT
from das_gym.drawing.report import write_report
from das_gym.experiment import RunsExperiment, required_folder, run_folder
from das_gym.files import damage_named, read_json
from das_gym.problem.loading import Problem, load_problem
from das_gym.streams import shown


class ShrinkExperiment(SearchingExperiment):
    """`python -m adapt shrink`.

    Args:
        search_first: As for `SearchingExperiment.search_with`.
        agents: Likewise.
        search_report: What a search tells in a report, since this package knows nothing of agents; None = nothing.
        compare: Makes the experiment that `python -m adapt shrink compare` runs.
    """

    siblings = ("compare",)

    def __init__(
        self,
        search_first: SearchFirst | None = None,
        agents: Callable[[], Mapping[str, Mapping[str, Any]]] = dict,
        search_report: SearchReport | None = None,
        compare: Callable[[], RunsExperiment] | None = None,
    ) -> None:
        super().__init__("adapt shrink", save_git_info=False)
        self.compare = compare
        self.add_settings(ShrinkSettings, check)
        self.search_with(search_first, agents)
        self.main(shrink)

        @self.post_run_hook  # a run is complete when its report is there
        def report(_run: Any) -> None:
            """A report beside the record; its path is told."""
            folder = run_folder(_run)
            if folder is not None and (folder / RECORD).is_file():
                print(f"report: {write_report(folder / REPORT, [run_report(folder, search_report)])}")

    def check_first(self, given: Mapping[str, Any]) -> None:
        """As `check`."""
        check(build(ShrinkSettings, given))

    def search_settings(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """What the search is told."""
        settings = build(ShrinkSettings, given)
        return told_to_search(settings, settings.search)

    def run_commandline(self, argv: Sequence[str] | None = None) -> Any:
        """As `RunsExperiment.run_commandline`; `compare` behind the name is an experiment of its own."""
        words = list(sys.argv if argv is None else argv)
        if self.compare is not None and words[1:2] == ["compare"]:
            return self.compare().run_commandline([words[0], *words[2:]])
        return super().run_commandline(words)


def shrink(_run: Any, _config: Mapping[str, Any], search: Any) -> float:
    """Delete, recover, save, check and compare; the saved model's score is the result."""
    del search  # named so that Sacred lets it hold keys of its own
    settings = build(ShrinkSettings, _config)
    folder = required_folder(_run)
    if is_saved(settings, folder):
        return end(settings, folder)
    choice = settings.choice()
    if choice is None:
        raise ValueError(f"give search_run=<id> or mask=[...]; `{typed('adapt shrink')}` alone searches first")
    out = place_of(settings, folder)
    problem = load_problem(choice.problem)
    choice = deletable(choice, problem, asked_budget(settings, problem))
    if choice.remark:
        print(shown(choice.remark))
    teacher = ask_for_all(as_vlm(problem), problem.task, problem.splits.train, settings.recovery())
    choice, rounds = refined(choice, problem, settings, folder, teacher)
    work = Work(settings, choice, problem, out, teacher, rounds)
    comparison = work.run(folder, _run.log_scalar)
    (folder / PENDING).replace(folder / RECORD)
    (folder / CHECKPOINT).unlink(missing_ok=True)
    _run.add_artifact(folder / RECORD)
    for row in comparison.rows.values():
        for name in ("score", "loss", "parameters", "macs"):
            _run.log_scalar(f"{row.name}.{name}", float(getattr(row, name)))
    print_report(comparison, work.title, work.drawn)
    print(f"record: {folder / RECORD}, model: {out}")
    return comparison.final.score


def refined(
    choice: Choice, problem: Problem, settings: ShrinkSettings, folder: Path, teacher: Teacher | None
) -> tuple[Choice, list[Round]]:
    """The mask to delete, where several of a search's are to be tried; and what they came to."""
    others = (mask for mask in choice.others if answers(problem, mask))  # its own is one that can be deleted
    masks = candidates(choice.mask, others, settings.refine)
    if len(masks) < 2:
        return choice, []
    rounds = refine(problem, as_vlm(problem), masks, settings.recovery(), folder, teacher)
    return dataclasses.replace(choice, mask=taken(rounds, masks)), rounds


def end(settings: ShrinkSettings, folder: Path) -> float:
    """What is left to do then; the saved model's score.

    Raises:
        ValueError: the record is damaged.
    """
    record = record_of(folder)
    with damage_named(record, "remove it and the model, and resume again"):
        score = float(read_json(record)["models"][-1]["score"])
    record.replace(folder / RECORD)
    (folder / CHECKPOINT).unlink(missing_ok=True)
    print(f"the model was saved before the run was stopped; record: {folder / RECORD}, model: {place_of(settings, folder)}")
    return score
