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
from das_gym.runs import RUNS_DIR, PluginSettings, is_run_id, runs_dir_words

ORDERS = ("best", "newest")
STATES = {"COMPLETED": "done", "FAILED": "failed", "INTERRUPTED": "stopped", "RUNNING": "running"}
"""What Sacred calls the states of a run, and what they are called here."""

DAMAGED = "damaged"
"""The state of a run whose files cannot be read."""

DIED = "died"
"""The state of a run whose process ended without saying so: killed, out of memory, or its machine went down."""

SILENCE = timedelta(minutes=2)
"""Age of the last heartbeat after which a run is dead, where its lock tells nothing; Sacred writes one every 10 s."""

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
            raise ValueError(f"limit={self.limit} is not allowed; show 1 run or more")


@dataclass(frozen=True)
class PastRun:
    """A run as the list shows it.

    Attributes:
        id: Its folder's name.
        command: What was typed: `agents`, `adapt shrink`, ...
        agent: Who searched; "-" where nobody did.
        env: The environment's short name, `_table` behind it where a table answered.
        result: Reward of a search, test score of an adaptation; None where there is none.
        macs_saved: Share of the MACs; None where that is not recorded.
        status: `done`, `failed`, `stopped`, `running`, `died`, `damaged`.
        started: UTC, to the minute.
        resumes: Whether `resume` can continue it, unless it is done.
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
    """The runs that the settings ask for, in their order.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    if not Path(settings.runs_dir).is_dir():
        raise FileNotFoundError(f"no folder {Path(settings.runs_dir).absolute()}: run something first, or give runs_dir=")
    files = [path for path in Path(settings.runs_dir).glob("*/run.json") if is_run_id(path.parent.name)]
    runs = [run for run in map(_read, files) if _is_asked_for(run, settings)]
    runs.sort(key=lambda run: -run.id)
    if settings.order == "best":
        runs.sort(key=lambda run: (run.env, run.command, math.inf if run.result is None else -run.result))
    return runs


def _is_asked_for(run: PastRun, settings: RunsSettings) -> bool:
    exact = {name: getattr(settings, name) for name in ("agent", "command", "status")}
    same = all(wanted is None or getattr(run, name) == wanted for name, wanted in exact.items())
    return same and (settings.env is None or settings.env in run.env)


def _read(path: Path) -> PastRun:
    """What a run's files say; one damaged run hides no other."""
    try:
        return _told(path)
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, OSError):
        return PastRun(int(path.parent.name), "-", "-", "-", None, None, DAMAGED, "")


def _told(path: Path) -> PastRun:
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
    """Whether the process of a run is alive.

    Its lock tells on its own machine, and elsewhere if it is seen to be held: not every shared file system passes locks on
    to other machines. Otherwise the heartbeat tells.
    """
    locked = is_locked(folder)
    same_machine = run.get("host", {}).get("hostname") == platform.node()
    if locked is not None and (locked or same_machine):
        return locked
    beat = datetime.fromisoformat(run.get("heartbeat") or run["start_time"])
    return datetime.now(UTC).replace(tzinfo=None) - beat < SILENCE


def _problem(folder: Path, config: Mapping[str, Any]) -> Mapping[str, Any]:
    """What names model and task: a run's record, or its settings unless they leave both to a search or a front."""
    records = (read_json(folder / name) for name in MODELS_RECORDS if (folder / name).is_file())
    told = next((record["problem"] for record in records if "problem" in record), None)
    if told is not None:
        return dict(told)
    left = any(config.get(name) is not None for name in ("search_run", "front"))
    return {} if left else config


def _short(config: Mapping[str, Any]) -> str:
    for entry in ENVIRONMENTS.values():
        if config.get("env_id") == entry.id or (config.get("model"), config.get("task")) == (entry.model, entry.task):
            return entry.short
        if config.get("env_id") == entry.tabular_id:
            return f"{entry.short}_table"
    return str(config.get("env_id") or "-")


def _saved(folder: Path) -> float | None:
    """Of what the run came to; None where its record does not say."""
    if (folder / RECORD).is_file():
        return read_json(folder / RECORD).get("macs_saved")
    for name in MODELS_RECORDS:
        if (folder / name).is_file():
            models = read_json(folder / name)["models"]
            return models[-1 if name == "shrink.json" else 0]["macs_saved"]  # of the model that is kept
    return None


def printable(text: str) -> str:
    """A text without what a terminal would obey."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def table_of(runs: Sequence[PastRun], grouped: bool = True) -> Table:
    """The runs as a table that fits 80 columns; `grouped` draws a line between environments and commands."""
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
    """Print the list, and how to resume what stopped."""
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
