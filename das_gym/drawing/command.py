"""Report runs side by side, as one HTML file that opens in any browser.

python -m agents report 3                         writes runs/3/report.html
python -m agents report 4 5 with out=both.html    two runs side by side, of any command
python -m agents report 3 with plugins=my_module  a record imports nothing that is not named again
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from das_gym.commandline import format_command, setting_words
from das_gym.drawing.report import RunReport, write_report
from das_gym.runs import CONFIG, RUNS_DIR, PluginSettings, find_run, read_config

REPORT = "report.html"
NOT_REPEATED = ("runs_dir", "resume", "plugins", "save_every")
"""Settings that do not change the result of a run, or that `format_command` adds."""


@dataclass(frozen=True)
class ReportSettings(PluginSettings):
    """The settings of `report`, whose runs stand before `with`: `report 1 2 with out=both.html`.

    Attributes:
        runs: Ids of runs, or their folders.
        out: HTML file to write. None is report.html in the folder of the run, or report_1_2.html in `runs_dir` for several
            runs.
        runs_dir: Folder of all runs.
    """

    runs: tuple[str, ...] = ()
    out: str | None = None
    runs_dir: str = RUNS_DIR

    def __post_init__(self) -> None:
        if not self.runs:
            raise ValueError("`runs` is missing. Name the runs to report, as in `report 1 2`.")

    def folders(self) -> list[Path]:
        """Return the folders of the runs."""
        found = []
        for run in self.runs:
            folder = find_run(self.runs_dir, run) if run.isdecimal() else Path(run)
            if not folder.is_dir():
                raise FileNotFoundError(f"`runs` names no run: got {run}, expected an id in {self.runs_dir} or a folder.")
            found.append(folder)
        return found

    def place(self, folders: Sequence[Path]) -> Path:
        """Return the file of the page."""
        if self.out is not None:
            return Path(self.out)
        if len(folders) == 1:
            return folders[0] / REPORT
        return folders[0].parent / f"report_{'_'.join(folder.name for folder in folders)}.html"


def report(settings: ReportSettings, report_of: Callable[[Path], RunReport]) -> None:
    """Write a report of the runs, which `report_of` reads from their folders, and print its path."""
    folders = settings.folders()
    path = write_report(settings.place(folders), [report_of(folder) for folder in folders])
    print(f"report: {path} ({path.stat().st_size / 1e3:.0f} kB, opens in any browser, works offline)")


def rerun_command(folder: Path, command: str, defaults: Mapping[str, Any], **changes: Any) -> str:
    """Return the command that repeats a run, without default settings; `changes` replace the run's, None leaves one out."""
    known = {**(read_config(folder / CONFIG) if (folder / CONFIG).is_file() else {}), **changes}
    chosen = {name: value for name, value in known.items() if name not in NOT_REPEATED and value is not None}
    return format_command(command, *setting_words(chosen, defaults))
