"""`python -m agents runs`: past runs of every command, by environment, best first.

python -m agents runs                                   all in runs/, by environment and command
python -m agents runs with agent=bandit env=meter_vqa   searches by the bandit in environments of that name
python -m agents runs with status=failed order=newest   what failed, the newest first
"""

from __future__ import annotations

import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import zip_longest
from pathlib import Path
from typing import Any

from das_gym.agents.searching.record import RECORD
from rich import box
from rich.table import Table
from rich.text import Text

from das_gym.commandline import format_command, is_our_program
from das_gym.config import check_names, choice
from das_gym.console import Console
from das_gym.files import read_json
from das_gym.locks import is_locked
from das_gym.registration import ENVIRONMENTS
from das_gym.runs import RUNS_DIR, PluginSettings, runs_dir_words

ORDERS = ("best", "newest")
STATES = {"COMPLETED": "done", "FAILED": "failed", "INTERRUPTED": "stopped", "RUNNING": "running"}
"""Sacred's names of the states of a run, and ours."""

DIED, DAMAGED = "died", "damaged"
"""States of a run whose process was killed or lost its machine, and of one whose files cannot be read."""

SILENCE = timedelta(minutes=2)
"""Age of the last heartbeat after which a run without a readable lock is dead. Sacred writes one every 10 s."""

MODELS_RECORDS = ("adapt.json", "das.json", "shrink.json")
"""Records that hold a list of models."""

NARROWEST = 80


@dataclass(frozen=True)
class RunsSettings(PluginSettings):
    """The settings of `python -m agents runs`.

    Attributes:
        runs_dir: Folder of all runs.
        agent: Show only searches by this agent.
        env: Show only runs whose environment contains this text, such as `meter` or `vqa_table`.
        command: Show only runs of this command, such as `agents` or `adapt shrink`.
        status: Show only runs in this state.
        order: `best` sorts by environment and command, best result first. `newest` sorts by time.
        limit: Number of runs to show, at least 1.
    """

    runs_dir: str = RUNS_DIR
    agent: str | None = None
    env: str | None = None
    command: str | None = None
    status: str | None = choice(None, (*STATES.values(), DIED, DAMAGED))
    order: str = choice("best", ORDERS)
    limit: int = 30

    def __post_init__(self) -> None:
        check_names([self.order], ORDERS, "order")
        if self.status is not None:
            check_names([self.status], (*STATES.values(), DIED, DAMAGED), "status")
        if self.limit < 1:
            raise ValueError(f"`limit` is out of range: got {self.limit}, expected at least 1")


@dataclass(frozen=True)
class PastRun:
    """One line of the list.

    Attributes:
        id: Name of its folder.
        command: The command, such as `agents` or `adapt shrink`.
        agent: Search algorithm, or "-".
        env: Short name of the environment, with `_table` if a table was used.
        result: Reward of a search or test score of a model; None without a result.
        macs_saved: Fraction of the MACs saved; None if it is not recorded.
        status: `done`, `failed`, `stopped`, `running`, `died`, `damaged`.
        started: UTC, to the minute.
        resumes: Whether its command has the setting `resume`.
    """

    id: int
    command: str
    agent: str
    env: str
    result: float | None
    macs_saved: float | None
    status: str
    started: str
    resumes: bool = False


def past_runs(settings: RunsSettings) -> list[PastRun]:
    """Return the runs that match the settings, in the order that they ask for."""
    if not Path(settings.runs_dir).is_dir():
        raise FileNotFoundError(f"no folder {Path(settings.runs_dir).absolute()}: run something first, or give runs_dir=")
    files = [path for path in Path(settings.runs_dir).glob("*/run.json") if path.parent.name.isdecimal()]
    runs = sorted(map(_read, files), key=lambda run: -run.id)
    for name in ("agent", "command", "status"):
        if (wanted := getattr(settings, name)) is not None:
            runs = [run for run in runs if getattr(run, name) == wanted]
    runs = [run for run in runs if (settings.env or "") in run.env]
    if settings.order == "best":
        runs.sort(key=lambda run: (run.env, run.command, math.inf if run.result is None else -run.result))
    return runs


def _read(path: Path) -> PastRun:
    """Return a run; one with damaged files is listed as damaged."""
    try:
        return _past_run(path)
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, OSError):
        return PastRun(int(path.parent.name), "-", "-", "-", None, None, DAMAGED, "")


