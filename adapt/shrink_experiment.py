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

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from das_gym.adapt.adapt_experiment import SearchFirst, SearchingExperiment
from das_gym.adapt.run_report import run_report
from das_gym.adapt.shrink.checks import check
from das_gym.adapt.shrink.job import ShrinkJob, finish_saved
from das_gym.adapt.shrink.settings import RECORD, ShrinkSettings, search_settings

from das_gym.commandline import typed
from das_gym.config import build
from das_gym.drawing.command import REPORT
from das_gym.drawing.report import write_report
from das_gym.experiment import RunsExperiment, required_folder, run_folder
from das_gym.files import damage_named, read_json


class ShrinkExperiment(SearchingExperiment):
    """`python -m adapt shrink`.

    Args:
        search_first: As for `SearchingExperiment.search_with`.
        agents: Likewise.
        compare: Makes the experiment that `python -m adapt shrink compare` runs.
    """

    siblings = ("compare",)

    def __init__(
        self,
        search_first: SearchFirst | None = None,
        agents: Callable[[], Mapping[str, Mapping[str, Any]]] = dict,
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
                print(f"report: {write_report(folder / REPORT, [run_report(folder)])}")

    def check_first(self, given: Mapping[str, Any]) -> None:
        """As `check`."""
        check(build(ShrinkSettings, given))

    def search_settings(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """What the search is told."""
        settings = build(ShrinkSettings, given)
        return search_settings(settings, settings.search)

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
    if settings.is_saved(folder):
        return resume_saved(settings, folder)
    choice = settings.choice()
    if choice is None:
        raise ValueError(f"give search_run=<id> or mask=[...]; `{typed('adapt shrink')}` alone searches first")
    job = ShrinkJob(settings, choice, folder)
    measured = job.run(_run.log_scalar)
    _run.add_artifact(folder / RECORD)
    for row in measured.rows.values():
        for name in ("score", "loss", "parameters", "macs"):
            _run.log_scalar(f"{row.name}.{name}", float(getattr(row, name)))
    print(f"record: {folder / RECORD}, model: {job.out}")
    return measured.final.score


def resume_saved(settings: ShrinkSettings, folder: Path) -> float:
    """Finish a run that was stopped after its model was saved, and return the model's score."""
    finish_saved(folder)
    record = folder / RECORD
    with damage_named(record, "remove it and the model, and resume again"):
        score = float(read_json(record)["models"][-1]["score"])
    print(f"The model was saved before the run stopped. record: {record}, model: {settings.out_folder(folder)}")
    return score
