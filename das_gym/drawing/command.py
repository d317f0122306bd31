"""Report runs side by side, as one HTML file that opens in any browser.

python -m agents report 3                       writes runs/3/report.html
python -m adapt report 4 5 with out=both.html   two runs side by side
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from das_gym.commandline import HELP, CommandSettings, parse_or_help, setting_words, typed
from das_gym.drawing.report import RunReport, write_report
from das_gym.runs import CONFIG, RUNS_DIR, find_run, read_config

REPORT = "report.html"
NOT_REPEATED = ("runs_dir", "resume", "use", "save_every")
"""Settings that do not change the result of a run, or that `typed` adds."""


@dataclass(frozen=True)
class ReportSettings(CommandSettings):
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


def with_settings(words: Sequence[str], name: str, one: bool = False) -> list[str]:
    """Return the words of a command with its positional values as the setting `name`: `1 2 with x=3`.

    Args:
        words: The words after the command.
        name: The setting.
        one: Whether it is a single text, not a tuple.

    Raises:
        ValueError: several are given where one is allowed.
    """
    if not words or words[0] in (*HELP, "print_config"):
        return list(words)
    if "=" in words[0] and not Path(words[0]).exists():  # a setting without `with`, which the parser reports
        return list(words)
    at = list(words).index("with") if "with" in words else len(words)
    values, rest = tuple(words[:at]), words[at + 1 :]
    if one and len(values) > 1:
        raise ValueError(f"`{name}` takes one value: got {' '.join(values)}. Give settings after `with`.")
    given = [f"{name}={values[0] if one else values}"] if values else []
    return ["with", *given, *rest]


def report(words: Sequence[str], command: str, report_of: Callable[[Path], RunReport]) -> int:
    """Write a report, print its path, and return the exit code.

    Args:
        words: The words after the command.
        command: As in `typed`.
        report_of: Returns the report of a run by its folder.
    """
    settings = parse_or_help(ReportSettings, with_settings(words, "runs"), command)
    if settings is None:
        return 0
    folders = settings.folders()
    path = write_report(settings.place(folders), [report_of(folder) for folder in folders])
    print(f"report: {path} ({path.stat().st_size / 1e3:.0f} kB, opens in any browser, loads nothing)")
    return 0


def rerun_command(folder: Path, command: str, defaults: Mapping[str, Any], **changes: Any) -> str:
    """Return the command that repeats a run.

    Args:
        folder: Of the run. Its `config.json` has the settings.
        command: As in `typed`.
        defaults: The default settings.
        **changes: Settings that replace the run's; None leaves a setting out.
    """
    known = {**(read_config(folder) if (folder / CONFIG).is_file() else {}), **changes}
    chosen = {name: value for name, value in known.items() if name not in NOT_REPEATED and value is not None}
    return typed(command, *setting_words(chosen, defaults))