def _past_run(path: Path) -> PastRun:
    run, folder = read_json(path), path.parent
    config = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    result, saved = run.get("result"), _saved(folder)
    status = STATES.get(run.get("status"), str(run.get("status")).lower())
    return PastRun(
        id=int(folder.name),
        command=str(run["experiment"]["name"]),
        agent=str(config.get("agent") or "-"),
        env=_short(_problem(folder, config)),
        result=float(result) if isinstance(result, int | float) and math.isfinite(result) else None,
        macs_saved=None if saved is None else float(saved),
        status=DIED if status == "running" and not _is_alive(folder, run) else status,
        started=str(run.get("start_time") or "")[:16].replace("T", " "),
        resumes="resume" in config,
    )


def _is_alive(folder: Path, run: Mapping[str, Any]) -> bool:
    """Return whether the process of a run is alive.

    A lock that is held proves it. A free lock disproves it only on the run's own machine, since some shared file systems
    keep locks local. Otherwise the age of the heartbeat decides.
    """
    locked = is_locked(folder)
    same_machine = run.get("host", {}).get("hostname") == platform.node()
    if locked is not None and (locked or same_machine):
        return locked
    beat = datetime.fromisoformat(run.get("heartbeat") or run["start_time"])
    return datetime.now(UTC).replace(tzinfo=None) - beat < SILENCE


def _problem(folder: Path, config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the settings of model and task: from the record, or from the config unless a search decides them."""
    records = (read_json(folder / name) for name in MODELS_RECORDS if (folder / name).is_file())
    recorded = next((record["problem"] for record in records if "problem" in record), None)
    if recorded is not None:
        return dict(recorded)
    return {} if config.get("search_run") is not None else config


def _short(config: Mapping[str, Any]) -> str:
    for entry in ENVIRONMENTS.values():
        if config.get("env_id") == entry.id or (config.get("model"), config.get("task")) == (entry.model, entry.task):
            return entry.short
        if config.get("env_id") == entry.tabular_id:
            return f"{entry.short}_table"
    return str(config.get("env_id") or "-")


def _saved(folder: Path) -> float | None:
    """Return the fraction of the MACs that the result saves; None if it is not recorded."""
    if (folder / RECORD).is_file():
        return read_json(folder / RECORD).get("macs_saved")
    for name in MODELS_RECORDS:
        if (folder / name).is_file():
            models = read_json(folder / name)["models"]
            return models[-1 if name == "shrink.json" else 0]["macs_saved"]  # of the model that is kept
    return None


def printable(text: str) -> str:
    """Return a text with its control characters replaced by `?`."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def table_of(runs: Sequence[PastRun], grouped: bool = True) -> Table:
    """Return the runs as a table in 80 columns; `grouped` separates environments and commands by lines."""
    table = Table(box=box.SIMPLE_HEAD, padding=0, pad_edge=False, caption_justify="left")
    numbers = ("run", "result", "MACs\nsaved")
    for name in ("run", "command", "agent", "environment", "result", "MACs\nsaved", "status", "started\nUTC"):
        table.add_column(name, justify="right" if name in numbers else "left", overflow="fold")
    for run, after in zip_longest(runs, runs[1:]):
        result = "-" if run.result is None else f"{run.result:.4f}"
        saved = "-" if run.macs_saved is None else f"{100 * run.macs_saved:.1f} %"
        cells = (str(run.id), run.command, run.agent, run.env, result, saved, run.status, run.started[5:])
        last_of_group = grouped and after is not None and (run.env, run.command) != (after.env, after.command)
        table.add_row(*(Text(printable(cell)) for cell in cells), end_section=last_of_group)  # records hold no markup
    table.caption = "result: reward of a search (agents), score on test (adapt)"
    return table


def main(settings: RunsSettings) -> None:
    """Print the list, and the commands that resume stopped runs."""
    runs = past_runs(settings)
    if not runs:
        print(f"no such run in {settings.runs_dir}")
        return
    console = Console()
    console.width = max(console.width, NARROWEST)
    console.print(table_of(runs[: settings.limit], grouped=settings.order == "best"))
    for run in runs[: settings.limit]:
        if run.status in (DIED, "stopped") and run.resumes and is_our_program(run.command):
            words = f"resume={run.id}", runs_dir_words(Path(settings.runs_dir) / str(run.id))
            print(f"run {run.id} {run.status}. Resume it with: {format_command(printable(run.command), *words)}")
    if len(runs) > settings.limit:
        print(f"{len(runs) - settings.limit} more: limit={len(runs)} shows all")
